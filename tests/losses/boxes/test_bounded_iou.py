"""Bounded IoU loss."""

import jax
import numpy as np

import visdet_jax as v
from losses.boxes.pairs import boxes, centred, close, values


def test_by_coordinate():
    target = np.float32([[0, 0, 20, 10]])
    shifted = target + np.float32([[2, 0, 2, 0]])
    error = 1 - 16 / 24
    close(values(v.bounded_iou_loss, shifted, target, eps=0.0), [[error - 0.1, 0, 0, 0]])
    wider = centred([[25, 10]], (10, 5))
    close(values(v.bounded_iou_loss, wider, target, eps=0.0), [[0, 0, 0.2**2 / 0.4, 0]])


def test_it_weights_coordinates():
    pred, target = boxes(0), boxes(1)
    weight = (np.random.default_rng(0).random((32, 4)) < 0.5).astype(np.float32)
    each = values(v.bounded_iou_loss, pred, target)
    close(v.bounded_iou_loss(pred, target, weight, reduction="none"), each * weight)
    close(v.bounded_iou_loss(pred, target, weight[:, 0]), (each * weight[:, :1]).mean())
    gradient = jax.grad(v.bounded_iou_loss, argnums=1)(pred, target)
    assert not gradient.any()
