"""Boxes: overlaps against a slow loop, formats, coders."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax import bbox_overlaps
from visdet_jax.boxes import (
    bbox2delta,
    bbox2distance,
    centerness_target,
    convert_boxes,
    delta2bbox,
    denormalize_boxes,
    distance2bbox,
    integral,
    normalize_boxes,
)


def random_boxes(seed, *shape):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (*shape, 2)), rng.uniform(1, 50, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def slow_overlap(a, b, mode):
    """Of two boxes, in Python."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    overlap = width * height
    union = sum(areas) - overlap
    if mode == "iof":
        return overlap / areas[0]
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return overlap / union - (0 if mode == "iou" else (hull - union) / hull)


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
        ((3, 5), (3, 4), {}, "boxes must have shape"),
        ((4,), (3, 4), {}, "boxes must have shape"),
        ((3, 4), (2, 4), {"is_aligned": True}, "aligned boxes must have the same shape"),
        ((2, 3, 4), (3, 3, 4), {}, "boxes must have the same leading axes"),
    ],
)
def test_errors(first, second, options, message):
    with pytest.raises(ValueError, match=f"bbox_overlaps: {message}"):
        bbox_overlaps(np.zeros(first, np.float32), np.zeros(second, np.float32), **options)


FORMATS = {
    "xyxy": [[10.0, 20, 40, 30], [-5, 0, 5, 8]],
    "xywh": [[10.0, 20, 30, 10], [-5, 0, 10, 8]],
    "cxcywh": [[25.0, 25, 30, 10], [0, 4, 10, 8]],
}


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


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: convert_boxes(x, "xyxy", "yxyx"),
            "convert_boxes: target must be one of xyxy, xywh, cxcywh; got 'yxyx'",
        ),
        (lambda x: convert_boxes(x, "whxy"), "convert_boxes: source must be one of xyxy"),
        (lambda x: convert_boxes(x[:, :3]), r"convert_boxes: boxes must have shape \(..., 4\)"),
        (lambda x: bbox2distance(x, x), r"bbox2distance: points must have shape \(..., 2\)"),
        (lambda x: distance2bbox(x, x), r"distance2bbox: points must have shape \(..., 2\)"),
        (lambda x: delta2bbox(x, x[:, :2]), r"delta2bbox: deltas must have shape \(..., 4\)"),
        (lambda x: bbox2delta(x, x[:, :2]), r"boxes must have shape \(..., 4\), got \(3, 2\)"),
        (lambda x: centerness_target(x[:, :2]), r"centerness_target: distances must have shape"),
        (lambda x: delta2bbox(x, x, max_shape=(1, 2, 3)), "delta2bbox: an image's shape must be"),
    ],
)
def test_errors_of_formats_and_coders(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 4), np.float32))


# Each with arguments of two or four columns.
CODERS = {
    "convert_boxes": (convert_boxes, 4),
    "normalize_boxes": (lambda x: normalize_boxes(x, (300, 200)), 4),
    "bbox2delta": (bbox2delta, 4, 4),
    "delta2bbox": (delta2bbox, 4, 4),
    "bbox2distance": (lambda *args: bbox2distance(*args, max_dis=16), 2, 4),
    "distance2bbox": (lambda *args: distance2bbox(*args, max_shape=(40, 40)), 2, 4),
    "integral": (integral, 4),
    "centerness_target": (centerness_target, 4),
}
every_coder = pytest.mark.parametrize("name", CODERS)


@every_coder
def test_coders_compute_half_floats_in_float32(name):
    function, *columns = CODERS[name]
    half = [jnp.asarray(random_boxes(i, 6)[:, :n], jnp.bfloat16) for i, n in enumerate(columns)]
    out = function(*half)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, function(*[x.astype(jnp.float32) for x in half]))
    gradients = jax.jit(jax.grad(lambda args: function(*args).sum()))(half)
    assert [x.dtype for x in gradients] == [jnp.bfloat16] * len(half)


@every_coder
def test_coders_and_their_gradients_are_finite(name):
    function, *columns = CODERS[name]
    odd = np.array(
        [
            [0, 0, 0, 0],
            [5, 5, 5, 5],
            [5, 5, 5, 9],
            [9, 9, 1, 1],
            [0, 3, 1, 1],
            [-1e4, -1e4, 1e4, 1e4],
            [3, 3, 3 + 1e-4, 3 + 1e-4],
        ],
        np.float32,
    )
    first, second = (np.stack(x) for x in zip(*itertools.product(odd, repeat=2), strict=True))
    args = [x[:, :n] for x, n in zip((first, second), columns, strict=False)]
    value, gradients = jax.jit(jax.value_and_grad(lambda args: function(*args).sum()))(args)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in gradients)


def test_the_mean_of_a_distribution():
    sharp = 100 * np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(integral(sharp), np.arange(5))
    np.testing.assert_allclose(integral(np.zeros((2, 3, 5), np.float32)), np.full((2, 3), 2.0))


def test_centerness():
    distances = np.array([[3, 3, 3, 3], [1, 2, 4, 2], [0, 1, 1, 1], [-1, 1, 2, 1]], np.float32)
    np.testing.assert_allclose(centerness_target(distances), [1, 0.5, 0, 0])


def test_distances_are_clipped_for_a_distribution():
    point, box = np.array([[5, 5]], np.float32), np.array([[6, 0, 30, 10]], np.float32)
    np.testing.assert_allclose(bbox2distance(point, box), [[-1, 5, 25, 5]])
    np.testing.assert_allclose(bbox2distance(point, box, max_dis=16), [[0, 5, 15.9, 5]])


def test_deltas_of_a_box_by_hand():
    prior, box = np.array([[0, 0, 10, 20]], np.float32), np.array([[5, 0, 25, 20]], np.float32)
    np.testing.assert_allclose(bbox2delta(prior, box), [[1, 0, np.log(2), 0]], atol=1e-7)
    scaled = bbox2delta(prior, box, means=(0.5, 0.0, 0.0, 0.0), stds=(0.1, 1.0, 0.2, 1.0))
    np.testing.assert_allclose(scaled, [[5, 0, 5 * np.log(2), 0]], atol=1e-6)
    back = delta2bbox(prior, scaled, means=(0.5, 0.0, 0.0, 0.0), stds=(0.1, 1.0, 0.2, 1.0))
    np.testing.assert_allclose(back, box, atol=1e-5)


def test_sides_change_by_a_bounded_factor():
    prior, far = np.array([[0, 0, 16, 16]], np.float32), np.full((1, 4), 9, np.float32)
    wide = delta2bbox(prior, far)
    np.testing.assert_allclose(wide[0, 2:] - wide[0, :2], 1000, rtol=1e-5)
    near = delta2bbox(prior, far, add_ctr_clamp=True, ctr_clamp=4)
    np.testing.assert_allclose(convert_boxes(near)[0, :2], 12, rtol=1e-5)
    assert (delta2bbox(prior, -far)[0, 2:] > delta2bbox(prior, -far)[0, :2]).all()
