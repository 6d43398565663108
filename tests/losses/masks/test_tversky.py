"""Tversky loss: what it is of halves, its weights, and what it does not read."""

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import visdet_jax as v
from losses.classification.class_scores import MAPS, REGIONS, close, log_softmax


def test_of_halves_it_is_dice():
    p = np.exp(log_softmax(MAPS)).astype(np.float32)
    own = np.moveaxis(np.eye(5, dtype=np.float32)[REGIONS], -1, 1)
    dice = v.dice_loss(
        p.reshape(15, -1), own.reshape(15, -1), naive_dice=True, eps=2.0, reduction="none"
    )
    value = v.tversky_loss(MAPS, REGIONS, alpha=0.5, beta=0.5, smooth=1.0, reduction="none")
    close(value, dice.reshape(3, 5).mean(1))


def test_false_alarms_and_misses_have_weights_of_their_own():
    """Class 1 of two everywhere, or nowhere, against half of the pixels."""
    half = np.array([[0, 0, 1, 1]])
    everywhere = np.stack([np.full((1, 4), -50.0), np.full((1, 4), 50.0)], 1).astype(np.float32)
    of_class_1 = {"smooth": 0.0, "class_weight": np.array([0, 1], np.float32)}
    alarms = v.tversky_loss(everywhere, half, alpha=0.3, beta=0.7, **of_class_1)
    close(alarms, 0.5 * 0.3 * 2 / (2 + 0.3 * 2))
    misses = v.tversky_loss(-everywhere, half, alpha=0.3, beta=0.7, **of_class_1)
    close(misses, 0.5 * 1)  # no hit
    right = np.where(half[:, None] == np.arange(2)[None, :, None], 50, -50).astype(np.float32)
    close(v.tversky_loss(right, half, smooth=0.0), 0)


@pytest.mark.long
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_no_ignored_pixel_is_read(smooth):
    labels = np.where(REGIONS == 3, 255, np.where(REGIONS == 4, -1, REGIONS))
    labels[2] = 255
    ignored = (labels < 0) | (labels == 255)
    pred = np.where(ignored[:, None], np.nan, MAPS)
    loss = v.TverskyLoss(smooth=smooth)
    value, gradient = jax.value_and_grad(loss)(pred, labels)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.any(np.moveaxis(np.asarray(gradient), 1, -1)[ignored])
    assert loss(pred, labels, reduction_override="none")[2] == 0
    with pytest.raises(checkify.JaxRuntimeError, match=r"target\[0, 0, 0\] is 7: .* or 255 to be"):
        v.checked(loss)(MAPS, np.full_like(REGIONS, 7))


def test_classes_and_their_weights():
    values = v.tversky_loss(MAPS, REGIONS, ignore_index=None, reduction="none")
    close(v.tversky_loss(MAPS, REGIONS, reduction="none"), values)
    by_class = [
        v.tversky_loss(MAPS, REGIONS, class_weight=w, reduction="none")
        for w in np.eye(5, dtype="f4")
    ]
    close(sum(by_class), values)
    close(v.TverskyLoss(class_weight=2.0)(MAPS, REGIONS), 2 * values.mean())
    unknown = np.where(np.arange(3)[:, None, None] == 1, 255, REGIONS)
    values = v.tversky_loss(MAPS, unknown, ignore_index=None, reduction="none")
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])


@pytest.mark.parametrize("key", ["alpha", "beta", "smooth", "class_weight"])
def test_negative_numbers_raise(key):
    with pytest.raises(ValueError, match=f"TverskyLoss: {key} must be at least 0, got -1"):
        v.TverskyLoss(**{key: -1.0})
    with pytest.raises(ValueError, match=f"tversky_loss: {key} must be at least 0, got -1"):
        v.tversky_loss(MAPS, REGIONS, **{key: -1.0})
