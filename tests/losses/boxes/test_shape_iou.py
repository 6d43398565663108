"""Shape-IoU loss."""

import jax
import numpy as np

import visdet_jax as v
from losses.boxes.pairs import close, iou, values


def test_it_follows_the_shape_of_the_target():
    wide = np.float32([[0, 0, 40, 10]])
    along, across = wide + np.float32([2, 0, 2, 0]), wide + np.float32([0, 2, 0, 2])

    def distance(pred, scale):
        return values(v.shape_iou_loss, pred, wide, scale=scale) - 1 + iou(pred, wide)

    close(distance(along, 1.0), 2 * 10 / 50 * 4 / (42**2 + 10**2))
    close(distance(across, 1.0), 2 * 40 / 50 * 4 / (40**2 + 12**2))
    close(distance(along, 0.0), 4 / (42**2 + 10**2))
    square = np.float32([[0, 0, 20, 20]])
    pred = square + np.float32([1, 2, 5, 3])
    plain = values(v.shape_iou_loss, pred, square)
    close(values(v.shape_iou_loss, pred, square, scale=2.0), plain)
    close(distance(across, 100.0), 2 * 4 / (40**2 + 12**2))  # 40^100 is no float


def test_finite_without_eps():
    """Boxes without width, without height and without either."""
    pred = np.float32([[0, 0, 0, 0], [1, 1, 1, 5], [1, 1, 5, 1], [3, 3, 3, 3]])
    target = np.float32([[0, 0, 0, 0], [1, 1, 1, 5], [1, 2, 5, 2], [0, 0, 9, 9]])

    def total(pred):
        return v.shape_iou_loss(pred, target, eps=0.0, scale=1.0, reduction="sum")

    value, gradient = jax.value_and_grad(total)(pred)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
