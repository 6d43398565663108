"""KFIoU of rotated boxes: against matrices in NumPy, invariances, tiny boxes, errors."""

import functools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import visdet_jax as v
from losses.rotated.in_matrices import (
    check_digits_of_needles,
    check_equal_boxes,
    check_formula,
    check_invariances,
    covariances,
)


def kfiou_of_boxes(pred, target, **options):
    """The loss of the decoded boxes, whose deltas are equal."""
    zeros = jnp.zeros_like(pred)
    return v.kfiou_loss(zeros, zeros, pred_decode=pred, targets_decode=target, **options)


values = functools.partial(kfiou_of_boxes, eps=1e-12, reduction="none")


def formula(pred, target):
    p, t, _ = covariances(pred, target)
    merged = np.linalg.inv(np.linalg.inv(p) + np.linalg.inv(t))
    area, *areas = (4 * math.sqrt(np.linalg.det(x)) for x in (merged, p, t))
    return 1 - area / (sum(areas) - area)


def test_the_defining_formula(x64):
    check_formula(values, formula)


def test_invariances(x64):
    check_invariances(values)


@pytest.mark.parametrize("apart", [0.03, 1])
def test_float32_keeps_the_digits_of_needles(apart):
    check_digits_of_needles(values, formula, apart)


def test_equal_boxes_cost_two_thirds_without_gradient():
    check_equal_boxes(kfiou_of_boxes, 2 / 3)


def test_kfiou_of_tiny_boxes_is_not_above_a_third():
    """The floor of the determinant is more than these boxes have: mmrotate gives 2, or NaN."""
    tiny = np.float32([[0, 0, side, side, 0] for side in (0, 1e-3, 0.04, 0.05, 0.06, 0.0632)])
    for fun, least in (("none", 2 / 3), ("ln", math.log(3)), ("exp", math.expm1(2 / 3))):
        value = kfiou_of_boxes(tiny, tiny, fun=fun, reduction="none")
        np.testing.assert_allclose(value[:4], least, rtol=1e-4)
        assert (value > 0.999 * least).all()


def test_only_the_centres_deltas_count():
    pred, target = np.zeros((1, 5), np.float32), np.float32([[0.5, -0.05, 9, 9, 9]])
    boxes = np.ones((1, 5), np.float32)
    value = v.kfiou_loss(pred, target, pred_decode=boxes, targets_decode=boxes)
    expected = v.smooth_l1_loss(pred[:, :2], target[:, :2], beta=1 / 9, reduction="sum")
    np.testing.assert_allclose(value - 2 / 3, expected, rtol=1e-5)


def test_options_that_raise():
    boxes = np.ones((4, 5), np.float32)
    message = "fun must be one of none, ln, exp; got 'log'"
    with pytest.raises(ValueError, match=f"^KFLoss: {message}"):
        v.build_loss({"type": "KFLoss", "fun": "log"})
    with pytest.raises(ValueError, match=f"^kfiou_loss: {message}"):
        kfiou_of_boxes(boxes, boxes, fun="log")
    for name in ("beta", "eps"):
        with pytest.raises(ValueError, match=f"^kfiou_loss: {name} must be above 0"):
            v.KFLoss()(boxes, boxes, pred_decode=boxes, targets_decode=boxes, **{name: 0.0})


def test_errors():
    boxes = np.ones((4, 5), np.float32)
    for loss in (v.KFLoss(), v.checked(v.KFLoss())):
        with pytest.raises(TypeError, match="kfiou_loss: the argument 'targets_decode' is missing"):
            loss(boxes, boxes, pred_decode=boxes)
    with pytest.raises(TypeError, match="kfiou_loss: targets_decode must be an array, got None"):
        v.KFLoss()(boxes, boxes, pred_decode=boxes, targets_decode=None)
    with pytest.raises(ValueError, match=r"kfiou_loss: pred_decode must have pred's shape"):
        v.KFLoss()(boxes, boxes, pred_decode=boxes[:2], targets_decode=boxes)


def test_checked_finds_negative_sides():
    boxes = np.ones((4, 5), np.float32)
    spoilt = boxes.copy()
    spoilt[2, 3] = -1
    with pytest.raises(checkify.JaxRuntimeError, match=r"targets_decode\[2\] is .*w ≥ 0"):
        v.checked(v.KFLoss())(boxes, boxes, pred_decode=boxes, targets_decode=spoilt)
