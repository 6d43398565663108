"""What only DETR's heads do: layers, matching, divisors, proposals, states, errors."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

from head_cases import (
    CLASSES,
    LAYERS,
    QUERIES,
    QUERY_ROWS,
    SOFTMAX,
    batch_for,
    compiled,
    outputs_for,
    total,
)
from visdet_jax import checked
from visdet_jax.detectors import DETRHead, DETROutputs

every_head = pytest.mark.parametrize("name", QUERY_ROWS)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def head_of(name, **changes):
    return QUERY_ROWS[name].head(**changes)


@functools.cache
def compiled_with_matching(head):
    """Jitted once for all tests of a head: `compiled` of a matching that is given."""

    def value(outputs, truth, gt_inds):
        losses = head.loss(outputs, *truth, gt_inds=gt_inds)
        return total(losses), losses

    def run(outputs, truth, gt_inds):
        (_, losses), gradient = jax.value_and_grad(value, has_aux=True)(outputs, truth, gt_inds)
        return losses, gradient

    return jax.jit(run)


@pytest.mark.long
@every_head
def test_as_many_queries_learn_as_there_are_boxes(name):
    head = head_of(name)
    for counts in ((0, 0), (1, 0), (4, 4), (3, 1)):
        losses, gradient = compiled(head)(*batch_for(head, counts))
        learns = np.asarray(gradient.bbox_preds).any(-1).sum(-1)
        np.testing.assert_array_equal(learns, [counts] * LAYERS)
        assert (losses["loss_bbox"] > 0) == (losses["loss_iou"] > 0) == (sum(counts) > 0)


@pytest.mark.long
@every_head
def test_layers_are_independent_and_the_matching_is_detached(name):
    """Each layer's losses are those of a decoder of that layer alone, and of its own matching."""
    head = head_of(name)
    outputs, *truth = batch_for(head)
    losses, gradient = compiled(head)(outputs, *truth)
    for i, prefix in enumerate(("d0.", "")):
        layer, its_gradient = (
            DETROutputs(*(x[i : i + 1] for x in tree[:2])) for tree in (outputs, gradient)
        )
        alone, gradient_alone = compiled(head, "one layer")(layer, *truth)
        close(alone, {key: losses[prefix + key] for key in alone})
        close(gradient_alone, its_gradient)
    found = head.targets(outputs, *truth)
    assert not np.array_equal(found.gt_inds[0], found.gt_inds[1])
    close(compiled_with_matching(head)(outputs, truth, found.gt_inds), (losses, gradient))
    rolled = jnp.roll(found.gt_inds, 1, axis=2)
    worse, _ = compiled_with_matching(head)(outputs, truth, rolled)
    assert worse["loss_bbox"] > losses["loss_bbox"]


@every_head
def test_targets(name):
    head = head_of(name)
    outputs, boxes, labels, shapes = batch_for(head, (2, 0))
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels, shapes))
    assert targets.gt_inds.shape == (LAYERS, 2, QUERIES)
    for layer in targets.gt_inds:
        assert sorted(layer[0]) == [0, 0, 0, 1, 2]
        assert not layer[1].any()
    matched = targets.gt_inds > 0
    np.testing.assert_array_equal(targets.label_weights, 1)
    np.testing.assert_array_equal(targets.labels[matched], labels[0][targets.gt_inds[matched] - 1])
    x1, y1, x2, y2 = boxes[0][targets.gt_inds[matched] - 1].T
    expected = np.stack([(x1 + x2) / 96, (y1 + y2) / 64, (x2 - x1) / 48, (y2 - y1) / 32], -1)
    np.testing.assert_allclose(targets.bbox_targets[matched], expected, rtol=1e-6)


def test_a_given_matching_to_padding_is_no_match():
    head = head_of("DeformableDETRHead")
    outputs, *truth = batch_for(head, (1, 0))
    gt_inds = np.zeros((LAYERS, 2, QUERIES), np.int32)
    gt_inds[:, 0, :2] = 1, 3  # The third is padding.
    targets = head.targets(outputs, *truth, gt_inds=gt_inds)
    np.testing.assert_array_equal(np.asarray(targets.gt_inds).sum((1, 2)), [1, 1])
    gt_inds[:, 1, 4] = -1  # A query that is left out.
    targets = head.targets(outputs, *truth, gt_inds=gt_inds)
    assert not np.asarray(targets.label_weights)[:, 1, 4].any()


def test_more_boxes_than_queries():
    head = head_of("DeformableDETRHead")
    losses, gradient = compiled(head, "many")(*batch_for(head, (9, 8), 9))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    assert np.asarray(gradient.bbox_preds).any(-1).all()


@pytest.mark.long
def test_the_divisors():
    """DETR's background counts by its weight; Deformable DETR's not at all."""
    _, *truth = batch_for(head_of("DETRHead"))
    for weights, divisor in (
        ({"class_weight": 1.0, "bg_cls_weight": 0.25}, 4 + 6 * 0.25),
        ({"class_weight": 2.0}, 4 + 6 * 2.0),
        ({}, 4.0),
    ):
        loss_cls = {"type": "CrossEntropyLoss", **weights}
        head = head_of("DETRHead", loss_cls=loss_cls)
        outputs = outputs_for(head, layers=1)
        targets = head.targets(outputs, *truth)
        arguments = (outputs.cls_scores.reshape(-1, CLASSES + 1), targets.labels.reshape(-1))
        expected = head.loss_cls(*arguments, reduction_override="sum") / divisor
        np.testing.assert_allclose(head.loss(outputs, *truth)["loss_cls"], expected, rtol=1e-6)
        other = head_of("DeformableDETRHead", loss_cls=loss_cls, sync_cls_avg_factor=False)
        losses = other.loss(outputs, *truth, gt_inds=targets.gt_inds)
        np.testing.assert_allclose(losses["loss_cls"], expected * divisor / 4, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize(
    "loss_cls",
    [
        {"type": "QualityFocalLoss"},
        {"type": "MatchabilityAwareLoss", "gamma": 1.5},
        {"type": "VarifocalLoss", "detached": True},
        {"type": "IoUAwareBCELoss"},
    ],
    ids=lambda config: config["type"],
)
def test_losses_of_a_quality_get_the_iou(loss_cls):
    head = head_of("DeformableDETRHead", loss_cls=loss_cls)
    outputs, (_, *truth) = outputs_for(head, layers=1), batch_for(head)
    targets = jax.tree.map(lambda x: np.asarray(x)[0], head.targets(outputs, *truth))
    pred, target = outputs.bbox_preds[0], targets.bbox_targets
    low = np.maximum(pred[..., :2] - pred[..., 2:] / 2, target[..., :2] - target[..., 2:] / 2)
    high = np.minimum(pred[..., :2] + pred[..., 2:] / 2, target[..., :2] + target[..., 2:] / 2)
    both = np.maximum(high - low, 0).prod(-1)
    iou = both / (pred[..., 2:].prod(-1) + target[..., 2:].prod(-1) - both)
    score = np.where(targets.gt_inds > 0, iou, 0).astype(np.float32)
    assert score.any()
    label = targets.labels.reshape(-1), score.reshape(-1)
    logits = outputs.cls_scores.reshape(-1, CLASSES)
    expected = head.loss_cls(logits, label, avg_factor=4.0)
    np.testing.assert_allclose(head.loss(outputs, *truth)["loss_cls"], expected, rtol=1e-5)
    by_boxes = jax.grad(
        lambda boxes: head.loss(outputs._replace(bbox_preds=boxes), *truth)["loss_cls"]
    )
    assert not by_boxes(outputs.bbox_preds).any()


@pytest.mark.long
def test_proposals_are_of_one_class():
    head = head_of("DeformableDETRHead")
    outputs, boxes, labels, shapes = batch_for(head)
    found = outputs_for(head, layers=1, seed=3)
    both = outputs._replace(enc_cls_scores=found.cls_scores[0], enc_bbox_preds=found.bbox_preds[0])
    losses = head.loss(both, boxes, labels, shapes)
    proposals = head.loss(found, boxes, np.minimum(labels, 0), shapes)
    close({key: losses[f"enc_{key}"] for key in proposals}, proposals)
    of_layers = {key: losses[key] for key in QUERY_ROWS["DeformableDETRHead"].names}
    close(of_layers, head.loss(outputs, boxes, labels, shapes))
    assert losses.keys() == {*of_layers, *(f"enc_{key}" for key in proposals)}
    narrow = head.loss(both, boxes, labels.astype(np.int8), shapes)
    chex.assert_trees_all_equal(narrow, losses)
    with pytest.raises(ValueError, match="enc_bbox_preds is missing, beside enc_cls_scores"):
        head.loss(both._replace(enc_bbox_preds=None), boxes, labels, shapes)


@every_head
def test_decode(name):
    head = head_of(name)
    outputs = outputs_for(head)
    boxes, scores = head.decode(outputs, np.array([[32, 48], [10, 20]]))
    x, y, w, h = np.moveaxis(outputs.bbox_preds[-1].astype(np.float64), -1, 0)
    corners = np.clip(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1), 0, 1)
    scale = np.array([[48, 32, 48, 32], [20, 10, 20, 10]])[:, None]
    np.testing.assert_allclose(boxes, corners * scale, rtol=1e-5)
    logits = outputs.cls_scores[-1].astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 1 / (1 + np.exp(-logits)) if head.use_sigmoid else softmax[..., :CLASSES]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


@every_head
@pytest.mark.parametrize("slots", [100, 3])
def test_detections_are_the_best_predictions(name, slots):
    """With a sigmoid of all classes of each query, with a softmax of its best one, as in mmdet."""
    head = head_of(name, test_cfg={"max_per_img": slots})
    outputs, shapes = outputs_for(head), np.array([[32, 48], [10, 20]])
    found = head.detect(outputs, shapes)
    for i in range(2):
        boxes, scores = (np.asarray(x[i]) for x in head.decode(outputs, shapes))
        if head.use_sigmoid:
            best = np.argsort(-scores.reshape(-1), kind="stable")
            queries, labels = np.unravel_index(best, scores.shape)
        else:
            queries = np.argsort(-scores.max(-1), kind="stable")
            labels = scores.argmax(-1)[queries]
        queries, labels = (x[:slots] for x in (queries, labels))
        np.testing.assert_array_equal(found.indices[i], queries)
        np.testing.assert_array_equal(found.labels[i], labels)
        np.testing.assert_array_equal(found.scores[i], scores[queries, labels])
        np.testing.assert_array_equal(found.boxes[i], boxes[queries])
    assert found.exists.all()
    assert found.labels.dtype == found.indices.dtype == np.int32


def test_there_may_be_fewer_predictions_than_slots():
    head = head_of("DETRHead", test_cfg={"max_per_img": 100})
    found = head.detect(outputs_for(head), (32, 48))
    assert found.boxes.shape == (2, QUERIES, 4)


def test_defaults_are_mmdets():
    assert DETRHead(num_classes=CLASSES) == head_of("DETRHead")


def test_statistics_go_from_layer_to_layer():
    config = {"type": "GHMC", "bins": 5, "momentum": 0.75}
    head = head_of("DeformableDETRHead", loss_cls=config)
    outputs, *truth = batch_for(head)
    with pytest.raises(TypeError, match="DeformableDETRHead: loss_cls keeps running statistics"):
        head.loss(outputs, *truth)
    losses, state = jax.jit(head.update)(head.init(), outputs, *truth)
    targets, own = head.targets(outputs, *truth), head.loss_cls.init()
    for i, prefix in enumerate(("d0.", "")):
        logits = outputs.cls_scores[i].reshape(-1, CLASSES)
        value, own = head.loss_cls.update(own, logits, targets.labels[i].reshape(-1))
        np.testing.assert_allclose(losses[f"{prefix}loss_cls"], value, rtol=1e-6)
    close(state["loss_cls"], own)


@pytest.mark.long
def test_export_with_any_number_of_images():
    head = head_of("DETRHead")
    outputs, *truth = batch_for(head, (2, 1))
    (images,) = export.symbolic_shape("images")

    def any_images(axis):
        def shape(x):
            dims = [*x.shape]
            dims[axis] = images
            return jax.ShapeDtypeStruct(tuple(dims), x.dtype)

        return shape

    shapes = (jax.tree.map(any_images(1), outputs), *map(any_images(0), truth))
    function = jax.jit(lambda *arguments: head.loss(*arguments))
    program = export.export(function, platforms=("cpu", "cuda", "tpu"))(*shapes)
    call = export.deserialize(program.serialize()).call
    close(call(outputs, *truth), head.loss(outputs, *truth))
    one = (jax.tree.map(lambda x: x[:, :1], outputs), *(x[:1] for x in truth))
    close(call(*one), head.loss(*one))


# Errors.


@pytest.mark.long
def test_checked():
    head = head_of("DeformableDETRHead")
    outputs, boxes, labels, shapes = batch_for(head)
    close(
        checked(head).loss(outputs, boxes, labels, shapes),
        head.loss(outputs, boxes, labels, shapes),
    )
    for spoil, message in (
        ((outputs._replace(bbox_preds=outputs.bbox_preds * np.nan), boxes, labels), "bbox_preds"),
        ((outputs, boxes, labels + CLASSES), "gt_labels"),
        ((outputs, boxes + 100, labels), "gt_boxes.*lies outside its image"),
    ):
        with pytest.raises(checkify.JaxRuntimeError, match=f"DeformableDETRHead: .*{message}"):
            checked(head).loss(*spoil, shapes)
    with pytest.warns(UserWarning, match="DeformableDETRHead: every image is without ground tr"):
        found = checked(head).loss(outputs, boxes, labels * 0 - 1, shapes)
    close(found, head.loss(outputs, boxes, labels * 0 - 1, shapes))


def test_inputs_that_do_not_fit():
    head = head_of("DeformableDETRHead")
    outputs, boxes, labels, shapes = batch_for(head)
    for arguments, error, message in (
        ((tuple(outputs), boxes, labels, shapes), TypeError, "outputs must be DETROutputs"),
        ((outputs, boxes, labels, None), ValueError, "image_shapes must have shape (2, 2), got ()"),
        (
            (outputs._replace(cls_scores=outputs.cls_scores[..., :2]), boxes, labels, shapes),
            ValueError,
            "cls_scores must have shape (L, B, Q, 3), got (2, 2, 5, 2)",
        ),
        (
            (outputs._replace(bbox_preds=outputs.bbox_preds[:, :, :3]), boxes, labels, shapes),
            ValueError,
            "bbox_preds must have shape (L=2, B=2, Q=5, 4), got (2, 2, 3, 4)",
        ),
    ):
        with pytest.raises(error, match=re.escape(f"DeformableDETRHead: {message}")):
            head.loss(*arguments)
    with pytest.raises(ValueError, match=r"gt_inds must have shape \(2, 2, 5\)"):
        head.loss(outputs, boxes, labels, shapes, gt_inds=np.zeros((2, 5), np.int32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_bbox": {"type": "GIoULoss"}}, "loss_bbox gets fractions of the image"),
        (
            {"loss_cls": {**SOFTMAX, "class_weight": [1.0, 1.0, 1.0, 0.1]}},
            "loss_cls must have one number as its class_weight",
        ),
        ({"loss_iou": {"type": "DistributionFocalLoss"}}, "loss_iou gets pred"),
        ({"assigner": {"type": "MaxIoUAssigner"}}, "MaxIoUAssigner needs a key"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head_of("DETRHead", **changes)
