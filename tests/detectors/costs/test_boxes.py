"""Match costs of boxes: their formulas pair by pair, formats, modes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import boxes
from visdet_jax.detectors import BBoxL1Cost, IoUCost, bbox_l1_cost, iou_cost

RNG = np.random.default_rng(0)
PRED, TARGET = boxes(RNG, 6), boxes(RNG, 4)
IMAGE = np.array([100, 150])  # height, width
EXTENTS = np.array([150, 100, 150, 100])


def centers_and_sizes(box):
    x1, y1, x2, y2 = box
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


@pytest.mark.parametrize(
    ("box_format", "numbers"), [("xyxy", np.asarray), ("xywh", centers_and_sizes)]
)
def test_distance_in_fractions_of_the_image(box_format, numbers):
    """mmdet's "xywh" is centre and size, not corner and size."""
    expected = [
        [(np.abs(numbers(p) - numbers(t)) / EXTENTS).sum() for t in TARGET.astype(float)]
        for p in PRED.astype(float)
    ]
    actual = bbox_l1_cost(PRED, TARGET, IMAGE, box_format=box_format)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("box_format", ["xyxy", "xywh"])
def test_equal_boxes_have_no_distance(box_format):
    distance = jax.jit(lambda b: bbox_l1_cost(b, b, IMAGE, box_format=box_format))(PRED)
    np.testing.assert_array_equal(np.diag(distance), 0)
    gradient = jax.grad(lambda b: bbox_l1_cost(b, PRED[:1], IMAGE, box_format=box_format).sum())
    np.testing.assert_array_equal(gradient(PRED[:1]), 0)


def overlap(a, b, mode):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inner = np.prod(np.maximum(high - low, 0))
    area_a, area_b = np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])
    union = area_a + area_b - inner
    if mode == "iof":
        return inner / area_a
    if mode == "iou":
        return inner / union
    enclosing = np.prod(np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2]))
    return inner / union - (enclosing - union) / enclosing


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_minus_the_overlap(mode):
    expected = [[-overlap(p, t, mode) for t in TARGET.astype(float)] for p in PRED.astype(float)]
    np.testing.assert_allclose(iou_cost(PRED, TARGET, iou_mode=mode), expected, rtol=1e-4)


@pytest.mark.parametrize("bad", ["cxcywh", "xyhw", None])
def test_another_format_raises(bad):
    message = "box_format must be one of xyxy, xywh; got"
    with pytest.raises(ValueError, match=f"bbox_l1_cost: {message}"):
        bbox_l1_cost(PRED, TARGET, IMAGE, box_format=bad)
    with pytest.raises((TypeError, ValueError), match="BBoxL1Cost: box_format must be"):
        BBoxL1Cost(box_format=bad)


def test_another_mode_raises():
    message = "iou_mode must be one of iou, iof, giou; got 'diou'"
    with pytest.raises(ValueError, match=f"iou_cost: {message}"):
        iou_cost(PRED, TARGET, iou_mode="diou")
    with pytest.raises(ValueError, match=f"IoUCost: {message}"):
        IoUCost(iou_mode="diou")


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^bbox_l1_cost: .*shape must be \(height, width"):
        bbox_l1_cost(PRED, TARGET, jnp.ones(3))
    with pytest.raises(ValueError, match=r"^iou_cost: .*boxes must have shape \(\.\.\., n, 4\)"):
        iou_cost(PRED[:, :3], TARGET)
    for cost in (lambda *x: bbox_l1_cost(*x, IMAGE), iou_cost):
        with pytest.raises(TypeError, match="must be an array, got list"):
            cost([[0, 0, 1, 1]], TARGET)
