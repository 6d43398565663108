"""Overlaps of boxes: against a slow loop, shapes, types, errors."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from boxes.inputs import random_boxes
from visdet_jax import bbox_overlaps


def slow_overlap(a, b, mode):
    """The overlap of two boxes, in Python."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    overlap = width * height
    union = sum(areas) - overlap
    if mode == "iof":
        return overlap / areas[0]
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (0 if mode == "iou" else (enclosing - union) / enclosing)


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_against_a_loop(mode):
    first, second = random_boxes(0, 5), random_boxes(1, 7)
    expected = [[slow_overlap(a, b, mode) for b in second] for a in first]
    np.testing.assert_allclose(bbox_overlaps(first, second, mode), expected, rtol=1e-5)
    aligned = bbox_overlaps(first, second[:5], mode, is_aligned=True)
    np.testing.assert_allclose(aligned, np.diag(np.array(expected)[:, :5]), rtol=1e-5)


def test_leading_axes():
    first, second = random_boxes(0, 2, 3, 5), random_boxes(1, 2, 3, 4)
    pairs = bbox_overlaps(first, second)
    assert pairs.shape == (2, 3, 5, 4)
    for i, j in itertools.product(range(2), range(3)):
        np.testing.assert_allclose(pairs[i, j], bbox_overlaps(first[i, j], second[i, j]), rtol=1e-6)
    assert bbox_overlaps(first, first, is_aligned=True).shape == (2, 3, 5)


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_empty(mode):
    none, some = random_boxes(0, 0), random_boxes(1, 3)
    assert bbox_overlaps(none, some, mode).shape == (0, 3)
    assert bbox_overlaps(some, none, mode).shape == (3, 0)
    assert bbox_overlaps(none, none, mode, is_aligned=True).shape == (0,)


def test_degenerate_boxes_are_finite():
    point = jnp.zeros((1, 4))
    inverted = jnp.array([[5.0, 5, 1, 1]])
    for mode in ("iou", "iof", "giou"):
        for a, b in itertools.product((point, inverted), repeat=2):
            assert np.isfinite(bbox_overlaps(a, b, mode)).all()
            assert np.isfinite(bbox_overlaps(a, b, mode, eps=0.0)).all()


def test_half_floats():
    boxes = jnp.array([[0, 0, 300, 300]], jnp.float16)  # an area of 90 000 overflows float16
    overlap = bbox_overlaps(boxes, boxes)
    assert overlap.dtype == jnp.float32
    np.testing.assert_allclose(overlap, [[1]])


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        ((3, 4), (3, 4), {"mode": "ciou"}, "mode must be one of iou, iof, giou; got 'ciou'"),
        ((3, 4), (3, 4), {"eps": -1.0}, "eps must be at least 0, got -1.0"),
        ((3, 5), (3, 4), {}, "boxes must have shape"),
        ((4,), (3, 4), {}, "boxes must have shape"),
        ((3, 4), (2, 4), {"is_aligned": True}, "aligned boxes must have the same shape"),
        ((2, 3, 4), (3, 3, 4), {}, "boxes must have the same leading axes"),
    ],
)
def test_errors(first, second, options, message):
    with pytest.raises(ValueError, match=f"bbox_overlaps: {message}"):
        bbox_overlaps(np.zeros(first, np.float32), np.zeros(second, np.float32), **options)
