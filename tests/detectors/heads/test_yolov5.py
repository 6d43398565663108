"""YOLOv5Head against a plain loop over boxes; its configs; regions to ignore."""

import collections
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from head_cases import (
    CLASSES,
    IMAGE,
    ROWS,
    SIZES,
    batch_for,
    compiled,
    outputs_for,
    value_and_gradient,
)
from programs import temporary_bytes
from visdet_jax import CrossEntropyLoss, YOLOIoULoss, checked
from visdet_jax.detectors import NMS, HeadOutputs, YOLOAnchorGenerator, YOLOv5Head, build_head

ROW = ROWS["YOLOv5Head"]
STRIDES = (8, 16)
ANCHORS = ROW.config["prior_generator"]["base_sizes"]
WEIGHTS = ROW.config["obj_level_weights"]
LOSSES = {"loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 0.5}}
HEIGHT, WIDTH = IMAGE
# Images by what is special about their boxes; the last number of each row is the class.
IMAGES = {
    "one box": [(10, 6, 34, 28, 1)],
    "none": [],
    "two boxes in one cell that fit the same anchors": [(9, 7, 27, 21, 0), (10, 8, 24, 23, 2)],
    "the same box twice": [(9, 7, 27, 21, 1), (9, 7, 27, 21, 1)],
    "centres between two cells": [(6, 3, 26, 21, 0), (12, 4, 36, 24, 1), (11, 4, 35, 25, 2)],
    "at the borders": [(0, 0, 9, 9, 0), (38, 20, 48, 32, 1), (0, 21, 12, 32, 2), (40, 0, 48, 6, 0)],
    "reaching over the borders": [(-9, -12, 6, 10, 0), (35, 20, 65, 45, 1), (44, 3, 60, 20, 2)],
    "nothing fits": [(0, 0, 48, 1, 0), (5, 5, 5, 5, 1), (30, 20, 10, 8, 2)],
}


def random_images(seed):
    rng = np.random.default_rng(seed)
    for count in (5, 1, 6, 3):
        corner = rng.uniform(0, 30, (count, 2)).round(2)
        sides = rng.uniform(3, 40, (count, 2)).round(2)
        yield [(*c, *(c + s), rng.integers(CLASSES)) for c, s in zip(corner, sides, strict=True)]


def padded(images, rows=7):
    boxes, labels = np.full((len(images), rows, 4), np.nan), np.full((len(images), rows), -1)
    for i, image in enumerate(images):
        for j, (*box, label) in enumerate(image):
            boxes[i, j], labels[i, j] = box, label
    return boxes, labels.astype(np.int32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(x, t):
    return np.maximum(x, 0) - x * t + np.log1p(np.exp(-np.abs(x)))


def ciou(a, b, eps=1e-7):
    """Of boxes x, y, w, h."""
    starts = [sorted((a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)) for i in (0, 1)]
    ends = [sorted((a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2)) for i in (0, 1)]
    inner = math.prod(max(end[0] - start[1], 0) for start, end in zip(starts, ends, strict=True))
    outer = [end[1] - start[0] for start, end in zip(starts, ends, strict=True)]
    iou = inner / (a[2] * a[3] + b[2] * b[3] - inner + eps)
    distance = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    angles = math.atan(b[2] / (b[3] + eps)) - math.atan(a[2] / (a[3] + eps))
    v = 4 / math.pi**2 * angles**2
    alpha = v / (v - iou + 1 + eps)
    return iou - distance / (outer[0] ** 2 + outer[1] ** 2 + eps) - alpha * v


def learnt_of(box, level, anchor):
    """The cells (column, row) that learn a box by an anchor, as often as mmyolo's code has them."""
    stride, (height, width) = STRIDES[level], SIZES[level]
    x1, y1, x2, y2 = (float(side) / stride for side in box)
    x, y, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    of_anchor = [side / stride for side in ANCHORS[level][anchor]]
    if min(w, h) <= 0:
        return
    if max(w / of_anchor[0], of_anchor[0] / w, h / of_anchor[1], of_anchor[1] / h) >= 4:
        return
    offsets = [(0, 0)]
    offsets += [(0.5, 0)] * (x % 1 < 0.5 and x > 1)
    offsets += [(0, 0.5)] * (y % 1 < 0.5 and y > 1)
    offsets += [(-0.5, 0)] * ((width - x) % 1 < 0.5 and width - x > 1)
    offsets += [(0, -0.5)] * ((height - y) % 1 < 0.5 and height - y > 1)
    for dx, dy in offsets:
        column, row = int(x - dx), int(y - dy)  # Towards 0.
        if 0 <= column < width and 0 <= row < height:
            yield column, row, (x - column, y - row, w, h)


def by_hand(outputs, images, ignored=None):
    """(losses, what is learnt as counts, objectness targets) in NumPy, box after box."""
    batch, losses, found = len(images), collections.Counter(), collections.Counter()
    overlaps = [np.zeros((batch, *size, 2)) for size in SIZES]
    for level, (height, width) in enumerate(SIZES):
        shape = (batch, height, width, 2, -1)
        cls, raw, obj = (x[level].reshape(shape) for x in (outputs[0], outputs[1], outputs[3]))
        learns = np.ones(obj.shape[:-1]) if ignored is None else 1 - ignored[level]
        of_boxes, of_classes = [], []
        for i, image in enumerate(images):
            for j, (*box, label) in enumerate(image):
                for anchor in range(2):
                    for column, row, target in learnt_of(box, level, anchor):
                        at = i, row, column, anchor
                        if not learns[at]:
                            continue
                        p = 2 * sigmoid(raw[at])
                        size = p[2:] ** 2 * ANCHORS[level][anchor] / STRIDES[level]
                        overlap = ciou((*(p[:2] - 0.5), *size), target)
                        overlaps[level][at] = max(overlaps[level][at], overlap)
                        of_boxes.append(1 - overlap)
                        of_classes.append(bce(cls[at], np.eye(CLASSES)[label]).mean())
                        found[level, at, j + 1] += 1
        if of_boxes:
            losses["loss_bbox"] += batch * np.mean(of_boxes)
            losses["loss_cls"] += batch * 0.5 * np.mean(of_classes)
        values = bce(obj[..., 0], overlaps[level]) * learns
        losses["loss_obj"] += batch * WEIGHTS[level] * values.sum() / max(learns.sum(), 1)
    return losses, found, overlaps


def found_in(targets):
    """What `by_hand` counts, of a head's targets."""
    found, candidates = collections.Counter(), targets.candidates
    for i, slot in np.argwhere(np.asarray(candidates.weights) > 0):
        prior, level = candidates.priors[i, slot].item(), 0
        if prior >= 2 * math.prod(SIZES[0]):
            prior, level = prior - 2 * math.prod(SIZES[0]), 1
        cell, anchor = divmod(prior, 2)
        at = (i.item(), *divmod(cell, SIZES[level][1]), anchor)
        found[level, at, candidates.gt_inds[i, slot].item()] += int(candidates.weights[i, slot])
    return found


CASES = {**{name: [image] for name, image in IMAGES.items()}, "all": list(IMAGES.values())}
CASES |= {f"random {seed}": list(random_images(seed)) for seed in range(2)}


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", CASES)
def test_against_a_loop_over_boxes(name, x64):
    images = CASES[name]
    head = ROW.head(**LOSSES)
    outputs = outputs_for(head, len(images), np.float64, seed=len(name))
    boxes, labels = padded(images)
    expected, learnt, overlaps = by_hand(outputs, images)
    losses = head.loss(outputs, boxes, labels)
    targets = head.targets(outputs, boxes, labels)
    assert found_in(targets) == learnt
    for key, value in losses.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-9, err_msg=key)
    flat = np.concatenate([x.reshape(len(images), -1) for x in overlaps], axis=1)
    np.testing.assert_allclose(targets.metrics, flat, rtol=1e-9, atol=1e-12)
    assert_of_the_best(targets, learnt)


def assert_of_the_best(targets, learnt):
    """The rest of the targets is of one of the boxes that a prior learns."""
    boxes = collections.defaultdict(set)
    for level, (i, row, column, anchor), number in learnt:
        cell = row * SIZES[level][1] + column
        prior = 2 * (cell + level * math.prod(SIZES[0])) + anchor
        boxes[i, prior].add(number)
    gt_inds = np.asarray(targets.gt_inds)
    assert {(i, n) for i, n in np.argwhere(gt_inds)} == boxes.keys()
    assert all(gt_inds[at] in numbers for at, numbers in boxes.items())


def test_several_boxes_at_one_prior():
    """All are learnt; the objectness and the dense targets are of the largest overlap."""
    head = ROW.head()
    images = [IMAGES["two boxes in one cell that fit the same anchors"]]
    outputs, (boxes, labels) = outputs_for(head, 1), padded(images, 2)
    boxes = boxes.astype(np.float32)
    both = head.targets(outputs, boxes, labels)
    alone = [
        head.targets(outputs, boxes, np.where(np.arange(2)[None] == i, labels, -1)) for i in (0, 1)
    ]
    counted = [np.count_nonzero(x.candidates.weights) for x in (*alone, both)]
    assert counted[0] + counted[1] == counted[2]
    shared = (alone[0].gt_inds > 0) & (alone[1].gt_inds > 0)
    assert shared.any()
    chex.assert_trees_all_close(
        both.metrics, np.maximum(alone[0].metrics, alone[1].metrics), rtol=1e-6
    )
    first = np.asarray(shared & (alone[0].metrics > alone[1].metrics))
    second = np.asarray(shared & (alone[0].metrics < alone[1].metrics))
    assert first.any()
    assert second.any()
    np.testing.assert_array_equal(both.gt_inds[first], 1)
    np.testing.assert_array_equal(both.labels[first], 0)
    np.testing.assert_array_equal(both.gt_inds[second], 2)
    chex.assert_trees_all_equal(both.bbox_targets[first], alone[0].bbox_targets[first])
    turned = head.loss(outputs, boxes[:, ::-1], labels[:, ::-1])
    chex.assert_trees_all_close(head.loss(outputs, boxes, labels), turned, rtol=1e-6)


@pytest.mark.long
def test_one_class():
    head = ROW.head(num_classes=1)
    outputs, boxes, labels, shapes = batch_for(head)
    losses, gradient = compiled(head)(outputs, boxes, np.minimum(labels, 0), shapes)
    assert losses["loss_cls"] == 0
    assert not any(map(np.any, gradient.cls_scores))
    assert losses["loss_bbox"] > 0


@pytest.mark.long
def test_statistics_are_of_a_level():
    """A level without cells leaves them alone."""
    ghm = {"loss_cls": {"type": "GHMC", "bins": 5, "momentum": 0.75}}
    head = ROW.head(**ghm)
    outputs, (boxes, labels) = (
        outputs_for(head, 1, sizes=((4, 6), (0, 0))),
        padded([IMAGES["one box"]]),
    )
    truth = boxes.astype(np.float32), labels
    generator = {**ROW.config["prior_generator"], "strides": [8], "base_sizes": ANCHORS[:1]}
    other = ROW.head(**ghm, prior_generator=generator, obj_level_weights=WEIGHTS[:1])
    without = HeadOutputs(*(maps and maps[:1] for maps in outputs))
    losses, state = head.update(head.init(), outputs, *truth)
    assert state["loss_cls"].acc_sum.any()
    expected = other.update(other.init(), without, *truth)
    chex.assert_trees_all_close((losses, state), expected, rtol=1e-6)


def test_neighbours_that_are_nearer():
    """At most the cell itself, where the threshold is 0."""
    head = ROW.head(near_neighbor_thr=0.0)
    batch = batch_for(head)
    weights = np.asarray(head.targets(*batch).candidates.weights).reshape(-1, 3)
    assert weights[:, 0].any()
    assert not weights[:, 1:].any()
    most = np.asarray(ROW.head().targets(*batch).candidates.weights).reshape(-1, 3)
    np.testing.assert_array_equal(most[:, 0], weights[:, 0])
    assert most[:, 1:].any()


@pytest.mark.long
@pytest.mark.parametrize("field", ["prior_match_thr", "near_neighbor_thr"])
def test_thresholds_may_be_traced(field):
    batch = batch_for(ROW.head())
    values = {"prior_match_thr": [1.2, 4.0], "near_neighbor_thr": [0.1, 0.5]}[field]

    def loss(value):
        return ROW.head(**{field: value}).loss(*batch)

    swept = jax.jit(jax.vmap(loss))(np.array(values, np.float32))
    for i, value in enumerate(values):
        alone = ROW.head(**{field: value}).loss(*batch)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], swept), alone, rtol=1e-5)


# Regions to ignore.


def ignored_by_hand(head, images):
    """Which priors (B, H, W, A) of each level a region covers by more than a half."""
    grid = head.grid(SIZES, np.float64)
    covered = np.zeros((len(images), len(grid.priors)))
    for i, image in enumerate(images):
        for n, (x1, y1, x2, y2) in enumerate(grid.priors):
            for a1, b1, a2, b2, _ in image:
                inner = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
                covered[i, n] += inner / ((x2 - x1) * (y2 - y1)) > 0.5
    parts = np.split(covered, [2 * math.prod(SIZES[0])], axis=1)
    return [x.reshape(len(images), *size, 2) for x, size in zip(parts, SIZES, strict=True)]


# Many of the random boxes reach beyond their images, of which `checked` warns.
@pytest.mark.filterwarnings("ignore:YOLOv5Head. more than a quarter of gt_boxes")
@pytest.mark.long
def test_regions_to_ignore(x64):
    head = ROW.head(**LOSSES, ignore_iof_thr=0.5)
    images, regions = list(random_images(7)), [[(0, 0, 20, 24, 0)], [], [(20, 4, 47, 31, 2)], []]
    outputs = outputs_for(head, 4, np.float64)
    boxes, labels = padded([a + b for a, b in zip(regions, images, strict=True)])
    flags = np.zeros(labels.shape, bool)
    flags[[0, 2], 0] = True
    flags[3, -1] = True  # Of padding.
    ignored = ignored_by_hand(head, regions)
    expected, learnt, _ = by_hand(outputs, images, ignored)
    losses = head.loss(outputs, boxes, labels, ignore_flags=flags)
    for key, value in losses.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-9, err_msg=key)
    targets = head.targets(outputs, boxes, labels, ignore_flags=flags)
    assert learnt.total() == found_in(targets).total()
    flat = np.concatenate([x.reshape(4, -1) for x in ignored], axis=1)
    np.testing.assert_array_equal(targets.gt_inds == -1, flat)
    np.testing.assert_array_equal(targets.label_weights, 1 - flat)
    again = checked(head).loss(outputs, boxes, labels, ignore_flags=flags)
    chex.assert_trees_all_close(again, losses, rtol=1e-12)


@pytest.mark.long
def test_flags_without_a_region_change_nothing():
    head = ROW.head(ignore_iof_thr=0.5)
    outputs, boxes, labels, _ = batch_for(head)
    flags = labels < 0
    expected = head.loss(outputs, boxes, labels)
    chex.assert_trees_all_close(head.loss(outputs, boxes, labels, ignore_flags=flags), expected)
    nothing = (outputs, boxes[:, :0], labels[:, :0])
    expected = head.loss(*nothing)
    actual = head.loss(*nothing, ignore_flags=flags[:, :0])
    chex.assert_trees_all_close(actual, expected)


@pytest.mark.parametrize(
    ("thr", "flags", "message"),
    [
        (-1.0, np.zeros((2, 4), bool), "ignore_flags need an ignore_iof_thr in [0, 1]"),
        (0.5, np.zeros((2, 3), bool), "ignore_flags must have shape (2, 4), got (2, 3)"),
    ],
)
def test_flags_that_do_not_fit(thr, flags, message):
    head = ROW.head(ignore_iof_thr=thr)
    outputs, boxes, labels, _ = batch_for(head)
    with pytest.raises(ValueError, match=re.escape(f"YOLOv5Head: {message}")):
        head.loss(outputs, boxes, labels, ignore_flags=flags)


# Configs.

CONFIG = {
    "type": "mmyolo.YOLOv5Head",
    "head_module": {
        "type": "YOLOv5HeadModule",
        "num_classes": 7,
        "in_channels": [256, 512],
        "widen_factor": 0.5,
        "featmap_strides": [8, 16],
        "num_base_priors": 1,
    },
    "prior_generator": {
        "type": "mmdet.YOLOAnchorGenerator",
        "base_sizes": [[[10, 13]], [[30, 61]]],
        "strides": [8, 16],
    },
    "loss_bbox": {"type": "IoULoss", "eps": 1e-6, "reduction": "mean", "loss_weight": 0.05},
    "obj_level_weights": [4.0, 1.0],
}


def test_a_config_of_mmyolo():
    testing = {"multi_label": False, "nms": {"type": "nms", "iou_threshold": 0.6}, "nms_pre": 9}
    head = build_head(CONFIG, None, testing)
    assert head.num_classes == 7
    assert head.prior_generator == YOLOAnchorGenerator(
        strides=(8, 16), base_sizes=(((10, 13),), ((30, 61),))
    )
    assert head.loss_bbox == YOLOIoULoss(eps=1e-6, loss_weight=0.05)
    assert head.test_cfg.nms == NMS(iou_threshold=0.6)
    assert head.test_cfg.multi_label is False
    assert head.loss_cls == CrossEntropyLoss(use_sigmoid=True, loss_weight=0.5)
    short = build_head({"type": "YOLOv5Head", "head_module": {"num_classes": 80}})
    assert short == YOLOv5Head(num_classes=80)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_module": {"featmap_strides": [8, 32]}}, "head_module has featmap_strides [8, 32]"),
        ({"head_module": {"num_base_priors": 3}}, "3 num_base_priors, and prior_generator"),
        ({"num_classes": 3}, "num_classes stands in the head's config and in its head_module"),
        ({"obj_level_weights": [1.0]}, "2 levels need as many obj_level_weights"),
        ({"obj_level_weights": [1.0, -1.0]}, "obj_level_weights must be at least 0"),
        ({"ignore_iof_thr": -0.5}, "ignore_iof_thr must be in [0, 1], or -1, got -0.5"),
        ({"prior_match_thr": 1.0}, "prior_match_thr must be above 1"),
        ({"near_neighbor_thr": 0.6}, "near_neighbor_thr must be in [0, 0.5]"),
        ({"loss_bbox": {"type": "mmdet.IoULoss"}}, "loss_bbox must be YOLOIoULoss, got IoULoss"),
        ({"loss_bbox": {"type": "IoULoss", "bbox_format": "xyxy"}}, 'need bbox_format="xywh"'),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, "loss_cls must use a sigmoid"),
        ({"prior_generator": {"type": "YOLOAnchorGenerator"}}, "needs a key 'strides'"),
        ({"bbox_coder": {"type": "YOLOv5BBoxCoder"}}, "YOLOv5Head has no key 'bbox_coder'"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_head({**CONFIG, **changes})


# Memory.


def test_the_rows_of_candidates_are_all_that_is_copied():
    """Nothing of the size of priors times boxes, nor a copy of the class scores."""
    head = ROW.head(num_classes=200)
    outputs = outputs_for(head, sizes=((32, 48), (16, 24)))
    boxes, labels = padded(list(random_images(3))[:2])
    used = temporary_bytes(head.loss, outputs, boxes.astype(np.float32), labels)
    assert used < outputs.cls_scores[0].nbytes


def test_half_floats_are_never_one_more_array_of_all_class_scores():
    """Neither they nor their gradient, which accelerators would keep in float32."""
    head = ROW.head(num_classes=200)
    outputs = outputs_for(head, dtype=jnp.bfloat16)
    boxes, labels = padded(list(random_images(3))[:2])
    program = jax.make_jaxpr(value_and_gradient(head))(outputs, boxes.astype(np.float32), labels)
    assert "bf16[2,48,200]" in str(program)
    assert "f32[2,48,200]" not in str(program).replace("bf16", "")
