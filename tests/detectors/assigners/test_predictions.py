"""The assigners that look at predictions: mmdet's cases, and plain loops on random images."""

import functools

import numpy as np
import pytest

from detectors.assigners.assigner_cases import arrays_of, pad
from golden.read_cases import read
from visdet_jax.detectors import TASK_UTILS

RANDOM, RANDOM_CONFIG = read("onestage", "assigners")
EDGE, EDGE_CONFIG = read("onestage", "edge")
CASES = {case["key"]: case for case in RANDOM_CONFIG["cases"]}
EDGES = {case["key"]: case for case in EDGE_CONFIG["cases"]}


@functools.cache
def points_of(sizes, strides, offset):
    """Points (N, 2) and strides (N,)."""
    points, of_level = [], []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = np.mgrid[:height, :width]
        points.append((np.stack([x.ravel(), y.ravel()], 1) + offset) * stride)
        of_level.append(np.full(height * width, stride))
    return np.concatenate(points).astype("f4"), np.concatenate(of_level).astype("f4")


def check(assigner, points, strides, expected, slots):
    boxes, labels = pad(expected["gts"], expected["gt_labels"], slots)
    found = TASK_UTILS.build(assigner).assign_predictions(
        points, strides, expected["bboxes"], expected["scores"], boxes, labels
    )
    np.testing.assert_array_equal(found.gt_inds, expected["gt_inds"])
    np.testing.assert_array_equal(found.labels, expected["labels"])
    np.testing.assert_allclose(found.max_overlaps, expected["max_overlaps"], rtol=1e-5, atol=1e-6)
    if "assign_metrics" in expected:
        np.testing.assert_allclose(found.metrics, scaled(expected), rtol=1e-4, atol=1e-7)
    else:
        np.testing.assert_array_equal(found.metrics, np.where(found.gt_inds > 0, found[2], 0))


def scaled(expected):
    """What TOOD's head makes of the metrics: of each box's positives, its largest is its IoU."""
    gt_inds, metrics = expected["gt_inds"], np.zeros(len(expected["gt_inds"]))
    for number in np.unique(gt_inds[gt_inds > 0]):
        own = gt_inds == number
        raw = expected["assign_metrics"][own].astype("f8")
        metrics[own] = raw / (raw.max() + 1e-7) * expected["max_overlaps"][own].max()
    return metrics


@pytest.mark.one_in(8)
@pytest.mark.parametrize("key", CASES)
def test_random_cases_of_mmdet(key, form):
    case = CASES[key]
    sizes = tuple(tuple(size) for size in case["featmap_sizes"])
    points, strides = points_of(sizes, tuple(case["strides"]), case["offset"])
    check(case["assigner"], points, strides, arrays_of(RANDOM, key), 22)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("key", EDGES)
def test_edge_cases_of_mmdet(key, form):
    expected = arrays_of(EDGE, key)
    priors = expected["priors"]
    points, strides = priors[:, :2], priors[:, 2]
    if "TaskAligned" in EDGES[key]["assigner"]["type"]:  # Anchors as x1, y1, x2, y2.
        points = (priors[:, :2] + priors[:, 2:]) / 2
    check(EDGES[key]["assigner"], points, strides, expected, 8)
