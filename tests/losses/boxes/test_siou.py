"""SIoU loss."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import boxes, close, values


@pytest.mark.parametrize("neg_gamma", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_bounds(seed, neg_gamma):
    siou = values(v.siou_loss, boxes(seed), boxes(seed + 10), neg_gamma=neg_gamma)
    assert ((siou >= 0) & (siou <= 2)).all()


def test_it_rewards_distance_unless_told_otherwise():
    """The numbers of the docstring."""
    target = np.float32([[0, 0, 10, 10]])
    shift = np.float32([[1, 0, 1, 0]])
    steps = (0, 1, 3, 6, 9, 12, 20, 50)
    pred = np.concatenate([target + k * shift for k in steps])
    target = np.repeat(target, len(steps), 0)
    close(values(v.siou_loss, pred, target), [0, 0.17, 0.41, 0.59, 0.66, 0.59, 0.28, 0], atol=0.006)
    paper = values(v.siou_loss, pred, target, neg_gamma=True)
    assert (np.diff(paper) > 0).all()


def test_the_angle_cost_is_the_sine_of_twice_the_angle():
    """One row with the trigonometric form, in float64's NumPy."""
    pred, target = np.float32([[0, 0, 12, 9]]), np.float32([[4, 7, 15, 20]])
    eps = 1e-6
    dx, dy = 9.5 - 6 + eps, 13.5 - 4.5 + eps
    sine = min(dx, dy) / np.hypot(dx, dy)
    gamma = np.cos(2 * np.arcsin(sine) - np.pi / 2) - 2
    distance = 2 - np.exp(gamma * (dx / 15) ** 2) - np.exp(gamma * (dy / 20) ** 2)
    shape = (1 - np.exp(-1 / 12)) ** 4 + (1 - np.exp(-4 / 13)) ** 4
    iou = 16 / (108 + 143 - 16)
    close(v.siou_loss(pred, target, neg_gamma=True), 1 - iou + (distance + shape) / 2)


@pytest.mark.parametrize("neg_gamma", [False, True])
def test_finite_without_eps(neg_gamma):
    """Boxes without width, without height and without either."""
    pred = np.float32([[0, 0, 0, 0], [1, 1, 1, 5], [1, 1, 5, 1], [3, 3, 3, 3]])
    target = np.float32([[0, 0, 0, 0], [1, 1, 1, 5], [1, 2, 5, 2], [0, 0, 9, 9]])

    def total(pred):
        return v.siou_loss(pred, target, eps=0.0, neg_gamma=neg_gamma, reduction="sum")

    value, gradient = jax.value_and_grad(total)(pred)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
