"""YOLOX's own: the raw loss that a call turns on, its quality, its boxes, and its fields."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from head_cases import CLASSES, ROWS, batch_for, compiled, outputs_for
from visdet_jax import build_loss
from visdet_jax.boxes import bbox_overlaps

ROW = ROWS["YOLOXHead"]
L1 = {"type": "L1Loss", "reduction": "sum"}


def rows_of(maps):
    return np.concatenate([x.reshape(len(x), -1, x.shape[-1]) for x in maps], axis=1)


@pytest.mark.long
def test_one_compilation_for_both_values_of_use_l1():
    batch = batch_for(ROW.head())
    for own in (False, True):
        head = ROW.head(use_l1=own)
        loss = jax.jit(head.loss)
        off, half, on = (loss(*batch, use_l1=value) for value in (False, 0.5, True))
        # A bool and a float are two types; each of them is one program for all its values.
        assert loss._cache_size() == 2
        assert off["loss_l1"] == 0 < on["loss_l1"]
        np.testing.assert_allclose(half["loss_l1"], on["loss_l1"] / 2, rtol=1e-6)
        for losses in (off, half):
            chex.assert_trees_all_close({**losses, "loss_l1": on["loss_l1"]}, on, rtol=1e-6)
        chex.assert_trees_all_close(head.loss(*batch), on if own else off, rtol=1e-6)


@pytest.mark.long
def test_use_l1_that_is_off_leaves_no_gradient():
    head = ROW.head(loss_l1={**L1, "loss_weight": 1e6})
    outputs, *truth = batch_for(head)

    def total(outputs, use_l1):
        return sum(head.loss(outputs, *truth, use_l1=use_l1).values())

    without, _ = (jax.grad(total)(outputs, use_l1) for use_l1 in (False, True))
    light = ROW.head(use_l1=False)
    _, expected = compiled(light)(outputs, *truth)
    chex.assert_trees_all_close(without, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.long
def test_losses_of_the_positives():
    """Classes learn the IoU; the raw loss is of what the network gives; n divides every sum."""
    head = ROW.head()
    outputs, *truth = batch_for(head)
    losses, _ = compiled(head)(outputs, *truth)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    positive = targets.gt_inds > 0
    count = float(positive.sum())
    assert count > 1
    boxes = np.asarray(head.decode(outputs).boxes)[positive]
    learnt = targets.bbox_targets[positive]
    quality = np.asarray(bbox_overlaps(boxes, learnt, is_aligned=True))
    np.testing.assert_allclose(targets.metrics[positive], quality, rtol=1e-5)
    of_classes = np.where(
        np.arange(CLASSES) == targets.labels[positive][:, None], quality[:, None], np.float32(0)
    )
    bce = build_loss({"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"})
    logits, raw, objectness = (
        rows_of(maps) for maps in (outputs.cls_scores, outputs.bbox_preds, outputs.objectnesses)
    )
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    corners, strides = (
        np.broadcast_to(x, (*positive.shape, size))[positive]
        for x, size in ((grid.priors, 2), (grid.strides[:, None], 1))
    )
    size = learnt[:, 2:] - learnt[:, :2]
    wanted = np.concatenate(
        [((learnt[:, :2] + learnt[:, 2:]) / 2 - corners) / strides, np.log(size / strides)], axis=1
    )
    expected = {
        "loss_cls": bce(logits[positive], of_classes),
        "loss_obj": bce(objectness[..., 0], positive.astype(np.float32)),
        "loss_bbox": head.loss_bbox(boxes, learnt),
        "loss_l1": np.abs(raw[positive] - wanted).sum(),
    }
    expected = {name: np.float32(x / count) for name, x in expected.items()}
    chex.assert_trees_all_close(dict(losses), expected, rtol=1e-5)


def test_decode_by_hand():
    head = ROW.head()
    outputs = jax.tree.map(np.zeros_like, outputs_for(head, 1))
    # Row 1, column 2 of stride 8; the last cell of stride 16.
    outputs.bbox_preds[0][0, 1, 2] = 0.5, -0.25, np.log(2), np.log(3)
    outputs.bbox_preds[1][0, 1, 2] = 0, 0, 0, 25  # A logarithm above 20 counts as 20.
    outputs.cls_scores[0][0, 1, 2] = 0, 1, 2
    outputs.objectnesses[0][0, 1, 2] = -1
    boxes, scores = head.decode(outputs)
    np.testing.assert_allclose(boxes[0, 8], [12, -6, 28, 18], rtol=1e-6)
    half = 16 * np.exp(20) / 2
    np.testing.assert_allclose(boxes[0, -1], [24, 16 - half, 40, 16 + half], rtol=1e-5)
    np.testing.assert_allclose(boxes[0, 0], [-4, -4, 4, 4])
    sigmoid = 1 / (1 + np.exp(-np.array([0.0, 1, 2, -1])))
    np.testing.assert_allclose(scores[0, 8], sigmoid[:3] * sigmoid[3], rtol=1e-6)
    np.testing.assert_allclose(head.decode(outputs, (20, 26)).boxes[0, 8], [12, 0, 26, 18])
    # The best class of a cell is its only detection.
    found = head.detect(outputs)
    first = np.flatnonzero(np.asarray(found.indices[0]) == 8)
    assert found.labels[0][first].tolist() == [2]
    np.testing.assert_allclose(found.scores[0][first], sigmoid[2] * sigmoid[3], rtol=1e-6)


def test_no_gradient_goes_through_the_quality():
    head = ROW.head()
    outputs, *truth = batch_for(head)
    by_boxes = jax.grad(lambda x: head.loss(outputs._replace(bbox_preds=x), *truth)["loss_cls"])(
        outputs.bbox_preds
    )
    assert not any(map(np.any, by_boxes))


def test_an_inverted_box_has_a_finite_raw_loss():
    head = ROW.head()
    outputs, boxes, labels, shapes = batch_for(head, (1, 0))
    boxes[0, 0] = 30, 28, 12, 6
    outputs = outputs._replace(bbox_preds=jax.tree.map(jnp.zeros_like, outputs.bbox_preds))
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels, shapes))
    positive = targets.gt_inds > 0
    assert positive.any()
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    corners, strides = grid.priors[positive[0]], grid.strides[positive[0]][:, None]
    # A side below 0 counts as none, whose logarithm is that of 1e-8.
    total = (np.abs(np.array([21, 17]) - corners) / strides).sum()
    total += -2 * np.log(1e-8) * positive.sum()
    losses = head.loss(outputs, boxes, labels, shapes)
    np.testing.assert_allclose(losses["loss_l1"], total / positive.sum(), rtol=1e-5)


def test_shapes_of_images_have_no_effect():
    head = ROW.head()
    outputs, *truth, shapes = batch_for(head)
    expected = compiled(head)(outputs, *truth, shapes)[0]
    small = np.full_like(shapes, 9)
    chex.assert_trees_all_close(head.loss(outputs, *truth, small, small), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            (
                {name: {**ROW.config.get(name, L1), "reduction": "mean"}},
                f'{name} must have reduction="sum", got',
            )
            for name in ("loss_cls", "loss_bbox", "loss_l1")
        ),
        (
            {"loss_obj": {"type": "CrossEntropyLoss", "use_sigmoid": True}},
            'loss_obj must have reduction="sum", got',
        ),
        (
            {"loss_cls": {"type": "CrossEntropyLoss", "reduction": "sum"}},
            "loss_cls must use a sigmoid for each class, got",
        ),
        ({"loss_obj": L1 | {"type": "GIoULoss"}}, "loss_obj gets pred (N,), target (N,) and wei"),
        ({"strides": [8, 0]}, "strides must be at least 1, got (8, 0)"),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"YOLOXHead: {message}")):
        ROW.head(**changes)


def test_outputs_without_objectnesses():
    head = ROW.head()
    outputs, *truth = batch_for(head)
    message = "YOLOXHead: objectnesses must be 2 levels, got None"
    with pytest.raises(ValueError, match=message):
        head.loss(outputs._replace(objectnesses=None), *truth)
    wide = tuple(np.concatenate([x, x], axis=-1) for x in outputs.objectnesses)
    with pytest.raises(ValueError, match=r"objectnesses\[0\] must have shape \(B, H, W, 1\)"):
        head.loss(outputs._replace(objectnesses=wide), *truth)
