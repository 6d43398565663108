"""Ground truth by the largest IoU: mmdet's cases, a plain loop, thresholds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detectors.assigners.assigner_cases import (
    IMAGES,
    assert_equals_loop,
    check_edge_case,
    check_random_case,
    edge_keys,
    iou,
    random_image,
    random_keys,
)
from visdet_jax.detectors import TASK_UTILS, AnchorGenerator, MaxIoUAssigner, max_iou_assign


@pytest.mark.one_in(5)
@pytest.mark.parametrize("key", random_keys("maxiou"))
def test_random_cases_of_mmdet(key):
    check_random_case(key)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("key", edge_keys("maxiou"))
def test_edge_cases_of_mmdet(key, form):
    check_edge_case(key)


def loop_max_iou(priors, boxes, real, valid, low, high, positive, least, every, low_quality):
    kept = np.flatnonzero(valid)
    gt_inds = np.where(valid, -1, -2)
    table = {(g, n): iou(boxes[g], priors[n]) for g in real for n in kept}
    if not len(real):
        gt_inds[kept] = 0
        return gt_inds
    for n in kept:
        best = max(table[g, n] for g in real)
        if low <= best < high:
            gt_inds[n] = 0
        if best >= positive:
            gt_inds[n] = 1 + next(g for g in real if table[g, n] == best)
    for g in real if low_quality and len(kept) else ():
        best = max(table[g, n] for n in kept)
        if best >= least:
            takes = [n for n in kept if table[g, n] == best]
            gt_inds[takes if every else takes[:1]] = 1 + g
    return gt_inds


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    ("low", "high", "positive", "least", "every", "low_quality"),
    [
        (0.0, 0.4, 0.5, 0.0, True, True),
        (0.0, 0.3, 0.7, 0.3, True, True),
        (0.1, 0.3, 0.5, 0.2, True, True),
        (0.0, 0.4, 0.5, 0.0, False, True),
        (0.0, 0.5, 0.5, 0.5, True, False),
    ],
)
def test_equals_a_plain_loop(low, high, positive, least, every, low_quality, x64, form):
    for seed in IMAGES:
        priors, boxes, labels, real, valid = random_image(seed)
        found = max_iou_assign(
            priors,
            boxes,
            labels,
            valid,
            pos_iou_thr=positive,
            neg_iou_thr=(low, high),
            min_pos_iou=least,
            gt_max_assign_all=every,
            match_low_quality=low_quality,
        )
        settings = low, high, positive, least, every, low_quality
        expected = loop_max_iou(priors, boxes, real, valid, *settings)
        assert_equals_loop(found, expected, labels, seed)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("transform", [lambda f: lambda *args: [*map(f, *args)], jax.vmap])
def test_small_boxes_in_float32_get_a_prior(transform, form):
    """A box's best IoU is compared with IoUs computed in the same way, whatever XLA fuses.

    Which of several best priors a small box gets is a matter of rounding, but one it must get.
    """
    generator = AnchorGenerator(
        strides=(8, 16, 32), ratios=(0.5, 1.0, 2.0), octave_base_scale=4, scales_per_octave=3
    )
    priors = generator.grid(((12, 16), (6, 8), (3, 4))).priors
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 96, (60, 6, 2)), rng.uniform(6, 30, (60, 6, 2))
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    labels = np.where(np.arange(6) <= np.arange(60)[:, None] % 6, 1, -1).astype(np.int32)

    # With LLVM's optimizations, as users have them.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def assign(*image):
        return max_iou_assign(priors, *image).gt_inds

    all_inds = np.asarray(transform(assign)(boxes, labels))
    for image, gt_inds in enumerate(all_inds):
        for g in np.flatnonzero(labels[image] >= 0):
            overlaps = np.array([iou(boxes[image, g], prior) for prior in priors])
            assert overlaps.max() > 0
            best = gt_inds[overlaps > overlaps.max() - 1e-5]
            assert (best > g).any(), "none is the box's own, or was taken by a later box"


def test_of_equal_boxes_the_first_wins_but_by_low_quality_the_last(form):
    grid = AnchorGenerator(strides=(8,), ratios=(1.0,), scales=(3,)).grid(((6, 6),))
    boxes = np.tile(np.array([[9, 9, 37, 38]], np.float32), (3, 1))
    labels = np.array([-1, 0, 1], np.int32)
    found = max_iou_assign(grid.priors, boxes, labels, match_low_quality=False, pos_iou_thr=0.3)
    assert set(np.asarray(found.gt_inds)) - {-1, 0} == {2}
    found = max_iou_assign(grid.priors, boxes, labels)
    assert 3 in found.gt_inds
    assert found.gt_inds[found.max_overlaps.argmax()] == 3


def ious_without_fused_operations(boxes, priors):
    """The IoU (G, N) in the arrays' own type, every operation rounded, as in mmdet."""
    x1, y1, x2, y2 = boxes.T[:, :, None]
    px1, py1, px2, py2 = priors.T[:, None]
    width = np.maximum(np.minimum(x2, px2) - np.maximum(x1, px1), 0)
    height = np.maximum(np.minimum(y2, py2) - np.maximum(y1, py1), 0)
    overlap = width * height
    union = (x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - overlap
    return overlap / np.maximum(union, np.float32(1e-6))


def arrays_max_iou(priors, boxes, labels, valid):
    """RetinaNet's assignment of one image in NumPy, in float32."""
    table = np.where(
        (labels >= 0)[:, None] & valid, ious_without_fused_operations(boxes, priors), -1
    )
    largest = table.max(0)
    gt_inds = np.where(largest >= np.float32(0.5), 1 + table.argmax(0), -1)
    gt_inds[(largest >= 0) & (largest < np.float32(0.4))] = 0
    for g in np.flatnonzero(labels >= 0):
        if table[g].max() >= 0:
            gt_inds[table[g] == table[g].max()] = 1 + g
    if not (labels >= 0).any():
        gt_inds[:] = 0
    gt_inds[~valid] = -2
    return gt_inds


def difficult_boxes(count):
    """Images of so many boxes: small, equal, as large as anchors, far away, some or all padding."""
    rng = np.random.default_rng(count)
    for kind in ("small", "equal", "anchors", "far", "some padding", "all padding"):
        corner, size = rng.uniform(0, 96, (count, 2)), rng.uniform(3, 40, (count, 2))
        boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
        labels = np.zeros(count, np.int32)
        if kind == "equal":
            boxes[:] = boxes[0]
        if kind == "anchors":
            boxes = ANCHORS[rng.integers(len(ANCHORS), size=count)]
        if kind == "far":
            boxes[rng.random(count) < 0.5] += 1000
        if "padding" in kind:
            padding = rng.random(count) < 0.5 if kind == "some padding" else slice(None)
            labels[padding] = -1
        yield boxes, labels


ANCHORS = (
    AnchorGenerator(
        strides=(8, 16, 32), ratios=(0.5, 1.0, 2.0), octave_base_scale=4, scales_per_octave=3
    )
    .grid(((12, 16), (6, 8), (3, 4)))
    .priors
)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("count", [1, 9, 10, 11, 23])
def test_ties_are_those_of_arithmetic_that_rounds_every_operation(count, form):
    """In float32, bit for bit: which of several best priors a small box gets is mmdet's choice."""
    valid = np.random.default_rng(0).random(len(ANCHORS)) < 0.9

    # With LLVM's optimizations, as users have them.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def assign(boxes, labels):
        return max_iou_assign(ANCHORS, boxes, labels, valid).gt_inds

    images = [*difficult_boxes(count)]
    for boxes, labels in images:
        expected = arrays_max_iou(ANCHORS, boxes, labels, valid)
        np.testing.assert_array_equal(assign(boxes, labels), expected)


PRIORS = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 5, 2]], np.float32)
BOX, LABEL = np.array([[0, 0, 10, 10]], np.float32), np.array([3], np.int32)


def test_each_threshold_has_its_own_effect():
    """The IoUs are 1, 0.8 and 0.1; `min_pos_iou` keeps the best prior from the box."""

    def gt_inds(**thresholds):
        return max_iou_assign(PRIORS, BOX, LABEL, min_pos_iou=1.0, **thresholds).gt_inds.tolist()

    assert gt_inds(pos_iou_thr=0.9, neg_iou_thr=0.5) == [1, -1, 0]
    assert gt_inds(pos_iou_thr=0.7, neg_iou_thr=0.5) == [1, 1, 0]
    assert gt_inds(pos_iou_thr=0.9, neg_iou_thr=0.05) == [1, -1, -1]
    assert gt_inds(pos_iou_thr=0.9, neg_iou_thr=(0.2, 0.85)) == [1, 0, -1]
    far = BOX + np.array([[8, 0, 8, 0]], np.float32)
    for least, expected in ((0.05, [1, 0, 0]), (0.5, [0, 0, 0])):
        assert max_iou_assign(PRIORS, far, LABEL, min_pos_iou=least).gt_inds.tolist() == expected


@pytest.mark.parametrize("name", ["pos_iou_thr", "neg_iou_thr", "min_pos_iou"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_thresholds_are_in_0_to_1(name, value):
    with pytest.raises(ValueError, match=rf"max_iou_assign: {name} must be in \[0, 1\]"):
        max_iou_assign(PRIORS, BOX, LABEL, **{name: value})
    settings = {"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, name: value}
    with pytest.raises(ValueError, match=rf"MaxIoUAssigner: {name} must be in \[0, 1\]"):
        MaxIoUAssigner(**settings)


def test_neg_iou_thr_is_a_number_or_a_pair():
    for bad, message in (
        ((0.1, 0.2, 0.3), "neg_iou_thr must be a number or a pair, got 3 numbers"),
        ((0.1, 1.2), r"neg_iou_thr must be in \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=f"max_iou_assign: {message}"):
            max_iou_assign(PRIORS, BOX, LABEL, neg_iou_thr=bad)
        with pytest.raises(ValueError, match=f"MaxIoUAssigner: {message}"):
            MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=bad)


def test_regions_to_ignore_raise():
    config = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4}
    TASK_UTILS.build({**config, "ignore_iof_thr": 0})
    with pytest.raises(ValueError, match="MaxIoUAssigner: ignore_iof_thr must be at most 0, got 0"):
        TASK_UTILS.build({**config, "ignore_iof_thr": 0.5})


def test_moving_equal_boxes_apart_raises():
    config = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4}
    TASK_UTILS.build({**config, "perm_repeat_gt_cfg": None})
    with pytest.raises(ValueError, match="MaxIoUAssigner: perm_repeat_gt_cfg must be None: equal"):
        TASK_UTILS.build({**config, "perm_repeat_gt_cfg": {"iou_thr": 0.7, "perm_range": 0.01}})


def test_an_assigner_is_its_function():
    assigner = MaxIoUAssigner(
        pos_iou_thr=0.75,
        neg_iou_thr=0.2,
        min_pos_iou=0.9,
        gt_max_assign_all=False,
        match_low_quality=False,
    )
    found = assigner.assign(PRIORS, BOX, LABEL, jnp.array([True, True, False]), level_sizes=(3,))
    expected = max_iou_assign(
        PRIORS,
        BOX,
        LABEL,
        jnp.array([True, True, False]),
        pos_iou_thr=0.75,
        neg_iou_thr=0.2,
        min_pos_iou=0.9,
        gt_max_assign_all=False,
        match_low_quality=False,
    )
    for ours, its in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, its)
