"""Cross entropy of each class on its own, and of masks: weights, ignored rows, PolyLoss's term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import (
    CLASS_WEIGHT,
    LABEL,
    ONE_HOT,
    PRED,
    SOFT,
    close,
    miss,
)
from programs import compiled, temporary_bytes


def test_class_weight_is_the_weight_of_positives():
    plain = v.binary_cross_entropy(PRED, LABEL, reduction="none")
    weighted = v.binary_cross_entropy(PRED, LABEL, class_weight=CLASS_WEIGHT, reduction="none")
    close(weighted, np.where(ONE_HOT == 1, CLASS_WEIGHT, 1) * plain)


def test_poly_epsilon_adds_its_term():
    p = miss(PRED, 0)
    weighted = {"class_weight": CLASS_WEIGHT, "reduction": "none"}
    for target, t in ((LABEL, ONE_HOT), (SOFT, SOFT)):
        plain = v.binary_cross_entropy(PRED, target, **weighted)
        poly = v.binary_cross_entropy(PRED, target, poly_epsilon=0.7, **weighted)
        close(poly - plain, 0.7 * (CLASS_WEIGHT * t * (1 - p) + (1 - t) * p))


def test_the_mean_may_be_over_the_kept_rows():
    label = np.where(np.arange(16) < 4, 255, LABEL)
    kept = v.binary_cross_entropy(PRED[4:], LABEL[4:])
    close(v.binary_cross_entropy(PRED, label, ignore_index=255, avg_non_ignore=True), kept)


@pytest.mark.parametrize("loss", [v.cross_entropy, v.binary_cross_entropy])
def test_an_ignored_row_is_not_read(loss):
    label, pred = LABEL.copy(), PRED.copy()
    label[3], pred[3] = -100, np.nan
    value, gradient = jax.value_and_grad(lambda p: loss(p, label))(pred)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("options", [{}, {"poly_epsilon": 0.7}, {"class_weight": np.ones(8, "f4")}])
def test_value_and_gradient_need_one_temporary(options):
    """The value and its derivative have no array in common that XLA would store between them."""
    pred = np.linspace(-3, 3, 8000, dtype=np.float32).reshape(1000, 8)
    both = jax.value_and_grad(lambda p, t: v.binary_cross_entropy(p, t, **options))
    assert temporary_bytes(both, pred, pred > 0) <= 1.1 * pred.nbytes


def test_mask_cross_entropy_is_that_of_each_objects_own_mask():
    rng = np.random.default_rng(0)
    pred = rng.normal(size=(4, 3, 2, 5)).astype(np.float32)
    target = (rng.random((4, 2, 5)) > 0.5).astype(np.float32)
    label = np.array([2, 0, -1, 1])
    own = pred[np.arange(4), label]
    expected = np.array(v.binary_cross_entropy(own, target, reduction="none"))
    expected[2] = 0
    close(v.mask_cross_entropy(pred, target, label, reduction="none"), expected)
    close(v.mask_cross_entropy(pred, target, label), expected.mean())
    weight = np.array([1.0, 2.0, 5.0], np.float32)
    close(
        v.mask_cross_entropy(pred, target, label, class_weight=weight, reduction="none"),
        expected * weight[label][:, None, None],
    )
    loss = v.CrossEntropyLoss(use_mask=True)
    close(loss(pred, target, label), loss(pred, target, label=label))
    rows = np.array([1.0, 0, 0, 2], np.float32)
    close(loss(pred, target, rows, label=label), (expected * rows[:, None, None]).mean())
    assert np.isnan(v.mask_cross_entropy(pred, target, label + 2))


def test_the_gradient_of_masks_is_one_loop():
    """By autodiff an array of zeros is filled first, and the masks' derivatives are added to it."""
    pred, masks, label = jnp.ones((4, 8, 3, 3)), jnp.ones((4, 3, 3)), np.zeros(4, np.int32)
    text = compiled(jax.value_and_grad(v.mask_cross_entropy), pred, masks, label).as_text()
    assert "scatter" not in text
