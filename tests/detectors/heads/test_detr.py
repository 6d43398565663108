"""DETR's heads: layers, matching, normalisers, padding, devices, states, configs and errors."""

import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from head_cases import total, value_and_gradient
from visdet_jax import checked
from visdet_jax.detectors import DETRHead, DETROutputs, build_head

CLASSES, QUERIES, LAYERS = 3, 5, 2
IMAGE = (32, 48)
COSTS = [
    {"type": "FocalLossCost", "weight": 2.0},
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
SOFTMAX = {
    "type": "CrossEntropyLoss",
    "bg_cls_weight": 0.1,
    "use_sigmoid": False,
    "loss_weight": 1.0,
    "class_weight": 1.0,
}
COMMON = {
    "num_classes": CLASSES,
    "embed_dims": 256,
    "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
    "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
}
CONFIGS = {
    "DETRHead": ({"type": "DETRHead", "loss_cls": SOFTMAX, **COMMON}, None),
    "DeformableDETRHead": (
        {
            "type": "DeformableDETRHead",
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 2.0},
            "sync_cls_avg_factor": True,
            "as_two_stage": True,
            **COMMON,
        },
        {"assigner": {"type": "HungarianAssigner", "match_costs": COSTS}},
    ),
}
every_head = pytest.mark.parametrize("name", CONFIGS)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def head_of(name, **changes):
    config, train_cfg = CONFIGS[name]
    return build_head({**config, **changes}, train_cfg)


def outputs_for(head, batch=2, dtype=np.float32, layers=LAYERS, seed=0):
    rng = np.random.default_rng(seed)
    shape = (layers, batch, QUERIES)
    boxes = np.concatenate(
        [rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))], -1
    )
    logits = rng.normal(0, 1, (*shape, head.channels["cls_scores"]))
    return DETROutputs(logits.astype(dtype), boxes.astype(dtype))


def boxes_for(counts, rows=4, dtype=np.float32, filling=np.nan):
    """(boxes, labels, image shapes) of images with so many boxes each, padded to `rows`."""
    rng = np.random.default_rng(1)
    corner, size = rng.uniform(0, 20, (len(counts), rows, 2)), rng.uniform(8, 24, (1, rows, 2))
    boxes = np.concatenate([corner, corner + size], axis=-1)
    exists = np.arange(rows) < np.array(counts)[:, None]
    labels = np.where(exists, rng.integers(0, CLASSES, exists.shape), -1).astype(np.int32)
    shapes = np.tile(np.array(IMAGE, np.int32), (len(counts), 1))
    return np.where(exists[..., None], boxes, filling).astype(dtype), labels, shapes


@functools.cache
def compiled(head, what="usual"):
    """Jitted once for all tests of a head: (losses, gradient of their sum by the outputs)."""

    def value(outputs, batch, gt_inds):
        losses = head.loss(outputs, *batch, gt_inds=gt_inds)
        return total(losses), losses

    def run(outputs, batch, gt_inds=None):
        (_, losses), gradient = jax.value_and_grad(value, has_aux=True)(outputs, batch, gt_inds)
        return losses, gradient

    return jax.jit(run)


NAMES = ["loss_cls", "loss_bbox", "loss_iou", "d0.loss_cls", "d0.loss_bbox", "d0.loss_iou"]


@every_head
def test_one_compilation_for_all_ground_truth(name):
    head = head_of(name)
    outputs = outputs_for(head)
    for counts in ((0, 0), (1, 0), (4, 4), (3, 1)):
        losses, gradient = compiled(head)(outputs, boxes_for(counts))
        assert sorted(losses) == sorted(NAMES)
        for x in jax.tree.leaves((losses, gradient)):
            assert np.isfinite(x).all()
        assert all(loss.shape == () and loss.dtype == jnp.float32 for loss in losses.values())
        assert losses["loss_cls"] > 0
        learns = np.asarray(gradient.bbox_preds).any(-1).sum(-1)
        np.testing.assert_array_equal(learns, [counts] * LAYERS)
        assert (losses["loss_bbox"] > 0) == (losses["loss_iou"] > 0) == (sum(counts) > 0)
    assert compiled(head)._cache_size() == 1


@every_head
def test_padding_may_stand_anywhere_and_hold_anything(name):
    head = head_of(name)
    outputs, (boxes, labels, shapes) = outputs_for(head), boxes_for((3, 2))
    expected = compiled(head)(outputs, (boxes, labels, shapes))
    order = [3, 0, 1, 2]  # the last, which is padding, first
    for filling in (np.inf, 0.0):
        filled, _, _ = boxes_for((3, 2), filling=filling)
        close(compiled(head)(outputs, (filled[:, order], labels[:, order], shapes)), expected)
    without = (np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.int32), shapes)
    close(compiled(head, "empty")(outputs, without), compiled(head)(outputs, boxes_for((0, 0))))


@every_head
def test_layers_are_independent_and_the_matching_is_detached(name):
    """Each layer's losses are those of a decoder of that layer alone, and of its own matching."""
    head = head_of(name)
    outputs, batch = outputs_for(head), boxes_for((3, 1))
    losses, gradient = compiled(head)(outputs, batch)
    for i, prefix in enumerate(("d0.", "")):
        layer, its_gradient = (
            DETROutputs(*(x[i : i + 1] for x in tree[:2])) for tree in (outputs, gradient)
        )
        alone, slope = compiled(head, "one layer")(layer, batch)
        close(alone, {key: losses[prefix + key] for key in alone})
        close(slope, its_gradient)
    found = head.targets(outputs, *batch)
    assert not np.array_equal(found.gt_inds[0], found.gt_inds[1])
    close(compiled(head, "given")(outputs, batch, found.gt_inds), (losses, gradient))
    rolled = jnp.roll(found.gt_inds, 1, axis=2)
    worse, _ = compiled(head, "given")(outputs, batch, rolled)
    assert worse["loss_bbox"] > losses["loss_bbox"]


@every_head
def test_targets(name):
    head = head_of(name)
    outputs, (boxes, labels, shapes) = outputs_for(head), boxes_for((2, 0))
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels, shapes))
    assert targets.gt_inds.shape == (LAYERS, 2, QUERIES)
    for layer in targets.gt_inds:
        assert sorted(layer[0]) == [0, 0, 0, 1, 2]
        assert not layer[1].any()
    matched = targets.gt_inds > 0
    np.testing.assert_array_equal(targets.bbox_weights, matched)
    np.testing.assert_array_equal(targets.label_weights, 1)
    np.testing.assert_array_equal(targets.labels[matched], labels[0][targets.gt_inds[matched] - 1])
    np.testing.assert_array_equal(targets.labels[~matched], CLASSES)
    x1, y1, x2, y2 = boxes[0][targets.gt_inds[matched] - 1].T
    expected = np.stack([(x1 + x2) / 96, (y1 + y2) / 64, (x2 - x1) / 48, (y2 - y1) / 32], -1)
    np.testing.assert_allclose(targets.bbox_targets[matched], expected, rtol=1e-6)


def test_a_given_matching_to_padding_is_no_match():
    head = head_of("DeformableDETRHead")
    outputs, batch = outputs_for(head), boxes_for((1, 0))
    gt_inds = np.zeros((LAYERS, 2, QUERIES), np.int32)
    gt_inds[:, 0, :2] = 1, 3  # the third is padding
    targets = head.targets(outputs, *batch, gt_inds=gt_inds)
    np.testing.assert_array_equal(np.asarray(targets.gt_inds).sum((1, 2)), [1, 1])
    gt_inds[:, 1, 4] = -1  # a query that is left out
    targets = head.targets(outputs, *batch, gt_inds=gt_inds)
    assert not np.asarray(targets.label_weights)[:, 1, 4].any()


def test_more_boxes_than_queries():
    head = head_of("DeformableDETRHead")
    losses, gradient = compiled(head, "many")(outputs_for(head), boxes_for((9, 8), 9))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    assert np.asarray(gradient.bbox_preds).any(-1).all()


def test_the_divisors():
    """DETR's background counts by its weight; Deformable DETR's not at all."""
    batch = boxes_for((3, 1))
    for weights, divisor in (
        ({"class_weight": 1.0, "bg_cls_weight": 0.25}, 4 + 6 * 0.25),
        ({"class_weight": 2.0}, 4 + 6 * 2.0),
        ({}, 4.0),
    ):
        loss_cls = {"type": "CrossEntropyLoss", **weights}
        head = head_of("DETRHead", loss_cls=loss_cls)
        outputs = outputs_for(head, layers=1)
        targets = head.targets(outputs, *batch)
        arguments = (outputs.cls_scores.reshape(-1, CLASSES + 1), targets.labels.reshape(-1))
        expected = head.loss_cls(*arguments, reduction_override="sum") / divisor
        np.testing.assert_allclose(head.loss(outputs, *batch)["loss_cls"], expected, rtol=1e-6)
        other = head_of("DeformableDETRHead", loss_cls=loss_cls, sync_cls_avg_factor=False)
        arguments = (outputs, *batch)
        given = {"gt_inds": targets.gt_inds}
        np.testing.assert_allclose(
            other.loss(*arguments, **given)["loss_cls"], expected * divisor / 4, rtol=1e-6
        )


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
    outputs, batch = outputs_for(head, layers=1), boxes_for((3, 1))
    targets = jax.tree.map(lambda x: np.asarray(x)[0], head.targets(outputs, *batch))
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
    np.testing.assert_allclose(head.loss(outputs, *batch)["loss_cls"], expected, rtol=1e-5)
    slope = jax.grad(
        lambda boxes: head.loss(outputs._replace(bbox_preds=boxes), *batch)["loss_cls"]
    )
    assert not slope(outputs.bbox_preds).any()


def test_proposals_are_of_one_class():
    head = head_of("DeformableDETRHead")
    outputs, (boxes, labels, shapes) = outputs_for(head), boxes_for((3, 1))
    found = outputs_for(head, layers=1, seed=3)
    both = outputs._replace(enc_cls_scores=found.cls_scores[0], enc_bbox_preds=found.bbox_preds[0])
    losses = head.loss(both, boxes, labels, shapes)
    proposals = head.loss(found, boxes, np.minimum(labels, 0), shapes)
    close({key: losses[f"enc_{key}"] for key in proposals}, proposals)
    close({key: losses[key] for key in NAMES}, head.loss(outputs, boxes, labels, shapes))
    with pytest.raises(ValueError, match="enc_cls_scores and enc_bbox_preds come together"):
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
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = 1 / (1 + np.exp(-logits)) if head.use_sigmoid else shares[..., :CLASSES]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_half_floats_are_computed_in_float32():
    head = head_of("DeformableDETRHead")
    batch = boxes_for((3, 1))
    half = outputs_for(head, dtype=jnp.bfloat16)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    losses, gradient = compiled(head, "half")(half, batch)
    expected, exact_gradient = compiled(head)(exact, batch)
    close(losses, expected)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact_gradient)
    chex.assert_trees_all_close(gradient, rounded, rtol=1e-2, atol=1e-5)


def test_float32_stays_float32_where_x64_is_on(x64):
    head = head_of("DeformableDETRHead")
    for value in jax.eval_shape(head.loss, outputs_for(head), *boxes_for((3, 1))).values():
        assert value.dtype == np.float32


# Over several devices.

DEVICES = 8
COUNTS = (3, 0, 1, 0, 2, 1, 4, 0)  # boxes of an image, and each device has one image
exactly = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-14)


def sharded_batch(head):
    return outputs_for(head, DEVICES, np.float64), *boxes_for(COUNTS, dtype=np.float64)


@functools.cache
def on_one_device(name):
    head = head_of(name)
    return jax.device_get(jax.jit(value_and_gradient(head))(*sharded_batch(head)))


# The layers come first, then the images.
SPECS = (P(None, "data"), P("data"), P("data"), P("data"))


@every_head
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_over_sharded_images(name, axis_type, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    head = head_of(name)
    with jax.set_mesh(mesh):
        sharded = tuple(
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip(sharded_batch(head), SPECS, strict=True)
        )
        actual = jax.jit(value_and_gradient(head))(*sharded)
    exactly(jax.device_get(actual), on_one_device(name))


@every_head
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_means_the_devices_losses(name, check_vma, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    head = head_of(name)

    def mean_of_devices(*arguments):
        value, gradient = value_and_gradient(head, "data")(*arguments)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda x: x / DEVICES, gradient)

    mapped = jax.shard_map(
        mean_of_devices,
        mesh=mesh,
        in_specs=SPECS,
        out_specs=(P(), P(None, "data")),
        check_vma=check_vma,
    )
    exactly(jax.device_get(jax.jit(mapped)(*sharded_batch(head))), on_one_device(name))


def test_vmap_with_an_axis_name(x64):
    head = head_of("DETRHead")
    outputs, *batch = sharded_batch(head)
    parts = jax.tree.map(lambda x: x.reshape(LAYERS, 4, 2, *x.shape[2:]), outputs)
    rest = (x.reshape(4, 2, *x.shape[1:]) for x in batch)
    loss = functools.partial(head.loss, axis_name="data")
    losses = jax.jit(jax.vmap(loss, in_axes=(1, 0, 0, 0), axis_name="data"))(parts, *rest)
    (_, expected), _ = on_one_device("DETRHead")
    exactly(jax.tree.map(lambda x: x.mean(), losses), expected)


# As an object.


@every_head
def test_a_head_is_frozen_hashable_and_without_leaves(name):
    head, twin = head_of(name), head_of(name)
    assert head == twin
    assert hash(head) == hash(twin)
    assert head != head_of(name, num_classes=4)
    assert jax.tree.leaves(head) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.num_classes = 4
    assert head.init() == dict.fromkeys(["loss_cls", "loss_bbox", "loss_iou"], ())

    class Model(nnx.Module):
        def __init__(self):
            self.head = head_of(name)

    outputs, batch = outputs_for(head), boxes_for((3, 1))
    close(Model().head.loss(outputs, *batch), head.loss(outputs, *batch))
    traces = []

    @jax.jit
    def traced(head, outputs, *batch):
        traces.append(head)
        return head.loss(outputs, *batch)

    for _ in range(3):
        traced(head_of(name), outputs, *batch)
    assert len(traces) == 1


def test_defaults_are_mmdets():
    assert DETRHead(num_classes=CLASSES) == head_of("DETRHead")


def test_statistics_go_from_layer_to_layer():
    config = {"type": "GHMC", "bins": 5, "momentum": 0.75}
    head = head_of("DeformableDETRHead", loss_cls=config)
    outputs, batch = outputs_for(head), boxes_for((3, 1))
    with pytest.raises(TypeError, match="DeformableDETRHead: loss_cls keeps running statistics"):
        head.loss(outputs, *batch)
    losses, state = jax.jit(head.update)(head.init(), outputs, *batch)
    targets, own = head.targets(outputs, *batch), head.loss_cls.init()
    for i, prefix in enumerate(("d0.", "")):
        logits = outputs.cls_scores[i].reshape(-1, CLASSES)
        value, own = head.loss_cls.update(own, logits, targets.labels[i].reshape(-1))
        np.testing.assert_allclose(losses[f"{prefix}loss_cls"], value, rtol=1e-6)
    close(state["loss_cls"], own)
    with pytest.raises(ValueError, match="state must come from init"):
        head.update({}, outputs, *batch)


def test_export_with_any_number_of_images():
    head = head_of("DETRHead")
    outputs, batch = outputs_for(head), boxes_for((2, 1))
    (images,) = export.symbolic_shape("images")

    def any_images(axis):
        def shape(x):
            dims = [*x.shape]
            dims[axis] = images
            return jax.ShapeDtypeStruct(tuple(dims), x.dtype)

        return shape

    shapes = (jax.tree.map(any_images(1), outputs), *map(any_images(0), batch))
    function = jax.jit(lambda *arguments: head.loss(*arguments))
    program = export.export(function, platforms=("cpu", "cuda", "tpu"))(*shapes)
    call = export.deserialize(program.serialize()).call
    close(call(outputs, *batch), head.loss(outputs, *batch))
    one = (jax.tree.map(lambda x: x[:, :1], outputs), *(x[:1] for x in batch))
    close(call(*one), head.loss(*one))


# Errors.


def test_checked():
    head = head_of("DeformableDETRHead")
    outputs, (boxes, labels, shapes) = outputs_for(head), boxes_for((3, 1))
    close(
        checked(head).loss(outputs, boxes, labels, shapes),
        head.loss(outputs, boxes, labels, shapes),
    )
    for spoil, message in (
        ((outputs._replace(bbox_preds=outputs.bbox_preds * np.nan), boxes, labels), "bbox_preds"),
        ((outputs, boxes, labels + CLASSES), "gt_labels"),
        ((outputs, boxes + 100, labels), "gt_boxes.*lies outside its image"),
        ((outputs, boxes, labels * 0 - 1), "every image is without ground truth"),
    ):
        with pytest.raises(checkify.JaxRuntimeError, match=f"DeformableDETRHead: .*{message}"):
            checked(head).loss(*spoil, shapes)


def test_inputs_that_do_not_fit():
    head = head_of("DeformableDETRHead")
    outputs, (boxes, labels, shapes) = outputs_for(head), boxes_for((3, 1))
    for arguments, error, message in (
        ((tuple(outputs), boxes, labels, shapes), TypeError, "outputs must be DETROutputs"),
        ((outputs, boxes[0], labels, shapes), ValueError, "gt_boxes must have shape (2, G, 4)"),
        ((outputs, boxes, labels[:1], shapes), ValueError, "gt_labels must have shape (2, 4)"),
        ((outputs, boxes, labels, None), ValueError, "image_shapes must have shape (2, 2), got ()"),
        (
            (outputs._replace(cls_scores=outputs.cls_scores[..., :2]), boxes, labels, shapes),
            ValueError,
            "cls_scores must have shape (L, B, Q, 3), got (2, 2, 5, 2)",
        ),
        (
            (outputs._replace(bbox_preds=outputs.bbox_preds[:, :, :3]), boxes, labels, shapes),
            ValueError,
            "cls_scores and bbox_preds must have the same (L, B, Q), got (2, 2, 5) and (2, 2, 3)",
        ),
    ):
        with pytest.raises(error, match=re.escape(f"DeformableDETRHead: {message}")):
            head.loss(*arguments)
    with pytest.raises(ValueError, match=r"gt_inds must have shape \(2, 2, 5\)"):
        head.loss(outputs, boxes, labels, shapes, gt_inds=np.zeros((2, 5), np.int32))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_bbox": {"type": "GIoULoss"}}, "loss_bbox gets centres and sizes"),
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
