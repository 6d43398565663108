"""Extended IoU loss."""

import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import boxes, close, iou, values


def test_it_is_iou_less_half_its_smooth_point():
    target = boxes(0)
    size = target[:, 2:] - target[:, :2]
    shift = np.concatenate([size, size], 1) * np.float32(0.3)
    error = 1 - iou(target + shift, target)
    close(values(v.eiou_loss, target + shift, target), error - 0.05)
    near = 1 - iou(target + shift / 30, target)
    close(values(v.eiou_loss, target + shift / 30, target), near**2 / 0.2, atol=1e-5)


def test_it_grows_with_the_distance_of_boxes_apart():
    target = np.float32([[0, 0, 10, 10]])
    shift = np.float32([[1, 0, 1, 0]])
    costs = [float(v.eiou_loss(target + k * shift, target)) for k in (10, 12, 20, 50, 500)]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(0.95)
    assert 1.9 < costs[-1] < 1.95
