"""Ground truth by the smallest box around a point: mmdet's cases, a plain loop, labels, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detectors.assigners.assigner_cases import (
    EDGE,
    EDGE_CONFIG,
    IMAGES,
    RANDOM,
    RANDOM_CONFIG,
    area,
    arrays_of,
    assert_equals_loop,
    edge_keys,
    features,
    pad,
    random_image,
    random_keys,
)
from visdet_jax.detectors import MlvlPointGenerator, fcos_assign


@pytest.mark.parametrize("key", random_keys("fcos"))
def test_random_cases_of_mmdet(key):
    case, expected = RANDOM_CONFIG["cases"][key], arrays_of(RANDOM, key)
    grid = MlvlPointGenerator(strides=tuple(case["strides"])).grid(features(case, key))
    found = assign_points(
        case, grid.priors, grid.level_sizes, expected["gts"], expected["gt_labels"], 22
    )
    labels = np.where(found.gt_inds > 0, found.labels, case["num_classes"])
    np.testing.assert_array_equal(labels, expected["labels"])
    np.testing.assert_array_equal(np.flatnonzero(found.gt_inds > 0), expected["pos_index"])
    chosen = expected["gts"][np.asarray(found.gt_inds)[expected["pos_index"]] - 1]
    at = grid.priors[expected["pos_index"]]
    distances = np.concatenate([at - chosen[:, :2], chosen[:, 2:] - at], axis=1)
    if case["norm_on_bbox"]:
        distances /= grid.strides[expected["pos_index"], None]
    np.testing.assert_allclose(distances, expected["pos_bbox_targets"], rtol=1e-4, atol=1e-5)


def assign_points(case, points, sizes, boxes, labels, count):
    return fcos_assign(
        points,
        *pad(boxes, labels, count),
        strides=np.repeat(np.asarray(case["strides"], points.dtype), sizes),
        regress_ranges=np.repeat(np.asarray(case["regress_ranges"], points.dtype), sizes, axis=0),
        center_sampling=case["center_sampling"],
        center_sample_radius=case["center_sample_radius"],
    )


@pytest.mark.parametrize("key", edge_keys("fcos"))
def test_edge_cases_of_mmdet(key, form):
    case, expected = EDGE_CONFIG["cases"][key], arrays_of(EDGE, key)
    points = expected["points"].astype(np.float32)
    found = assign_points(
        case, points, case["num_points"], expected["gts"], expected["gt_labels"], 4
    )
    positive = np.asarray(found.gt_inds) > 0
    labels = np.where(positive, found.labels, case["num_classes"])
    np.testing.assert_array_equal(labels, expected["out_labels"])
    chosen = expected["gts"][np.asarray(found.gt_inds)[positive] - 1]
    distances = np.concatenate(
        [points[positive] - chosen[:, :2], chosen[:, 2:] - points[positive]], 1
    )
    np.testing.assert_array_equal(distances, expected["out_bbox_targets"][positive])


def loop_fcos(points, boxes, real, strides, ranges, radius):
    gt_inds = np.zeros(len(points), int)
    for n, (x, y) in enumerate(points):
        smallest = np.inf
        for g in real:
            x1, y1, x2, y2 = boxes[g]
            sides = x - x1, y - y1, x2 - x, y2 - y
            inside = min(sides) > 0
            if radius is not None:
                from_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                inside = inside and from_center < radius * strides[n]
            of_size = ranges[n][0] <= max(sides) <= ranges[n][1]
            if inside and of_size and area(boxes[g]) < smallest:
                smallest, gt_inds[n] = area(boxes[g]), 1 + g
    return gt_inds


@pytest.mark.one_in(4)
@pytest.mark.parametrize("radius", [None, 1.5])
def test_equals_a_plain_loop(radius, x64, form):
    grid = MlvlPointGenerator(strides=(8, 16)).grid(((10, 12), (5, 6)), np.float64)
    ranges = np.repeat([[-1.0, 32], [32, 1e8]], grid.level_sizes, axis=0)
    sampling = {} if radius is None else {"center_sampling": True, "center_sample_radius": radius}
    for seed in IMAGES:
        _, boxes, labels, real, _ = random_image(seed)
        found = fcos_assign(
            grid.priors, boxes, labels, strides=grid.strides, regress_ranges=ranges, **sampling
        )
        expected = loop_fcos(grid.priors, boxes, real, grid.strides, ranges, radius)
        assert_equals_loop(found, expected, labels, seed)


POINTS = MlvlPointGenerator(strides=(8,)).grid(((6, 6),))
LEVEL = {
    "strides": POINTS.strides,
    "regress_ranges": np.tile(np.array([[-1, 99]], np.float32), (36, 1)),
}
BOXES = np.array([[9, 9, 37, 38], [9, 9, 37, 38], [1, 1, 22, 22]], np.float32)
LABELS = np.array([0, 1, 2], np.int32)


def test_of_equal_boxes_the_first_wins(form):
    boxes = np.tile(BOXES[:1], (3, 1))
    found = fcos_assign(POINTS.priors, boxes, np.array([-1, 0, 1], np.int32), **LEVEL)
    assert set(np.asarray(found.gt_inds)) == {0, 2}


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16])
def test_labels_of_every_integer_type_give_what_int32_gives(dtype):
    labels = np.array([0, 100, 127], np.int32)
    expected = fcos_assign(POINTS.priors, BOXES, labels, **LEVEL)
    assert set(np.asarray(expected.labels)) == {-1, 0, 127}
    found = fcos_assign(POINTS.priors, BOXES, labels.astype(dtype), **LEVEL)
    for ours, its in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert ours.dtype == its.dtype
        np.testing.assert_array_equal(ours, its)


@pytest.mark.long
def test_jit_equals_eager_and_vmap_the_loop():
    def assign(radius, boxes):
        return fcos_assign(
            POINTS.priors,
            boxes,
            LABELS,
            **LEVEL,
            center_sampling=True,
            center_sample_radius=radius,
        ).gt_inds

    radii, boxes = jnp.array([0.5, 1.0, 3.0]), np.stack([BOXES, BOXES + 3, BOXES - 2])
    swept = np.asarray(jax.vmap(assign)(radii, boxes))
    assert ((swept > 0).sum(1) == [2, 7, 12]).all()
    for i in range(3):
        np.testing.assert_array_equal(swept[i], assign(float(radii[i]), boxes[i]))
        with jax.disable_jit():
            np.testing.assert_array_equal(swept[i], assign(radii[i], boxes[i]))


@pytest.mark.parametrize("radius", [0.0, -1.0, float("inf")])
def test_a_radius_is_above_0(radius):
    with pytest.raises(ValueError, match="fcos_assign: center_sample_radius must be above 0"):
        fcos_assign(POINTS.priors, BOXES, LABELS, **LEVEL, center_sample_radius=radius)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"points": np.zeros((36, 4), np.float32)}, ValueError, r"points must have shape \(N, 2\)"),
        ({"points": [[0, 0]]}, TypeError, "points must be an array, got list"),
        ({"gt_boxes": BOXES[:2]}, ValueError, r"gt_labels must have shape \(2,\), got \(3,\)"),
        ({"gt_labels": LABELS * 1.0}, TypeError, "gt_labels must hold integer class indices"),
        ({"strides": POINTS.strides[:1]}, ValueError, r"strides must have shape \(36,\), got \(1,"),
        ({"strides": [8.0] * 36}, TypeError, "strides must be an array, got list"),
        (
            {"regress_ranges": LEVEL["regress_ranges"][:1]},
            ValueError,
            r"regress_ranges must have shape \(36, 2\), got \(1, 2\)",
        ),
    ],
)
def test_errors(changes, error, message):
    arguments = {"points": POINTS.priors, "gt_boxes": BOXES, "gt_labels": LABELS, **LEVEL}
    with pytest.raises(error, match=f"fcos_assign: {message}"):
        fcos_assign(**{**arguments, **changes})


def test_the_areas_are_found_before_the_loop():
    """In it they are a kernel of each of ten trips on a GPU."""

    def gt_inds(boxes):
        labels = np.zeros(len(boxes), np.int32)
        return fcos_assign(POINTS.priors, boxes, labels, **LEVEL).gt_inds

    traced = jax.jit(gt_inds).trace(np.tile(BOXES, (4, 1)))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    (areas,) = (line for line in text.splitlines() if "stablehlo.multiply" in line)
    assert "tensor<12xf32>" in areas  # Of all boxes.
