"""Boxes as the distances from a prior's centre, in its sizes."""

import functools

import numpy as np
import pytest

from boxes.inputs import check_finite, check_half_floats
from visdet_jax.boxes import bboxes2tblr, tblr2bboxes

PRIOR = np.array([[0, 0, 10, 20]], np.float32)
BOX = np.array([[1, 4, 9, 28]], np.float32)
every_function = pytest.mark.parametrize(
    "function", [bboxes2tblr, functools.partial(tblr2bboxes, max_shape=(50, 60))]
)


def test_distances_of_a_box_by_hand():
    # The centre is (5, 10): 6 to the top, 18 to the bottom, 4 to the left and to the right.
    pixels = bboxes2tblr(PRIOR, BOX, normalizer=1.0, normalize_by_wh=False)
    np.testing.assert_allclose(pixels, [[6, 18, 4, 4]])
    np.testing.assert_allclose(bboxes2tblr(PRIOR, BOX, 1.0), [[0.3, 0.9, 0.4, 0.4]], 1e-6)
    np.testing.assert_allclose(bboxes2tblr(PRIOR, BOX), [[0.075, 0.225, 0.1, 0.1]], 1e-6)
    each = bboxes2tblr(PRIOR, BOX, (1.0, 2.0, 4.0, 0.5))
    np.testing.assert_allclose(each, [[0.3, 0.45, 0.1, 0.8]], 1e-6)


@pytest.mark.parametrize("normalizer", [1.0, 4.0, (1.0, 2.0, 4.0, 0.5)])
@pytest.mark.parametrize("normalize_by_wh", [True, False])
def test_one_is_the_inverse_of_the_other(normalizer, normalize_by_wh):
    options = {"normalizer": normalizer, "normalize_by_wh": normalize_by_wh}
    tblr = bboxes2tblr(PRIOR, BOX, **options)
    np.testing.assert_allclose(tblr2bboxes(PRIOR, tblr, **options), BOX, 1e-6)


def test_boxes_are_clipped():
    clipped = tblr2bboxes(PRIOR, np.full((1, 4), 9, np.float32), max_shape=(21, 12))
    np.testing.assert_array_equal(clipped, [[0, 0, 12, 21]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: tblr2bboxes(x, x[:, :2]), r"tblr2bboxes: tblr must have shape \(..., 4\)"),
        (lambda x: bboxes2tblr(x, x[:, :2]), r"bboxes2tblr: boxes must have shape \(..., 4\)"),
        (lambda x: bboxes2tblr(x, x, 0.0), "bboxes2tblr: normalizer must be above 0, got 0.0"),
        (lambda x: tblr2bboxes(x, x, -1.0), "tblr2bboxes: normalizer must be above 0, got -1.0"),
        (lambda x: bboxes2tblr(x, x, (1.0, 2.0)), "normalizer must be one number or four, got 2"),
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
