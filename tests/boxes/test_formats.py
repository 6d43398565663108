"""Formats of boxes, in pixels and in fractions of the image."""

import numpy as np
import pytest

from boxes.inputs import check_finite, check_half_floats, random_boxes
from visdet_jax.boxes import convert_boxes, denormalize_boxes, normalize_boxes
from visdet_jax.boxes.formats import clip_to_image

FORMATS = {
    "xyxy": [[10.0, 20, 40, 30], [-5, 0, 5, 8]],
    "xywh": [[10.0, 20, 30, 10], [-5, 0, 10, 8]],
    "cxcywh": [[25.0, 25, 30, 10], [0, 4, 10, 8]],
}
every_function = pytest.mark.parametrize(
    "function",
    [
        convert_boxes,
        lambda x: normalize_boxes(x, (300, 200)),
        lambda x: denormalize_boxes(x, (300, 200)),
    ],
    ids=["convert", "normalize", "denormalize"],
)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_convert_boxes(source, target):
    boxes = np.array(FORMATS[source], np.float32)
    converted = convert_boxes(boxes, source, target)
    np.testing.assert_array_equal(converted, FORMATS[target])
    np.testing.assert_array_equal(convert_boxes(converted, target, source), boxes)


def test_convert_boxes_takes_any_leading_axes():
    boxes = random_boxes(0, 2, 3)
    np.testing.assert_array_equal(convert_boxes(boxes)[1, 2], convert_boxes(boxes[1, 2]))
    assert convert_boxes(random_boxes(0, 0)).shape == (0, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: convert_boxes(x, "xyxy", "yxyx"),
            "target must be one of xyxy, xywh, cxcywh; got 'yxyx'",
        ),
        (lambda x: convert_boxes(x, "whxy"), "source must be one of xyxy"),
        (lambda x: convert_boxes(x[:, :3]), r"boxes must have shape \(..., 4\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=f"convert_boxes: {message}"):
        call(np.ones((3, 4), np.float32))


def test_normalize_boxes():
    boxes = np.array([[10, 20, 40, 30]], np.float32)
    fractions = normalize_boxes(boxes, (50, 200))  # (height, width)
    np.testing.assert_allclose(fractions, [[0.05, 0.4, 0.2, 0.6]])
    np.testing.assert_allclose(denormalize_boxes(fractions, (50, 200)), boxes)


def test_normalize_boxes_of_each_image():
    boxes, shapes = random_boxes(0, 3, 5), np.array([[10, 20], [30, 40], [50, 60]])
    fractions = normalize_boxes(boxes, shapes)
    for i in range(3):
        np.testing.assert_array_equal(fractions[i], normalize_boxes(boxes[i], shapes[i]))
    np.testing.assert_allclose(denormalize_boxes(fractions, shapes), boxes, rtol=1e-6)


@pytest.mark.parametrize("function", [normalize_boxes, denormalize_boxes])
@pytest.mark.parametrize(
    ("boxes", "shape"), [((3, 4), (3,)), ((3, 5), (2,)), ((5, 4), (3, 2)), ((2, 3, 4), (3, 2))]
)
def test_an_image_shape_that_does_not_fit(function, boxes, shape):
    with pytest.raises(ValueError, match=f"{function.__name__}: an image's shape must be "):
        function(np.ones(boxes, np.float32), np.ones(shape, np.float32))


def test_clip_to_image():
    boxes = np.array([[-5, 3, 30, 90], [1, 2, 3, 4]], np.float32)
    clipped = clip_to_image(boxes, (40, 20))  # (height, width)
    np.testing.assert_array_equal(clipped, [[0, 3, 20, 40], [1, 2, 3, 4]])
    assert clip_to_image(boxes, None) is boxes


@every_function
def test_half_floats_are_computed_in_float32(function):
    check_half_floats(function, 4)


@every_function
def test_values_and_gradients_are_finite(function):
    check_finite(function, 4)
