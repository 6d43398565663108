"""MPDIoU loss."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, close, iou, values


def test_by_hand():
    expected = 1 - iou() + ((PRED - TARGET) ** 2).sum(1) / (100**2 + 120**2)
    loss = v.MPDIoULoss(image_shape=[100, 120], reduction="none")
    close(loss(PRED, TARGET), expected)
    close(v.MPDIoULoss(reduction="none")(PRED, TARGET, image_shape=(100, 120)), expected)
    close(loss(PRED, TARGET, image_shape=np.array([100, 120])), expected)
    shapes = np.where(np.arange(16)[:, None] < 8, [[100, 120]], [[50, 60]])
    other = values(v.mpdiou_loss, image_shape=(50, 60))
    close(loss(PRED, TARGET, image_shape=shapes), np.where(np.arange(16) < 8, expected, other))
    weight = np.arange(16, dtype=np.float32)
    gradient = jax.grad(lambda p: loss(p, TARGET, weight, image_shape=shapes).sum())(PRED)
    assert not gradient[0].any()
    assert np.isfinite(gradient).all()


def test_no_image_and_a_wrong_one_raise():
    with pytest.raises(ValueError, match=r"mpdiou_loss: give image_shape=\(height, width\)"):
        v.MPDIoULoss()(PRED, TARGET)
    for shape in (np.ones(3), np.ones((3, 2)), (1, 2, 3)):
        with pytest.raises((ValueError, TypeError), match="mpdiou_loss: "):
            v.mpdiou_loss(PRED, TARGET, image_shape=shape)
    with pytest.raises(ValueError, match="MPDIoULoss: image_shape must be"):
        v.MPDIoULoss(image_shape=(100,))
