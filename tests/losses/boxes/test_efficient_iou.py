"""Efficient IoU loss and its focal form."""

import numpy as np

import visdet_jax as v
from losses.boxes.pairs import TARGET, close, gradient, iou, values


def test_by_hand():
    pred, target = np.float32([[0, 0, 10, 10]]), np.float32([[5, 0, 20, 5]])
    expected = 1 - 25 / 150 + (7.5**2 + 2.5**2) / 500 + 5**2 / 20**2 + 5**2 / 10**2
    close(values(v.efficient_iou_loss, pred, target), [expected])


def test_the_focal_weight_is_a_constant():
    weight = iou() ** 0.5
    close(values(v.efficient_iou_loss, focal_gamma=0.5), weight * values(v.efficient_iou_loss))
    constant = weight[:, None] * gradient(v.efficient_iou_loss)
    close(gradient(v.efficient_iou_loss, focal_gamma=0.5), constant)
    far = values(v.efficient_iou_loss, TARGET + 1000, focal_gamma=0.5)
    np.testing.assert_array_equal(far, 0)
