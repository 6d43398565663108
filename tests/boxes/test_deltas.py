"""Boxes as deltas of a prior."""

import numpy as np
import pytest

from boxes.inputs import check_finite, check_half_floats
from visdet_jax.boxes import (
    bbox2delta,
    convert_boxes,
    delta2bbox,
    legacy_bbox2delta,
    legacy_delta2bbox,
)

every_function = pytest.mark.parametrize(
    "function", [bbox2delta, delta2bbox, legacy_bbox2delta, legacy_delta2bbox]
)


def test_deltas_of_a_box_by_hand():
    prior, box = np.array([[0, 0, 10, 20]], np.float32), np.array([[5, 0, 25, 20]], np.float32)
    np.testing.assert_allclose(bbox2delta(prior, box), [[1, 0, np.log(2), 0]], atol=1e-7)
    scaled = bbox2delta(prior, box, means=(0.5, 0.0, 0.0, 0.0), stds=(0.1, 1.0, 0.2, 1.0))
    np.testing.assert_allclose(scaled, [[5, 0, 5 * np.log(2), 0]], atol=1e-6)
    back = delta2bbox(prior, scaled, means=(0.5, 0.0, 0.0, 0.0), stds=(0.1, 1.0, 0.2, 1.0))
    np.testing.assert_allclose(back, box, atol=1e-5)


def test_legacy_deltas_by_hand():
    # From x1 to x2 there are x2 - x1 + 1 pixels: 10 of the prior, 20 of the box.
    prior, box = np.array([[0, 0, 9, 9]], np.float32), np.array([[5, 0, 24, 9]], np.float32)
    deltas = legacy_bbox2delta(prior, box)
    np.testing.assert_allclose(deltas, [[1, 0, np.log(2), 0]], atol=1e-7)
    np.testing.assert_allclose(legacy_delta2bbox(prior, deltas), [[4.5, -0.5, 24.5, 9.5]], 1e-5)


def test_legacy_boxes_of_mmdets_docstring():
    rois = np.array([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [5, 5, 5, 5]], np.float32)
    deltas = [[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, -1], [0.7, -1.9, -0.5, 0.3]]
    expected = [
        [0.0000, 0.0000, 1.5000, 1.5000],
        [0.0000, 0.0000, 5.2183, 5.2183],
        [0.0000, 0.1321, 7.8891, 0.8679],
        [5.3967, 2.4251, 6.0033, 3.7749],
    ]
    boxes = legacy_delta2bbox(rois, np.array(deltas, np.float32), max_shape=(32, 32))
    np.testing.assert_allclose(boxes, expected, atol=5e-5)


def test_sides_change_by_a_bounded_factor():
    prior, far = np.array([[0, 0, 16, 16]], np.float32), np.full((1, 4), 9, np.float32)
    wide = delta2bbox(prior, far)
    np.testing.assert_allclose(wide[0, 2:] - wide[0, :2], 1000, rtol=1e-5)
    near = delta2bbox(prior, far, add_ctr_clamp=True, ctr_clamp=4)
    np.testing.assert_allclose(convert_boxes(near)[0, :2], 12, rtol=1e-5)
    assert (delta2bbox(prior, -far)[0, 2:] > delta2bbox(prior, -far)[0, :2]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: delta2bbox(x, x[:, :2]), r"delta2bbox: deltas must have shape \(..., 4\)"),
        (lambda x: bbox2delta(x, x[:, :2]), r"boxes must have shape \(..., 4\), got \(3, 2\)"),
        (lambda x: delta2bbox(x, x, max_shape=(1, 2, 3)), "delta2bbox: an image's shape must be"),
        (
            lambda x: delta2bbox(x, x, wh_ratio_clip=0.0),
            "delta2bbox: wh_ratio_clip must be above 0, got 0.0",
        ),
        (
            lambda x: delta2bbox(x, x, add_ctr_clamp=True, ctr_clamp=-1.0),
            "delta2bbox: ctr_clamp must be at least 0, got -1.0",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 4), np.float32))


@every_function
def test_half_floats_are_computed_in_float32(function):
    check_half_floats(function, 4, 4)


@every_function
def test_values_and_gradients_are_finite(function):
    check_finite(function, 4, 4)
