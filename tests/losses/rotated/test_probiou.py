"""ProbIoU of rotated boxes: against matrices in NumPy, invariances, aspect ratios, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import visdet_jax as v
from losses.rotated.in_matrices import (
    bhattacharyya,
    check_digits_of_needles,
    check_equal_boxes,
    check_formula,
    check_invariances,
    covariances,
    rotated_pairs,
)

values = functools.partial(v.probiou_loss, eps=1e-12, reduction="none")


def formula(pred, target):
    distance = bhattacharyya(*covariances(pred, target, 12.0))
    return math.sqrt(1 - math.exp(-distance))


def test_the_defining_formula(x64):
    check_formula(values, formula)


def test_invariances(x64):
    check_invariances(values)


@pytest.mark.parametrize("apart", [0.03, 1])
def test_float32_keeps_the_digits_of_needles(apart):
    check_digits_of_needles(values, formula, apart)


def test_equal_boxes_cost_the_root_of_2_eps_without_gradient():
    check_equal_boxes(v.probiou_loss, math.sqrt(2e-7))


def test_float32_keeps_the_digits_of_boxes_that_grow_a_little():
    """det S / (4 √(det P det T)) is 1 here, as far as float32 knows."""
    pred = np.float32([[0, 0, 30, 7, 0.3]])
    target = (pred * np.float32([1, 1, 1 + 1e-4, 1 + 1e-4, 1])).astype(np.float32)
    expected = formula(np.float64(pred[0]), np.float64(target[0]))
    np.testing.assert_allclose(values(pred, target), expected, rtol=1e-3)


@pytest.mark.parametrize("eps", [1e-12, 1e-7])
def test_gradients_of_boxes_without_area_are_finite(eps):
    """Of the root of a variance of 0, and of the logarithm of what is tiny beside eps."""
    boxes = np.float32([[0, 0, 0, 0, 0.3], [0, 0, 0, 5, 0.3], [0, 0, 1e-30, 0, 0.3]])
    gradient = jax.grad(lambda pred: v.probiou_loss(pred, boxes[::-1], eps=eps))(boxes)
    assert np.isfinite(gradient).all()


def test_aspect_ratios(x64):
    """Equal ratios add nothing. The gradient, with alpha held fixed, is the finite difference."""
    pred, target = rotated_pairs()
    similar = target.copy()
    similar[:, 3] = target[:, 2] * pred[:, 3] / pred[:, 2]
    plain = v.probiou_loss(pred, similar, reduction="none")
    with_ratio = v.probiou_loss(pred, similar, ciou=True, reduction="none")
    np.testing.assert_allclose(with_ratio, plain, rtol=1e-12)

    ratios = np.arctan(target[:, 2] / target[:, 3])

    def terms(pred):
        difference = ratios - np.arctan(pred[:, 2] / pred[:, 3])
        return np.asarray(v.probiou_loss(pred, target, reduction="none")), (
            4 / math.pi**2 * difference**2
        )

    loss, aspect = terms(pred)
    alpha = aspect / (aspect + loss + 1e-7)
    value = v.probiou_loss(pred, target, ciou=True, reduction="none")
    np.testing.assert_allclose(value, loss + alpha * aspect, rtol=1e-12)
    gradient = jax.grad(lambda p: v.probiou_loss(p, target, ciou=True, reduction="sum"))(pred)
    direction = np.random.default_rng(1).normal(size=pred.shape)
    ahead, behind = (terms(pred + step * direction) for step in (1e-6, -1e-6))
    expected = ((ahead[0] - behind[0]) + alpha * (ahead[1] - behind[1])).sum() / 2e-6
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6)


def test_a_floor_bounds_the_gradient_of_tiny_boxes():
    boxes = np.float32([[0, 0, 0.05, 0.05, 0]])
    target = np.float32([[0.05, 0, 0.1, 0.05, 0]])

    def largest_gradient(floor):
        loss = functools.partial(v.probiou_loss, eps=1e-12, floor=floor)
        return jnp.abs(jax.grad(loss)(boxes, target)).max()

    assert 2 * largest_gradient(0.01) < largest_gradient(0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
        ({"floor": -1.0}, "floor must be at least 0, got -1.0"),
    ],
)
def test_options_that_raise(options, message):
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match=f"^ProbIoULoss: {message}"):
        v.build_loss({"type": "ProbIoULoss", **options})
    with pytest.raises(ValueError, match=f"^probiou_loss: {message}"):
        v.probiou_loss(boxes, boxes, **options)


def test_a_weight_of_another_shape():
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"weight must have shape \(4,\) or \(4, 5\)"):
        v.probiou_loss(boxes, boxes, boxes[:, :4])


def test_checked_finds_negative_sides_and_the_weight_hides_them():
    boxes = np.ones((4, 5), np.float32)
    spoilt = boxes.copy()
    spoilt[2, 3] = -1
    weight = np.float32([1, 1, 0, 1])
    loss = v.checked(v.ProbIoULoss())
    with pytest.raises(checkify.JaxRuntimeError, match=r"pred\[2\] is .*: .*w ≥ 0 and h ≥ 0"):
        loss(spoilt, boxes)
    assert np.isfinite(loss(spoilt, boxes, weight))
