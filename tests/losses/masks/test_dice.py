"""Dice: of equal masks, of nothing, of logits, and its memory."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from programs import temporary_bytes

RNG = np.random.default_rng(0)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_of_equal_masks_and_of_nothing():
    mask = (RNG.random((3, 8, 8)) > 0.5).astype(np.float32)
    nothing = np.zeros_like(mask)
    for eps in (0.0, 1e-3):
        for naive in (False, True):
            close(v.dice_loss(mask, mask, naive_dice=naive, eps=eps), 0, atol=1e-4)
        assert v.dice_loss(nothing, nothing, eps=eps) == 1
        assert v.dice_loss(nothing, nothing, naive_dice=True, eps=eps) == 0


def test_of_logits_it_is_dice_of_sigmoids():
    pred = RNG.normal(size=(3, 4, 4)).astype(np.float32)
    mask = (RNG.random((3, 4, 4)) > 0.5).astype(np.float32)
    close(v.dice_loss_with_logits(pred, mask), v.dice_loss(jax.nn.sigmoid(pred), mask))


def test_no_array_is_stored_to_hide_masks_of_weight_0():
    """Without the hand-written derivative the hidden masks would be."""
    pred = np.zeros((10, 50, 50), np.float32)
    assert temporary_bytes(v.dice_loss, pred, pred, np.ones(10, np.float32)) < pred.nbytes / 2


@pytest.mark.parametrize("activate", [True, False])
def test_a_negative_eps_raises(activate):
    pred = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="DiceLoss: eps must be at least 0, got -1"):
        v.DiceLoss(eps=-1.0, activate=activate)
    loss = v.dice_loss_with_logits if activate else v.dice_loss
    with pytest.raises(ValueError, match=f"{loss.__name__}: eps must be at least 0, got -1"):
        loss(pred, pred, eps=-1.0)
    with pytest.raises(ValueError, match="DiceLoss: use_sigmoid=False needs activate=False"):
        v.DiceLoss(use_sigmoid=False)
