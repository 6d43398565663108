"""The laws of the heads of a second stage: samples, losses, padding, devices, exports, errors."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from programs import temporary_bytes
from visdet_jax import checked
from visdet_jax.detectors import (
    KeptDetections,
    Proposals,
    RoIOutputs,
    StandardRoIHead,
    build_head,
)

CLASSES, BATCH, BOXES, PROPOSALS, SLOTS, MASK = 3, 4, 3, 20, 12, 4
HEIGHT, WIDTH = 40, 48
DEVICES = 4
BBOX_HEAD = {
    "type": "Shared2FCBBoxHead",
    "num_classes": CLASSES,
    "loss_cls": {"type": "CrossEntropyLoss"},
    "loss_bbox": {"type": "L1Loss"},
}
MASK_HEAD = {"type": "FCNMaskHead", "num_classes": CLASSES}
RCNN = {
    "assigner": {
        "type": "MaxIoUAssigner",
        "pos_iou_thr": 0.5,
        "neg_iou_thr": 0.5,
        "min_pos_iou": 0.5,
        "match_low_quality": True,
    },
    "sampler": {
        "type": "RandomSampler",
        "num": SLOTS,
        "pos_fraction": 0.5,
        "neg_pos_ub": -1,
        "add_gt_as_proposals": True,
    },
    "pos_weight": -1,
    "debug": False,
    "mask_size": MASK,
}
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def roi_head(bbox_head=(), train_cfg=(), **changes):
    config = {
        "type": "StandardRoIHead",
        "bbox_head": {**BBOX_HEAD, **dict(bbox_head)},
        "mask_head": MASK_HEAD,
        **changes,
    }
    return build_head(config, {**RCNN, **dict(train_cfg)})


def proposals_and_truth(dtype=np.float32, batch=BATCH, seed=0, counts=(3, 0, 1, 2)):
    """Proposals, some of them near the boxes; boxes, labels, bitmaps. NaN in the padding."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 20, (batch, BOXES, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 20, corner.shape)], axis=-1)
    exists = np.arange(BOXES) < np.array(counts)[:batch, None]
    labels = np.where(exists, rng.integers(CLASSES, size=exists.shape), -1).astype(np.int32)
    far = rng.uniform(0, 25, (batch, PROPOSALS - BOXES, 2))
    far = np.concatenate([far, far + rng.uniform(4, 15, far.shape)], axis=-1)
    near = boxes + rng.normal(0, 0.7, boxes.shape)
    proposed = np.concatenate([far[:, :9], near, far[:, 9:]], axis=1)
    there = np.arange(PROPOSALS) < np.array([20, 5, 20, 14])[:batch, None]
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    x1, y1, x2, y2 = np.moveaxis(boxes, -1, 0)[..., None, None]
    masks = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).astype(np.uint8)
    return (
        Proposals(np.where(there[..., None], proposed, np.nan).astype(dtype), there),
        np.where(exists[..., None], boxes, np.nan).astype(dtype),
        labels,
        masks,
    )


def outputs_for(head, samples, dtype=np.float32, seed=1):
    """What a network might give for the samples of a stage."""
    rng = np.random.default_rng(seed)
    batch, slots = samples.boxes.shape[:2]
    channels = head.bbox_head.channels
    shapes = [(batch, slots, channels[name]) for name in ("cls_scores", "bbox_preds")]
    if head.mask_head is not None:
        shapes.append((batch, head.mask_slots(samples), MASK, MASK, head.mask_head.channels))
    return RoIOutputs(*(rng.normal(0, 1, shape).astype(dtype) for shape in shapes))


def batch_for(head, dtype=np.float32, **options):
    """Outputs, samples and bitmaps: the arguments of `loss`."""
    *candidates, masks = proposals_and_truth(dtype, **options)
    samples = head.sample(*candidates, key=jax.random.key(0))
    return outputs_for(head, samples, dtype), samples, masks


@functools.cache
def compiled(head, axis_name=None):
    def total(outputs, samples, masks):
        losses = head.loss(outputs, samples, masks, axis_name=axis_name)
        return sum(losses.values()), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_what_is_sampled():
    head = roi_head()
    proposals, boxes, labels, _ = proposals_and_truth()
    samples = head.sample(proposals, boxes, labels, key=jax.random.key(3))
    targets = jax.tree.map(np.asarray, samples.targets)
    assert samples.boxes.shape == (BATCH, SLOTS, 4)
    assert targets.gt_inds.shape == targets.labels.shape == (BATCH, SLOTS)
    positive, exists = targets.gt_inds > 0, targets.gt_inds >= 0
    counts = positive.sum(1)
    assert ((counts > 0) == [True, False, True, True]).all()
    assert (counts <= SLOTS // 2).all()
    for i in range(BATCH):
        order = np.asarray(samples.candidates[i])
        assert positive[i, : counts[i]].all()  # Positives first, both kinds by candidate.
        assert (np.diff(order[: counts[i]]) > 0).all()
        assert (np.diff(order[counts[i] : exists[i].sum()]) > 0).all()
        for slot in np.flatnonzero(positive[i]):
            assert targets.labels[i, slot] == labels[i, targets.gt_inds[i, slot] - 1]
    np.testing.assert_array_equal(targets.labels[~positive], CLASSES)
    np.testing.assert_array_equal(samples.is_gt, exists & (np.asarray(samples.candidates) < BOXES))
    np.testing.assert_array_equal(targets.label_weights, exists)
    assert not np.asarray(samples.boxes)[~exists].any()
    again = head.sample(proposals, boxes, labels, key=jax.random.key(4))
    assert not np.array_equal(again.candidates, samples.candidates)


def test_what_was_sampled_can_be_given():
    head = roi_head()
    proposals, boxes, labels, _ = proposals_and_truth()
    drawn = head.sample(proposals, boxes, labels, key=jax.random.key(3))
    chosen = np.zeros((BATCH, BOXES + PROPOSALS), np.int64)
    for i, row in enumerate(np.asarray(drawn.candidates)):
        exists = row >= 0
        positive = np.asarray(drawn.targets.gt_inds[i])[exists] > 0
        chosen[i, row[exists]] = np.where(positive, 1, 2)
    chex.assert_trees_all_equal(head.sample(proposals, boxes, labels, chosen=chosen), drawn)


def test_proposals_of_an_rpn_are_taken_as_they_are():
    head = roi_head()
    proposals, *truth, _ = proposals_and_truth()
    scores = np.ones(proposals.exists.shape, np.float32)
    index = np.zeros(proposals.exists.shape, np.int32)
    kept = KeptDetections(proposals.boxes, scores, index, index, proposals.exists)
    key = jax.random.key(0)
    expected = head.sample(proposals, *truth, key=key)
    chex.assert_trees_all_equal(head.sample(kept, *truth, key=key), expected)


def test_a_sampler_that_draws_nothing_needs_no_key():
    head = roi_head(train_cfg={"sampler": {"type": "PseudoSampler"}})
    proposals, boxes, labels, _ = proposals_and_truth()
    samples = head.sample(proposals, boxes, labels)
    assert samples.boxes.shape[1] == BOXES + PROPOSALS
    exists = np.asarray(samples.targets.gt_inds) >= 0
    np.testing.assert_array_equal(exists.sum(1), proposals.exists.sum(1))  # No ground truth added.


def test_the_hardest_are_sampled_by_their_losses():
    head = roi_head(train_cfg={"sampler": {"type": "OHEMSampler", "num": 8, "pos_fraction": 0.25}})
    proposals, boxes, labels, _ = proposals_and_truth()
    losses = np.random.default_rng(0).random((BATCH, BOXES + PROPOSALS)).astype(np.float32)
    samples = head.sample(proposals, boxes, labels, losses=losses)
    everything = roi_head(train_cfg={"sampler": {"type": "PseudoSampler"}})
    assigned = everything.sample(proposals, boxes, labels)
    for i in range(BATCH):
        negatives = np.asarray(assigned.candidates[i])[np.asarray(assigned.targets.gt_inds[i]) == 0]
        chosen = np.asarray(samples.candidates[i])[np.asarray(samples.targets.gt_inds[i]) == 0]
        hardest = negatives[np.argsort(-losses[i, negatives])][: len(chosen)]
        assert set(chosen) == set(hardest)
    with pytest.raises(ValueError, match=r"StandardRoIHead: .*losses"):
        head.sample(proposals, boxes, labels)


@pytest.mark.parametrize("fill", [np.nan, 1e30, -5.0])
def test_nothing_is_read_of_empty_slots(fill):
    head = roi_head()
    outputs, samples, masks = batch_for(head)
    (_, losses), gradient = compiled(head)(outputs, samples, masks)
    empty = np.asarray(samples.targets.gt_inds) < 0
    positive = np.asarray(samples.targets.gt_inds) > 0
    assert empty.any()
    filled = RoIOutputs(
        np.where(empty[..., None], np.float32(fill), outputs.cls_scores),
        np.where(positive[..., None], outputs.bbox_preds, np.float32(fill)),
        np.where(
            positive[:, : outputs.mask_preds.shape[1], None, None, None],
            outputs.mask_preds,
            np.float32(fill),
        ),
    )
    (_, again), other = compiled(head)(filled, samples, masks)
    chex.assert_trees_all_equal((again, other), (losses, gradient))


@pytest.mark.parametrize("what", ["no ground truth", "no proposals", "neither", "more slots"])
def test_one_compilation_whatever_there_is(what):
    head = roi_head()
    proposals, boxes, labels, masks = proposals_and_truth()
    if what in ("no ground truth", "neither"):
        labels = np.full_like(labels, -1)
    if what in ("no proposals", "neither"):
        proposals = proposals._replace(exists=np.zeros_like(proposals.exists))
    if what == "more slots":
        proposals = proposals._replace(exists=proposals.exists & (np.arange(PROPOSALS) < 2))
    samples = head.sample(proposals, boxes, labels, key=jax.random.key(0))
    outputs = outputs_for(head, samples)
    size = compiled(head)._cache_size()
    (total, losses), gradient = compiled(head)(outputs, samples, masks)
    assert compiled(head)._cache_size() <= max(size, 1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    assert (total > 0) == (what != "neither")
    has_positives = bool(np.any(np.asarray(samples.targets.gt_inds) > 0))
    assert (losses["loss_mask"] > 0) == (losses["loss_bbox"] > 0) == has_positives


def test_by_hand():
    """The three losses of a batch, in NumPy."""
    head = roi_head()
    outputs, samples, masks = batch_for(head)
    losses = head.loss(outputs, samples, masks)
    targets = jax.tree.map(np.asarray, samples.targets)
    exists, positive = targets.gt_inds >= 0, targets.gt_inds > 0
    logits = outputs.cls_scores.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, targets.labels[..., None], -1)[..., 0]
    close(losses["loss_cls"], np.float32(-own[exists].mean()))
    by_class = outputs.bbox_preds.reshape(BATCH, SLOTS, CLASSES, 4)[positive]
    pred = by_class[np.arange(len(by_class)), targets.labels[positive]]
    distance = np.abs(pred - targets.bbox_targets[positive]).sum()
    close(losses["loss_bbox"], np.float32(distance / exists.sum()))
    learnt = np.asarray(head.mask_targets(samples, masks))
    positive = positive[:, : learnt.shape[1]]
    labels = targets.labels[:, : learnt.shape[1]][positive]
    x = outputs.mask_preds[positive][np.arange(len(labels)), ..., labels].astype(np.float64)
    bce = np.logaddexp(0, x) - x * learnt[positive]
    close(losses["loss_mask"], np.float32(bce.mean()))


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_floats_are_computed_in_float32(dtype):
    head = roi_head()
    outputs, samples, masks = batch_for(head)
    half = jax.tree.map(lambda x: jnp.asarray(x, dtype), outputs)
    (_, losses), gradient = compiled(head)(half, samples, masks)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    close(losses, compiled(head)(wide, samples, masks)[0][1])
    assert all(x.dtype == jnp.float32 for x in losses.values())
    assert all(x.dtype == dtype for x in jax.tree.leaves(gradient))


def test_vmap_over_batches_is_the_loop():
    head = roi_head()
    batches = [batch_for(head, seed=seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    mapped = jax.jit(jax.vmap(head.loss))(*stacked)
    for i, batch in enumerate(batches):
        close(jax.tree.map(lambda x, i=i: x[i], mapped), compiled(head)(*batch)[0][1])


def test_vmap_over_a_hyperparameter():
    outputs, samples, masks = batch_for(roi_head())

    def losses_of(weight):
        bbox = {"loss_bbox": {"type": "L1Loss", "loss_weight": weight}}
        return roi_head(bbox).loss(outputs, samples, masks)

    swept = jax.jit(jax.vmap(losses_of))(jnp.array([1.0, 3.0]))
    alone = roi_head().loss(outputs, samples, masks)
    close(swept["loss_bbox"], alone["loss_bbox"] * jnp.array([1.0, 3.0]))
    close(swept["loss_cls"], jnp.full(2, alone["loss_cls"]))


# Over several devices.


@pytest.mark.long
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_over_sharded_images(axis_type, x64):
    head = roi_head()
    *candidates, masks = proposals_and_truth(np.float64)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    samples = head.sample(*candidates, key=jax.random.key(0))
    outputs = outputs_for(head, samples, np.float64)
    expected = compiled(head)(outputs, samples, masks)
    with jax.set_mesh(mesh):
        images = NamedSharding(mesh, P("data"))
        candidates, outputs, masks = jax.device_put((candidates, outputs, masks), images)
        spread = head.sample(*candidates, key=jax.random.key(0))
        found = jax.device_get(compiled(head)(outputs, spread, masks))
    chex.assert_trees_all_equal(jax.device_get(spread), jax.device_get(samples))
    close(found, jax.device_get(expected), rtol=1e-12, atol=1e-14)


@pytest.mark.long
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_means_the_devices_losses(check_vma, x64):
    head = roi_head()
    *candidates, masks = proposals_and_truth(np.float64)
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    samples = head.sample(*candidates, key=jax.random.key(0))
    outputs = outputs_for(head, samples, np.float64)
    chosen = np.zeros((BATCH, BOXES + PROPOSALS), np.int8)
    for i, row in enumerate(np.asarray(samples.candidates)):
        positive = np.asarray(samples.targets.gt_inds[i]) > 0
        chosen[i, row[row >= 0]] = np.where(positive[row >= 0], 1, 2)

    def mean_of_devices(proposals, boxes, labels, chosen, outputs, masks):
        own = head.sample(proposals, boxes, labels, chosen=chosen)
        value, gradient = compiled(head, "data")(outputs, own, masks)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda x: x / DEVICES, gradient)

    mapped = jax.shard_map(
        mean_of_devices,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data")),
        check_vma=check_vma,
    )
    found = jax.jit(mapped)(*candidates, chosen, outputs, masks)
    expected = compiled(head)(outputs, samples, masks)
    close(jax.device_get(found), jax.device_get(expected), rtol=1e-12, atol=1e-14)


def test_export():
    head = roi_head()
    batch = batch_for(head)
    exported = export.export(jax.jit(head.loss))(*batch)
    restored = export.deserialize(exported.serialize())
    close(restored.call(*batch), head.loss(*batch))


# States.


def test_statistics_are_carried():
    head = roi_head({"loss_cls": {"type": "SeesawLoss", "num_classes": CLASSES}})
    outputs, samples, masks = batch_for(head)
    with pytest.raises(TypeError, match="StandardRoIHead: bbox_head keeps running statistics"):
        head.loss(outputs, samples, masks)
    losses, state = head.update(head.init(), outputs, samples, masks)
    assert losses.keys() == {
        "loss_cls_objectness",
        "loss_cls_classes",
        "loss_bbox",
        "loss_mask",
    }
    labels = np.asarray(samples.targets.labels)[np.asarray(samples.targets.gt_inds) >= 0]
    counts = state["bbox_head"]["loss_cls"].cum_samples
    np.testing.assert_array_equal(counts, np.bincount(labels, minlength=CLASSES + 1))
    with pytest.raises(ValueError, match="state must come from init"):
        head.update({}, outputs, samples, masks)


# A cascade.


def cascade(**changes):
    thresholds = (0.5, 0.6, 0.7)
    assigner = dict(RCNN["assigner"], match_low_quality=False)
    stages = [
        {**RCNN, "assigner": {**assigner, **dict.fromkeys(("pos_iou_thr", "neg_iou_thr"), x)}}
        for x in thresholds
    ]
    config = {
        "type": "CascadeRoIHead",
        "num_stages": 3,
        "stage_loss_weights": [1, 0.5, 0.25],
        "bbox_head": [BBOX_HEAD] * 3,
        "mask_head": MASK_HEAD,
        **changes,
    }
    return build_head(config, stages, {"score_thr": 0.0, "max_per_img": 7})


@pytest.mark.long
def test_a_cascade_is_its_stages():
    head = cascade()
    proposals, *truth, masks = proposals_and_truth()
    shapes = np.tile([HEIGHT, WIDTH], (BATCH, 1))
    outputs, samples, expected = [], [], {}
    weights = (1, 0.5, 0.25)
    for number, (stage, weight) in enumerate(zip(head.stages, weights, strict=True)):
        samples.append(stage.sample(proposals, *truth, key=jax.random.key(number)))
        outputs.append(outputs_for(stage, samples[-1], seed=number))
        alone = stage.loss(outputs[-1], samples[-1], masks)
        expected |= {f"s{number}.{key}": weight * x for key, x in alone.items()}
        proposals = stage.refine(outputs[-1], samples[-1], shapes)
        exists = np.asarray(samples[-1].targets.gt_inds) >= 0
        np.testing.assert_array_equal(proposals.exists, exists & ~np.asarray(samples[-1].is_gt))
        assert (np.asarray(proposals.boxes) <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()
    close(head.loss(outputs, samples, masks), expected)
    with pytest.raises(ValueError, match="CascadeRoIHead: outputs must be a list of 3"):
        head.loss(outputs[:2], samples, masks)


@pytest.mark.long
def test_a_cascade_detects_by_the_mean_of_its_stages():
    head = cascade()
    proposals, *_ = proposals_and_truth()
    shapes = np.tile([HEIGHT, WIDTH], (BATCH, 1))
    outputs = []
    for number, stage in enumerate(head.stages):
        like = stage.sample(
            proposals, *proposals_and_truth()[1:3], chosen=np.ones((BATCH, 23), np.int8)
        )
        rng = np.random.default_rng(number)
        shape = proposals.boxes.shape[:2]
        outputs.append(
            RoIOutputs(
                rng.normal(size=(*shape, CLASSES + 1)).astype(np.float32),
                rng.normal(size=(*shape, CLASSES * 4)).astype(np.float32),
            )
        )
        assert like.boxes.shape[1] == SLOTS
        if number < 2:
            proposals = stage.refine(outputs[-1], proposals, shapes)
    found = head.detect(outputs, proposals, shapes)
    assert found.boxes.shape == (BATCH, 7, 4)
    scores = np.mean([jax.nn.softmax(x.cls_scores)[..., :CLASSES] for x in outputs], axis=0)
    for i in range(BATCH):
        for slot in np.flatnonzero(found.exists[i]):
            score = scores[i, found.indices[i, slot], found.labels[i, slot]]
            np.testing.assert_allclose(found.scores[i, slot], score, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox_head": [BBOX_HEAD] * 2}, "bbox_head must have 3 entries, one for each stage, got"),
        ({"stage_loss_weights": [1, 1]}, "one weight for each of one stage or more, got 3 stages"),
        ({"stage_loss_weights": [1, 1, -1]}, "stage_loss_weights must be at least 0"),
    ],
)
def test_cascades_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=f"CascadeRoIHead: .*{message}"):
        cascade(**changes)


# `checked`.


def test_checked():
    head = checked(roi_head())
    outputs, samples, masks = batch_for(head.wrapped)
    head.loss(outputs, samples, masks)
    scores = outputs.cls_scores.copy()
    scores[2, 0, 1] = np.inf
    with pytest.raises(ValueError, match=r"outputs.cls_scores\[2, 0, 1\] is inf: must be finite"):
        head.loss(outputs._replace(cls_scores=scores), samples, masks)
    empty = samples.targets._replace(gt_inds=jnp.full_like(samples.targets.gt_inds, -2))
    with pytest.raises(ValueError, match="no region was sampled"):
        head.loss(outputs, samples._replace(targets=empty), masks)


# Memory.


def test_neither_the_boxes_nor_the_bitmaps_of_all_regions_are_in_memory_at_once():
    head = roi_head()
    rng = np.random.default_rng(0)
    count, size = 64, 256
    corner = rng.uniform(0, 200, (1, count, 2))
    boxes = np.concatenate([corner, corner + 50], axis=-1).astype(np.float32)
    proposals = Proposals(boxes, np.ones((1, count), bool))
    labels = np.zeros((1, count), np.int32)
    samples = head.sample(proposals, boxes, labels, chosen=np.ones((1, 2 * count), np.int8))
    masks = np.ones((1, count, size, size), np.uint8)
    outputs = outputs_for(head, samples)
    needed = temporary_bytes(head.loss, outputs, samples, masks)
    assert needed < SLOTS * size * size * 4


# Evaluation.


def test_masks_are_pasted_into_the_image():
    head = roi_head(test_cfg={"score_thr": 0.0, "max_per_img": 5, "mask_thr_binary": 0.5})
    proposals, *_ = proposals_and_truth()
    shape = proposals.boxes.shape[:2]
    rng = np.random.default_rng(0)
    outputs = RoIOutputs(
        rng.normal(size=(*shape, CLASSES + 1)).astype(np.float32),
        rng.normal(size=(*shape, CLASSES * 4)).astype(np.float32),
    )
    found = head.detect(outputs, proposals, np.tile([HEIGHT, WIDTH], (BATCH, 1)))
    # The mask of a detection's own class is full, those of the others are empty.
    own = np.asarray(found.labels)[..., None] == np.arange(CLASSES)
    logits = np.where(own[:, :, None, None], 9.0, -9.0).astype(np.float32)
    logits = np.broadcast_to(logits, (BATCH, 5, MASK, MASK, CLASSES))
    bitmaps = np.asarray(head.paste_masks(logits, found, image_shape=(HEIGHT, WIDTH)))
    assert bitmaps.shape == (BATCH, 5, HEIGHT, WIDTH)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for i, j in np.ndindex(BATCH, 5):
        x1, y1, x2, y2 = np.asarray(found.boxes[i, j])
        inside = (x > x1 + 1) & (x < x2 - 1) & (y > y1 + 1) & (y < y2 - 1)
        outside = (x < x1 - 1) | (x > x2 + 1) | (y < y1 - 1) | (y > y2 + 1)
        assert bitmaps[i, j][inside].all() == bool(found.exists[i, j]) or not inside.any()
        assert not bitmaps[i, j][outside].any()
    with pytest.raises(ValueError, match="StandardRoIHead: mask_preds must have shape"):
        head.paste_masks(logits[:, :3], found, image_shape=(HEIGHT, WIDTH))
    with pytest.raises(ValueError, match="this head has no mask_head"):
        roi_head(mask_head=None).paste_masks(logits, found, image_shape=(HEIGHT, WIDTH))


# What does not fit.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cls_scores": np.zeros((BATCH, SLOTS, 3), np.float32)}, "cls_scores must have shape"),
        ({"bbox_preds": np.zeros((BATCH, SLOTS, 4), np.float32)}, "bbox_preds must have shape"),
        ({"mask_preds": None}, "gt_masks and outputs.mask_preds must be given"),
        (
            {"mask_preds": np.zeros((BATCH, 2, MASK, MASK, CLASSES), np.float32)},
            "mask_preds must have the masks of the first 6 samples or more",
        ),
        (
            {"mask_preds": np.zeros((BATCH, 6, MASK, 5, CLASSES), np.float32)},
            "mask_preds must have shape (4, M, 4, 4, 3), got (4, 6, 4, 5, 3)",
        ),
    ],
)
def test_outputs_that_do_not_fit(changes, message):
    head = roi_head()
    outputs, samples, masks = batch_for(head)
    with pytest.raises(ValueError, match=re.escape(f"StandardRoIHead: {message}")):
        head.loss(outputs._replace(**changes), samples, masks)


def test_candidates_that_do_not_fit():
    head = roi_head()
    proposals, boxes, labels, _ = proposals_and_truth()
    key = jax.random.key(0)
    for arguments, options, error, message in (
        ((proposals, boxes, labels), {}, ValueError, "RandomSampler draws: give key="),
        ((proposals.boxes, boxes, labels), {"key": key}, TypeError, "proposals must be Proposals"),
        ((proposals, boxes[:2], labels), {"key": key}, ValueError, "gt_boxes must have shape (4, "),
        ((proposals, boxes, labels * 1.0), {"key": key}, TypeError, "gt_labels must hold integer"),
        (
            (proposals, boxes, labels),
            {"chosen": np.zeros((BATCH, 3), np.int8)},
            ValueError,
            "chosen must have shape (4, 23), got (4, 3)",
        ),
        (
            (proposals._replace(exists=proposals.exists[:, :3]), boxes, labels),
            {"key": key},
            ValueError,
            "proposals must be boxes (B, P, 4) and exists (B, P), got",
        ),
    ):
        with pytest.raises(error, match=re.escape(f"StandardRoIHead: {message}")):
            head.sample(*arguments, **options)


def test_configs_that_do_not_fit():
    box_loss = {"loss_bbox": {"type": "GIoULoss"}}
    with pytest.raises(ValueError, match="needs boxes: set reg_decoded_bbox=True"):
        roi_head(box_loss)
    assert isinstance(roi_head({**box_loss, "reg_decoded_bbox": True}), StandardRoIHead)
    with pytest.raises(ValueError, match="loss_mask must have use_mask=True"):
        roi_head(mask_head={**MASK_HEAD, "loss_mask": {"type": "CrossEntropyLoss"}})
    with pytest.raises(ValueError, match="No branch of a RoI head is called 'SABLHead'"):
        roi_head({"type": "SABLHead"})
    head = roi_head(mask_head=None, test_cfg={"nms": {"type": "soft_nms"}})
    outputs, samples, _ = batch_for(head)
    proposals = Proposals(samples.boxes, samples.candidates >= 0)
    with pytest.raises(ValueError, match="is not here: detect takes"):
        head.detect(outputs, proposals)
