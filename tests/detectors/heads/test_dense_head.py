"""The laws of the heads on priors: levels, outputs, decoding, statistics, memory."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import as_long, few
from head_cases import (
    FEW,
    IMAGE,
    ROWS,
    batch_for,
    boxes_for,
    compiled,
    outputs_for,
    shapes_for,
    value_and_gradient,
)
from programs import compiled as program
from programs import temporary_bytes
from visdet_jax import build_loss
from visdet_jax.detectors import HEADS, AnchorHead, DenseHead, HeadOutputs
from visdet_jax.detectors.assigners.predictions import PredictionAssigner

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)
every_head = pytest.mark.parametrize("name", few(ROWS, FEW))


# Heads whose assigner looks at the class scores too.
BY_SCORES = ("YOLOXHead", "TOODHead")


@pytest.mark.parametrize("name", few([name for name in ROWS if name not in BY_SCORES], FEW))
def test_a_box_loss_is_of_the_boxes_alone(name):
    """Another label, and more padding, leave the box loss and the box gradient as they are."""
    head = ROWS[name].head()
    outputs, boxes, labels, shapes = batch_for(head, (1, 0))
    labels[0, 0] = 0
    if hasattr(head, "assigner") and isinstance(head.assigner, PredictionAssigner):
        pytest.skip("the label says which predictions learn the box")
    losses, gradient = compiled(head)(outputs, boxes, labels, shapes)
    again, other = compiled(head)(outputs, boxes, np.where(labels >= 0, 2, -7), shapes)
    of_classes, of_boxes = (ROWS[name].key(loss) for loss in ("loss_cls", "loss_bbox"))
    # An RPN has one class of objects.
    assert (losses[of_classes] == again[of_classes]) == (not ROWS[name].has_classes())
    assert losses[of_boxes] == again[of_boxes]
    chex.assert_trees_all_equal(gradient.bbox_preds, other.bbox_preds)


@every_head
def test_image_shapes_are_what_the_finest_cells_cover_unless_given(name):
    head = ROWS[name].head()
    assert head.image_shape(outputs_for(head)) == IMAGE
    batch = batch_for(head)
    given = head.targets(*batch, np.full((2, 2), 1e9, np.float32))
    chex.assert_trees_all_equal(head.targets(*batch[:3]), given)
    close(head.loss(*batch[:3]), head.loss(*batch))


# Levels without cells.


def with_strides(name, strides):
    """The head with the levels of these strides alone."""
    config, changes = ROWS[name].config, {}
    if "anchor_generator" in config:
        changes["anchor_generator"] = {**config["anchor_generator"], "strides": strides}
    if "prior_generator" in config:
        own = config["prior_generator"]
        kept = [own["strides"].index(stride) for stride in strides]
        sizes = [own["base_sizes"][i] for i in kept]
        changes["prior_generator"] = {**own, "strides": strides, "base_sizes": sizes}
        changes["obj_level_weights"] = [config["obj_level_weights"][i] for i in kept]
    if "strides" in config:
        changes["strides"] = strides
    if "regress_ranges" in config:
        ranges = dict(zip(config["strides"], config["regress_ranges"], strict=True))
        changes["regress_ranges"] = [ranges[s] for s in strides]
    return ROWS[name].head(**changes)


@pytest.mark.long
@every_head
@pytest.mark.parametrize("empty", [0, 1])
def test_a_level_without_cells_counts_nothing(name, empty):
    head, other = ROWS[name].head(), with_strides(name, [(16,), (8,)][empty])
    sizes = [(4, 6), (2, 3)]
    sizes[empty] = (0, 0)
    outputs = outputs_for(head, sizes=sizes)
    without = HeadOutputs(*(maps and (maps[1 - empty],) for maps in outputs))
    truth = boxes_for((3, 1), 4)
    for arguments in (truth, (*truth, shapes_for(2), shapes_for(2))):
        losses, gradient = value_and_gradient(head)(outputs, *arguments)
        expected, expected_gradient = value_and_gradient(other)(without, *arguments)
        close(losses, expected)
        assert np.isfinite(losses[0])
        for maps, level in zip(gradient, expected_gradient, strict=True):
            if maps is not None:
                close(maps[1 - empty], level[0])
        targets = head.targets(outputs, *arguments)
        chex.assert_trees_all_equal(targets, other.targets(without, *arguments))
    close(head.decode(outputs, shapes_for(2)), other.decode(without, shapes_for(2)))


def test_a_level_without_cells_leaves_statistics_alone():
    ghm = {"loss_cls": {"type": "GHMC", "bins": 5, "momentum": 0.75}}
    head = ROWS["RetinaHead"].head(**ghm)
    outputs, truth = outputs_for(head, sizes=((4, 6), (0, 0))), boxes_for((3, 1), 4)
    losses, state = head.update(head.init(), outputs, *truth)
    one_level = dataclasses.replace(
        head, anchor_generator=dataclasses.replace(head.anchor_generator, strides=(8,))
    )
    without = HeadOutputs(*(maps and maps[:1] for maps in outputs))
    close((losses, state), one_level.update(one_level.init(), without, *truth))


@every_head
def test_a_batch_without_images(name):
    head = ROWS[name].head()
    losses, gradient = compiled(head, "no image")(*batch_for(head, ()))
    assert not any(losses.values())
    assert all(x.shape[0] == 0 for x in jax.tree.leaves(gradient))
    assert head.decode(outputs_for(head, 0)).scores.shape[::2] == (0, head.num_classes)


# Decoding.


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def rows_of(maps, channels):
    return np.concatenate([x.reshape(2, -1, channels) for x in maps], axis=1)


def probabilities(head, outputs):
    """Those of the classes, which TOOD has as its outputs."""
    scores = rows_of(outputs.cls_scores, head.num_classes)
    return scores if isinstance(head, HEADS["TOODHead"]) else sigmoid(scores)


# Heads that predict distances in strides.
IN_STRIDES = (HEADS["YOLORTMDetHead"], HEADS["CenterNetUpdateHead"])


def boxes_by_hand(head, outputs):
    """Boxes in pixels, before the clip, in NumPy."""
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    preds = rows_of(getattr(outputs, head.detected_boxes), head.box_channels)
    if isinstance(head, HEADS["TOODHead"]):
        return preds * grid.strides[:, None]
    if isinstance(head, HEADS["YOLOXHead"]):
        middle = grid.priors + preds[..., :2] * grid.strides[:, None]
        half = np.exp(preds[..., 2:]) * grid.strides[:, None] / 2
        return np.concatenate([middle - half, middle + half], axis=-1)
    if isinstance(head, HEADS["RetinaHead"] | HEADS["ATSSHead"] | HEADS["RPNHead"]):
        coder = head.bbox_coder
        deltas = preds * np.array(coder.target_stds) + np.array(coder.target_means)
        size = grid.priors[:, 2:] - grid.priors[:, :2]
        middle = (grid.priors[:, 2:] + grid.priors[:, :2]) / 2 + deltas[..., :2] * size
        half = size * np.exp(deltas[..., 2:]) / 2
        return np.concatenate([middle - half, middle + half], axis=-1)
    if isinstance(head, HEADS["YOLOv5Head"]):
        xy, wh = np.split(sigmoid(preds), 2, axis=-1)
        middle = grid.corners + (2 * xy - 0.5) * grid.strides[:, None]
        half = (2 * wh) ** 2 * (grid.priors[:, 2:] - grid.priors[:, :2]) / 2
        return np.concatenate([middle - half, middle + half], axis=-1)
    points = grid.priors
    if points.shape[1] == 4:
        points = (grid.priors[:, :2] + grid.priors[:, 2:]) / 2
    if isinstance(head, HEADS["GFLHead"] | HEADS["YOLOv8Head"] | HEADS["YOLOHead"]):
        count = head.box_channels // 4
        bins = np.exp(preds.reshape(2, -1, 4, count).astype(np.float64))
        bins /= bins.sum(-1, keepdims=True)
        preds = (bins * np.arange(count)).sum(-1) * grid.strides[:, None]
    elif getattr(head, "norm_on_bbox", False) or isinstance(head, IN_STRIDES):
        preds = preds * grid.strides[:, None]
    return np.concatenate([points - preds[..., :2], points + preds[..., 2:]], axis=-1)


DECODED = [(name, {}) for name in ROWS] + [("FCOSHead", {"norm_on_bbox": True})]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "changes"), DECODED)
def test_decode(name, changes):
    head = ROWS[name].head(**changes)
    outputs = outputs_for(head)
    expected = boxes_by_hand(head, outputs)
    boxes, scores = head.decode(outputs)
    np.testing.assert_allclose(
        boxes, expected, rtol=1e-4, atol=1e-3, err_msg=f"Say in boxes_by_hand how {name} decodes."
    )
    clipped, same = head.decode(outputs, np.array([[20, 30], [30, 20]]))
    limits = np.array([[30, 20, 30, 20], [20, 30, 20, 30]])[:, None]
    np.testing.assert_allclose(clipped, np.clip(expected, 0, limits), rtol=1e-4, atol=1e-3)
    one_for_all = head.decode(outputs, (20, 30))
    np.testing.assert_array_equal(one_for_all.boxes[0], clipped[0])
    by_class = probabilities(head, outputs)
    if (factors := outputs.centernesses or outputs.objectnesses) is not None:
        by_class *= sigmoid(rows_of(factors, 1))
    np.testing.assert_allclose(scores, by_class, rtol=1e-5)
    np.testing.assert_array_equal(same, scores)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", ["RetinaHead", "FCOSHead"])
def test_the_box_of_a_target_is_the_ground_truth(name):
    """What a prior learns, predicted, decodes to its box."""
    head = ROWS[name].head()
    outputs, *truth = batch_for(head, (1, 1), 1)
    truth[0][:] = middle = 10, 6, 34, 28
    targets = head.targets(outputs, *truth)
    ends = np.cumsum([24, 6]) * head.num_base_priors
    parts = np.split(np.asarray(targets.bbox_targets), ends[:-1], axis=1)
    learnt = outputs._replace(
        bbox_preds=tuple(
            x.reshape(old.shape) for x, old in zip(parts, outputs.bbox_preds, strict=True)
        )
    )
    found = np.asarray(head.decode(learnt).boxes)[np.asarray(targets.gt_inds) > 0]
    np.testing.assert_allclose(found, np.tile(middle, (len(found), 1)), atol=1e-3)
    losses, _ = compiled(head, "one row")(learnt, *truth)
    np.testing.assert_allclose(losses["loss_bbox"], 0, atol=1e-5)


# Hyperparameters of the class loss.


HAVE_EXPONENT = [n for n in ROWS if ROWS[n].config["loss_cls"]["type"] != "CrossEntropyLoss"]


@pytest.mark.parametrize("name", few(HAVE_EXPONENT, FEW))
def test_vmap_over_the_exponent_of_the_class_loss(name):
    row = ROWS[name]
    batch = batch_for(row.head())

    def loss(loss_weight, gamma):
        changed = {**row.config["loss_cls"], "loss_weight": loss_weight}
        changed["beta" if "Quality" in changed["type"] else "gamma"] = gamma
        return row.head(loss_cls=changed).loss(*batch)

    swept = jax.jit(jax.vmap(loss))(jnp.array([1.0, 3.0, 1.0]), jnp.array([2.0, 2.0, 0.5]))
    alone, _ = compiled(row.head())(*batch)
    for key, value in swept.items():
        np.testing.assert_allclose(value[0], alone[key], rtol=1e-5)
    of_classes, of_boxes = row.key("loss_cls"), row.key("loss_bbox")
    np.testing.assert_allclose(swept[of_classes][1], 3 * alone[of_classes], rtol=1e-5)
    assert swept[of_classes][2] > alone[of_classes]
    np.testing.assert_allclose(swept[of_boxes], jnp.full(3, alone[of_boxes]), rtol=1e-5)


# Memory.


def test_the_class_scores_of_the_levels_are_never_one_array():
    """They are the largest array of a detector; a copy of them would be counted here."""
    head = ROWS["RetinaHead"].head(num_classes=400)
    outputs, *truth = batch_for(head)
    smallest = min(x.nbytes for x in outputs.cls_scores)
    assert temporary_bytes(value_and_gradient(head), outputs, *truth) < smallest


# Outputs that do not fit.

LEVELS = (
    ("cls_scores", lambda maps: maps[:1], "cls_scores must be 2 levels, got 1 arrays"),
    ("bbox_preds", lambda maps: None, "bbox_preds must be 2 levels, got None"),
    (
        "bbox_preds",
        lambda maps: (maps[0][..., 1:], maps[1]),
        r"bbox_preds\[0\] must have shape \(B, H, W, \d+\), that is \d x \d+, the priors of .*",
    ),
    (
        "cls_scores",
        lambda maps: (maps[0], np.concatenate([maps[1]] * 2)),
        r"cls_scores\[1\] must have shape \(B, H, W, \d+\)",
    ),
    ("cls_scores", lambda maps: (maps[0], [1.0]), r"cls_scores\[1\] must be an array, got list"),
    (
        "bbox_preds",
        lambda maps: [np.moveaxis(x, -1, 1) for x in maps],
        r"bbox_preds\[0\] must have shape .*: channels go last",
    ),
)


@every_head
@pytest.mark.parametrize(("part", "spoil", "message"), LEVELS)
def test_outputs_that_do_not_fit(name, part, spoil, message):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    outputs = outputs._replace(**{part: spoil(getattr(outputs, part))})
    for call in (lambda: head.loss(outputs, *boxes_for((1, 1), 1)), lambda: head.decode(outputs)):
        with pytest.raises((ValueError, TypeError), match=f"{name}: {message}"):
            call()


@every_head
def test_levels_in_the_wrong_order(name):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    reversed_levels = {
        field: list(reversed(maps)) for field, maps in outputs._asdict().items() if maps is not None
    }
    message = f"{name}: maps must not be larger at a larger stride: got"
    with pytest.raises(ValueError, match=message):
        head.loss(outputs._replace(**reversed_levels), *boxes_for((1, 1), 1))


@every_head
def test_centernesses_of_a_head_that_has_none(name):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    swapped = None if outputs.centernesses else outputs.cls_scores
    message = (
        "must be 2 levels, got None" if outputs.centernesses else "must be None: this head has"
    )
    with pytest.raises(ValueError, match=f"{name}: .*centernesses {message}"):
        head.loss(outputs._replace(centernesses=swapped), *boxes_for((1, 1), 1))


@every_head
def test_pad_shapes_that_do_not_fit(name):
    head = ROWS[name].head()
    message = re.escape(f"{name}: pad_shapes must have shape (2, 2), got (1, 2)")
    with pytest.raises(ValueError, match=message):
        head.loss(*batch_for(head), shapes_for(1))


def test_what_a_subclass_must_define():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bare(DenseHead):
        pass

    bare = Bare(
        num_classes=2,
        loss_cls=build_loss({"type": "FocalLoss"}),
        loss_bbox=build_loss({"type": "L1Loss"}),
    )
    for call in (
        lambda: bare.grid((), np.float32),
        lambda: bare.assign(None, None),
        lambda: bare.compute(None, None),
        lambda: bare.boxes(None, None, None),
        lambda: bare.strides,
    ):
        with pytest.raises(NotImplementedError, match="Bare must define"):
            call()
    assert not issubclass(Bare, AnchorHead)


# Detections.


def detections_by_hand(head, outputs, config):
    """mmdet's steps in NumPy: candidates of each level, boxes, one class after the other."""
    found = head.decode(outputs, (32, 48))
    all_boxes, factors = np.asarray(found.boxes), np.ones(found.scores.shape[:2])
    if outputs.centernesses is not None:
        factors = sigmoid(rows_of(outputs.centernesses, 1))[..., 0]
    scores = probabilities(head, outputs)
    best_class = head.detects_best_class
    if config.multi_label is not None:
        best_class = not config.multi_label
    if best_class:
        scores = np.where(scores == scores.max(-1, keepdims=True), scores, -1)
    if head.detects_by_joint_scores:
        scores = scores * sigmoid(rows_of(outputs.objectnesses, 1))
    ends = np.cumsum(head.grid(((4, 6), (2, 3)), np.float32).level_sizes)
    if head.ranks_levels_together:
        ends = ends[-1:]
    images = []
    for i in range(2):
        candidates = []
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            pairs = [
                (scores[i, prior, label], prior, label)
                for prior in range(start, end)
                for label in range(head.num_classes)
                if scores[i, prior, label] > config.score_thr
            ]
            candidates += sorted(pairs, reverse=True)[: config.nms_pre]
        candidates = [
            (score * factors[i, prior], prior, label) for score, prior, label in candidates
        ]
        kept = []
        for score, prior, label in sorted(candidates, reverse=True):
            x1, y1, x2, y2 = all_boxes[i, prior]
            if min(x2 - x1, y2 - y1) <= config.min_bbox_size:
                continue
            same = [box for _, box, other in kept if other == label or config.nms.class_agnostic]
            overlaps = [iou(all_boxes[i, prior], all_boxes[i, box]) for box in same]
            if all(overlap <= config.nms.iou_threshold for overlap in overlaps):
                kept.append((score, prior, label))
        images.append(kept[: config.max_per_img])
    return images, all_boxes


def iou(a, b):
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = max(width, 0) * max(height, 0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return overlap / max(sum(areas) - overlap, 1e-6)


@pytest.mark.parametrize("class_agnostic", [False, as_long(True)])
@pytest.mark.parametrize("name", few([n for n in ROWS if "RPN" not in n], FEW))
def test_detect(name, class_agnostic):
    config = {
        "score_thr": 0.4,
        "nms_pre": 20,
        "min_bbox_size": 4,
        "nms": {"type": "nms", "iou_threshold": 0.3, "class_agnostic": class_agnostic},
        "max_per_img": 9,
    }
    assert_detects(name, config)


BY_CLASSES = {"YOLOv5Head": False, "YOLOv8Head": False, "YOLOXHead": True}


@pytest.mark.parametrize("name", few(BY_CLASSES, ("YOLOv5Head",)))
def test_detect_by_the_best_class_or_by_all(name):
    config = {"score_thr": 0.3, "nms": {"type": "nms", "iou_threshold": 0.3}, "max_per_img": 9}
    assert_detects(name, {**config, "multi_label": BY_CLASSES[name]})


def assert_detects(name, config):
    """`detect` finds what `detections_by_hand` does, in nine slots."""
    head = ROWS[name].head(test_cfg=config)
    outputs = outputs_for(head, seed=3)
    found = head.detect(outputs, (32, 48))
    expected, boxes = detections_by_hand(head, outputs, head.test_cfg)
    assert found.boxes.shape == (2, 9, 4)
    for i, kept in enumerate(expected):
        count = len(kept)
        assert count
        np.testing.assert_array_equal(found.exists[i], np.arange(9) < count)
        scores, priors, labels = map(np.array, zip(*kept, strict=True))
        np.testing.assert_array_equal(found.indices[i, :count], priors)
        np.testing.assert_array_equal(found.labels[i], [*labels, *[-1] * (9 - count)])
        np.testing.assert_allclose(found.scores[i, :count], scores, rtol=1e-5)
        np.testing.assert_allclose(found.boxes[i, :count], boxes[i, priors], rtol=1e-4, atol=1e-4)
        assert not np.any(found.boxes[i, count:])


@pytest.mark.parametrize("name", ["YOLOHead", "YOLOv8Head", "YOLORTMDetHead", "FCOSHead"])
def test_candidates_of_all_levels_are_counted_together(name):
    """As in mmyolo and ultralytics, and level by level in mmdet's heads."""
    test_cfg = {"nms_pre": 5, "nms": {"type": "nms", "iou_threshold": 1.0}, "max_per_img": 20}
    head = ROWS[name].head(test_cfg=test_cfg)
    together = name != "FCOSHead"
    found = head.detect(outputs_for(head))
    np.testing.assert_array_equal(found.exists.sum(axis=1), [5, 5] if together else [10, 10])
    if together:
        best = np.sort(np.asarray(head.decode(outputs_for(head)).scores).reshape(2, -1))
        np.testing.assert_allclose(found.scores[:, :5], best[:, :-6:-1], rtol=1e-6)


# Nothing drops a candidate or changes the order; a centerness does; small boxes are dropped.
NOTHING_SUPPRESSED = [
    ("YOLOHead", {}),
    ("RetinaHead", {}),
    ("YOLOXHead", {}),
    ("FCOSHead", {}),
    ("YOLOHead", {"min_bbox_size": 20}),
    ("RPNHead", {}),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "settings"), NOTHING_SUPPRESSED)
def test_detections_of_which_none_is_suppressed(name, settings):
    """They are those of a suppression above an IoU of 1, without its loop."""
    found, texts = [], []
    for nms in (None, {"type": "nms", "iou_threshold": 1.0}):
        head = ROWS[name].head(
            test_cfg={"score_thr": 0.3, "max_per_img": 7, "nms": nms, **settings}
        )
        outputs = outputs_for(head)
        found.append(head.detect(outputs, IMAGE))
        texts.append(program(head.detect, outputs).as_text())
    assert found[0].exists.any()
    chex.assert_trees_all_equal(*found)
    assert [" while(" in text for text in texts] == [False, True]


def test_no_more_candidates_than_slots_are_sorted_where_none_is_suppressed():
    """To find 30 000 and then 300 takes 25 times as long."""
    test_cfg = {"nms": None, "nms_pre": 50, "max_per_img": 7}
    head = ROWS["YOLOHead"].head(test_cfg=test_cfg)
    assert set(re.findall(r"\bk=(\d+)", str(jax.make_jaxpr(head.detect)(outputs_for(head))))) == {
        "7"
    }


@pytest.mark.parametrize("name", ["RPNHead", as_long("FCOSRPNHead")])
def test_no_gradient_goes_through_proposals(name):
    head = ROWS[name].head(rpn_proposal={"nms_pre": 20, "max_per_img": 5})
    outputs = outputs_for(head)
    assert head.proposals(outputs).exists.any()

    def coordinates(outputs):
        found = head.proposals(outputs)
        return found.boxes.sum() + found.scores.sum()

    assert not any(map(np.any, jax.tree.leaves(jax.grad(coordinates)(outputs))))
