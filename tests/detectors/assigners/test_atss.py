"""Ground truth by what stands out among the nearest: mmdet's cases, a plain loop, its program."""

import numpy as np
import pytest

from detectors.assigners.assigner_cases import (
    IMAGES,
    LEVEL_SIZES,
    assert_equals_loop,
    check_edge_case,
    check_random_case,
    edge_keys,
    iou,
    random_image,
    random_keys,
)
from visdet_jax.detectors import TASK_UTILS, AnchorGenerator, ATSSAssigner, atss_assign


@pytest.mark.one_in(8)
@pytest.mark.parametrize("key", random_keys("atss"))
def test_random_cases_of_mmdet(key):
    check_random_case(key)


@pytest.mark.one_in(12)
@pytest.mark.parametrize("key", edge_keys("atss"))
def test_edge_cases_of_mmdet(key, form):
    check_edge_case(key)


def loop_atss(priors, boxes, real, valid, topk):
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    gt_inds = np.where(valid, 0, -2)
    owner = {}
    for g in real:
        middle = (boxes[g, :2] + boxes[g, 2:]) / 2
        candidates, start = [], 0
        for size in LEVEL_SIZES:
            level = [n for n in range(start, start + size) if valid[n]]
            level.sort(key=lambda n: np.hypot(*(centers[n] - middle)))
            candidates += level[:topk]
            start += size
        if len(candidates) < 2:
            continue
        overlaps = np.array([iou(boxes[g], priors[n]) for n in candidates])
        threshold = overlaps.mean() + overlaps.std(ddof=1)
        decided = np.abs(overlaps - threshold) > 1e-9
        assert (decided | (overlaps == 0)).all(), "data on which rounding decides"
        for n, overlap in zip(candidates, overlaps, strict=True):
            x, y = centers[n]
            x1, y1, x2, y2 = boxes[g]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if overlap >= threshold and inside and overlap > owner.get(n, -1):
                owner[n], gt_inds[n] = overlap, 1 + g
    return gt_inds


@pytest.mark.one_in(5)
@pytest.mark.parametrize("topk", [1, 4])
def test_equals_a_plain_loop(topk, x64, form):
    for seed in IMAGES:
        priors, boxes, labels, real, valid = random_image(seed)
        found = atss_assign(priors, boxes, labels, valid, level_sizes=LEVEL_SIZES, topk=topk)
        expected = loop_atss(priors, boxes, real, valid, topk)
        assert_equals_loop(found, expected, labels, seed)


def test_of_equal_boxes_the_first_wins(form):
    grid = AnchorGenerator(strides=(8,), ratios=(1.0,), scales=(3,)).grid(((6, 6),))
    boxes = np.tile(np.array([[9, 9, 37, 38]], np.float32), (3, 1))
    labels = np.array([-1, 0, 1], np.int32)
    found = atss_assign(grid.priors, boxes, labels, level_sizes=grid.level_sizes)
    assert set(np.asarray(found.gt_inds)) == {0, 2}


BOXES, LABELS = np.zeros((2, 4), np.float32), np.zeros(2, np.int32)


def test_level_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"level_sizes \(1,\) do not add up to 2 priors"):
        atss_assign(BOXES, BOXES, LABELS, level_sizes=(1,))


@pytest.mark.parametrize("topk", [0, -3])
def test_topk_is_a_count(topk):
    with pytest.raises(ValueError, match=f"atss_assign: topk must be at least 1, got {topk}"):
        atss_assign(BOXES, BOXES, LABELS, level_sizes=(2,), topk=topk)
    with pytest.raises(ValueError, match=f"ATSSAssigner: topk must be at least 1, got {topk}"):
        TASK_UTILS.build({"type": "ATSSAssigner", "topk": topk})
    with pytest.raises(TypeError, match="ATSSAssigner: topk must be an integer, got 1"):
        ATSSAssigner(topk=1.5)


def test_regions_to_ignore_raise():
    with pytest.raises(ValueError, match="ATSSAssigner: ignore_iof_thr must be at most 0, got 0"):
        TASK_UTILS.build({"type": "ATSSAssigner", "topk": 9, "ignore_iof_thr": 0.5})


def test_an_assigner_is_its_function():
    priors, boxes, labels, _, valid = random_image(5)
    settings = {"level_sizes": LEVEL_SIZES}
    found = ATSSAssigner(topk=4).assign(priors, boxes, labels, valid, **settings)
    expected = atss_assign(priors, boxes, labels, valid, topk=4, **settings)
    for ours, its in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, its)
