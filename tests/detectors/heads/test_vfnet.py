"""VarifocalNet's own: two box losses and their weights, its two class losses, points, fields."""

import re

import chex
import jax
import numpy as np
import pytest

from head_cases import ANCHORS, CLASSES, IMAGE, ROWS, batch_for, compiled, outputs_for, shapes_for
from visdet_jax.boxes import bbox_overlaps

ROW = ROWS["VFNetHead"]
RANGES = [[-1, 16], [16, 1e8]]
LEAST_IOU = 1e-6


def rows_of(maps):
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


def points_of(head):
    priors = head.grid(((4, 6), (2, 3)), np.float32).priors
    return priors if priors.shape[1] == 2 else (priors[:, :2] + priors[:, 2:]) / 2


def boxes_of(points, distances):
    return np.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def expected_losses(head, outputs, targets):
    """The losses in NumPy, and the qualities of both kinds of boxes."""
    positive = targets.gt_inds > 0
    points = np.broadcast_to(points_of(head), (*positive.shape, 2))[positive]
    learnt = boxes_of(points, targets.bbox_targets[positive])
    losses, qualities = {}, []
    for name, loss, maps in (
        ("loss_bbox", head.loss_bbox, outputs.bbox_preds),
        ("loss_bbox_rf", head.loss_bbox_refine, outputs.bbox_preds_refine),
    ):
        boxes = boxes_of(points, rows_of(maps)[positive])
        quality = np.maximum(bbox_overlaps(boxes, learnt, is_aligned=True), np.float32(LEAST_IOU))
        total = loss(boxes, learnt, quality, reduction_override="sum")
        losses[name] = total / max(quality.sum(), 1)
        qualities.append(quality)
    logits, every = rows_of(outputs.cls_scores).reshape(-1, CLASSES), np.zeros(positive.shape)
    every[positive] = qualities[1]
    count = float(max(positive.sum(), 1))
    if head.use_vfl:
        target = targets.labels.ravel(), every.ravel().astype(np.float32)
        losses["loss_cls"] = head.loss_cls(logits, target, avg_factor=count)
    else:
        weight = targets.label_weights.ravel()
        labels = targets.labels.ravel()
        losses["loss_cls"] = head.loss_cls_fl(logits, labels, weight, avg_factor=count)
    return losses, qualities


@pytest.mark.one_in(4)
@pytest.mark.parametrize("use_vfl", [True, False])
@pytest.mark.parametrize("use_atss", [True, False])
def test_losses_by_the_qualities(use_atss, use_vfl):
    head = ROW.head(use_atss=use_atss, use_vfl=use_vfl, regress_ranges=RANGES)
    outputs, *truth = batch_for(head)
    for maps in outputs.bbox_preds_refine:  # Boxes that miss everything have the least quality.
        maps[:, ::2, ::2] = maps[:, 1::2, 1::2] = -500, -500, 600, 600
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    expected, qualities = expected_losses(head, outputs, targets)
    assert [(quality == np.float32(LEAST_IOU)).any() for quality in qualities] == [False, True]
    assert all((quality > 0.1).any() for quality in qualities)
    losses, _ = compiled(head)(outputs, *truth)
    chex.assert_trees_all_close(dict(losses), expected, rtol=1e-5)


@pytest.mark.long
def test_each_loss_has_a_gradient_by_its_own_outputs():
    """The qualities have none: not of the class loss, nor of the weights of the box losses."""
    head = ROW.head()
    outputs, *truth = batch_for(head)
    own = {
        "loss_cls": "cls_scores",
        "loss_bbox": "bbox_preds",
        "loss_bbox_rf": "bbox_preds_refine",
    }
    by_outputs = jax.jacrev(lambda outputs: head.loss(outputs, *truth))(outputs)
    for name, part in own.items():
        gradients = by_outputs[name]
        learning = {x for x in own.values() if any(map(np.any, getattr(gradients, x)))}
        assert learning == {part}
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    positive = targets.gt_inds > 0
    points = np.broadcast_to(points_of(head), (*positive.shape, 2))[positive]
    learnt, pred = (
        boxes_of(points, x[positive]) for x in (targets.bbox_targets, rows_of(outputs.bbox_preds))
    )
    _, (quality, _) = expected_losses(head, outputs, targets)
    by_boxes = jax.grad(lambda x: head.loss_bbox(x, learnt, quality, reduction_override="sum"))
    by_boxes = np.asarray(by_boxes(pred)) / max(quality.sum(), 1) * [-1, -1, 1, 1]
    found = rows_of(by_outputs["loss_bbox"].bbox_preds)
    np.testing.assert_allclose(found[positive], by_boxes, rtol=1e-4, atol=1e-7)
    assert not found[~positive].any()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("use_vfl", [True, False])
def test_dropped_anchors_are_negatives_of_the_varifocal_loss_alone(use_vfl):
    head = ROW.head(use_vfl=use_vfl)
    outputs, *truth = batch_for(head)
    pad_shapes = np.array([[16, 48], [32, 48]])

    def total(outputs):
        return head.loss(outputs, *truth, pad_shapes)["loss_cls"]

    targets = head.targets(outputs, *truth, pad_shapes)
    dropped = np.asarray(targets.label_weights) == 0
    assert dropped[0].any()
    gradient = rows_of(jax.grad(total)(outputs).cls_scores)
    assert gradient[~dropped].all()
    assert gradient[dropped].any() == use_vfl


def test_sync_num_pos_has_no_effect():
    batch = batch_for(ROW.head())
    synced, alone = (ROW.head(sync_num_pos=value).loss(*batch) for value in (True, False))
    chex.assert_trees_all_equal(synced, alone)


def test_points_without_atss():
    """The middles of all cells, each of which learns boxes of its level's range."""
    head = ROW.head(use_atss=False, regress_ranges=RANGES)
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    np.testing.assert_array_equal(grid.priors[:7], [[4 + 8 * x, 4] for x in range(6)] + [[4, 12]])
    outputs = outputs_for(head)
    boxes = np.array([[[0, 0, 14, 12]], [[0, 0, 46, 30]]], np.float32)
    labels = np.array([[1], [2]])
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels, shapes_for(2)))
    positive = targets.gt_inds > 0
    for image in range(2):
        left_top, right_bottom = np.split(boxes[image], 2, axis=1)
        sides = np.concatenate([grid.priors - left_top, right_bottom - grid.priors], axis=1)
        low, high = np.repeat(np.array(RANGES), [24, 6], axis=0).T
        inside = (sides.min(1) > 0) & (sides.max(1) >= low) & (sides.max(1) <= high)
        np.testing.assert_array_equal(positive[image], inside)
        np.testing.assert_allclose(targets.bbox_targets[image][inside], sides[inside], rtol=1e-6)
    assert positive[:, :24].any(1).tolist() == [True, False]
    assert positive[1, 24:].any()
    np.testing.assert_array_equal(targets.label_weights, np.ones((2, 30)))
    # Cells in the padding take part.
    padded = head.targets(outputs, boxes, labels, shapes_for(2), np.full((2, 2), 8))
    chex.assert_trees_all_equal(targets, jax.tree.map(np.asarray, padded))
    # Nearer to the centre alone.
    sampled = ROW.head(
        use_atss=False, regress_ranges=RANGES, center_sampling=True, center_sample_radius=0.5
    ).targets(outputs, boxes, labels, shapes_for(2))
    few = np.asarray(sampled.gt_inds) > 0
    assert 0 < few.sum() < positive.sum()
    assert positive[few].all()


def test_detections_are_the_refined_boxes():
    head = ROW.head()
    outputs = outputs_for(head, 1)
    expected = boxes_of(points_of(head), rows_of(outputs.bbox_preds_refine)[0])
    np.testing.assert_allclose(head.decode(outputs).boxes[0], expected, rtol=1e-5, atol=1e-4)
    found = head.detect(outputs, IMAGE)
    clipped = np.clip(expected, 0, np.array([48, 32, 48, 32]))[found.indices[0]]
    exists = np.asarray(found.exists[0])
    np.testing.assert_allclose(found.boxes[0][exists], clipped[exists], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [8, 32]}, "strides must be the anchors', (8, 16), got (8, 32)"),
        ({"reg_decoded_bbox": False}, "reg_decoded_bbox must be True: the box loss is of boxes"),
        (
            {"anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]}},
            "a cell must have one anchor, got 2",
        ),
        (
            {"use_atss": False},
            "2 strides need as many regress_ranges (low, high), got ((-1, 64), (64, 128)",
        ),
        ({"loss_cls": {"type": "FocalLoss"}}, "loss_cls gets pred (N, 3), target (N,) and (N,)"),
        ({"loss_cls_fl": {"type": "VarifocalLoss"}}, "loss_cls_fl gets pred (N, 3), target (N,)"),
        ({"center_sample_radius": -1.0}, "center_sample_radius must be above 0, got -1.0"),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"VFNetHead: {message}")):
        ROW.head(**changes)


def test_outputs_without_refined_boxes():
    head = ROW.head()
    outputs, *truth = batch_for(head)
    message = "VFNetHead: bbox_preds_refine must be 2 levels, got None"
    with pytest.raises(ValueError, match=message):
        head.loss(outputs._replace(bbox_preds_refine=None), *truth)
