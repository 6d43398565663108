"""The laws of MaskFormer's and Mask2Former's heads, and what only they do.

Their numbers are compared with mmdet's in test_golden_masks.py.
"""

import dataclasses
import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import export
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cases import few
from head_cases import total
from programs import temporary_bytes
from visdet_jax import checked
from visdet_jax.core.docstrings import parse
from visdet_jax.detectors import (
    HEADS,
    Mask2FormerHead,
    MaskFormerHead,
    MaskFormerOutputs,
    MaskPoints,
    build_detector,
    build_head,
)

CLASSES, LAYERS, QUERIES, POINTS = 3, 2, 5, 16
SIZE, WHOLE = (6, 8), (12, 16)  # Of the predicted masks, and of the ground truth.
KEY = jax.random.key(0)
NAMES = [f"{prefix}loss_{part}" for prefix in ("", "d0.") for part in ("cls", "mask", "dice")]
SOFTMAX = {"type": "CrossEntropyLoss", "class_weight": [1.0, 1.0, 1.0, 0.1]}
DICE = {"type": "DiceLoss", "use_sigmoid": True, "naive_dice": True, "eps": 1.0}
SIGMOID = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 5.0}
FOCAL = {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 20.0}
CONFIGS = {
    "MaskFormerHead": {"loss_mask": FOCAL, "loss_dice": DICE},
    "Mask2FormerHead": {"loss_mask": SIGMOID, "loss_dice": DICE, "num_points": POINTS},
}
every_head = pytest.mark.parametrize("name", few(CONFIGS, ["Mask2FormerHead"]))
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def head_of(name, **changes):
    classes = {"num_things_classes": 2, "num_stuff_classes": 1}
    return build_head({"type": name, **classes, "loss_cls": SOFTMAX, **CONFIGS[name], **changes})


def options_for(name, batch=2, dtype=np.float32, seed=1):
    """The points of Mask2Former, as the other arguments are given: by name."""
    if name == "MaskFormerHead":
        return {}
    rng = np.random.default_rng(seed)
    shapes = ((LAYERS, batch, POINTS, 2), *((LAYERS, batch, QUERIES, n, 2) for n in (48, 4)))
    return {"points": MaskPoints(*(rng.uniform(size=shape).astype(dtype) for shape in shapes))}


def outputs_for(batch=2, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((LAYERS, batch, QUERIES, CLASSES + 1), (LAYERS, batch, QUERIES, *SIZE))
    return MaskFormerOutputs(*(rng.normal(0, 2, shape).astype(dtype) for shape in shapes))


def truth_for(counts, rows=4, dtype=np.float32):
    """(labels, masks) of images with so many masks each, padded to `rows` with NaN."""
    rng = np.random.default_rng(2)
    exists = np.arange(rows) < np.array(counts)[:, None]
    labels = np.where(exists, rng.integers(0, CLASSES, exists.shape), -1).astype(np.int32)
    masks = rng.uniform(size=(*exists.shape, *WHOLE)) < 0.4
    return labels, np.where(exists[..., None, None], masks, np.nan).astype(dtype)


def batch_for(counts=(3, 1), dtype=np.float32):
    return outputs_for(len(counts), dtype), *truth_for(counts)


def step(head, outputs, labels, masks, options):
    """(losses, gradient of their sum by the outputs)"""

    def value(outputs):
        losses = head.loss(outputs, labels, masks, **options)
        return total(losses), losses

    (_, losses), gradient = jax.value_and_grad(value, has_aux=True)(outputs)
    return losses, gradient


@functools.cache
def compiled(name, kind="usual"):
    """Jitted once for all tests of a head: `step`. Another kind has other shapes or types."""
    return jax.jit(functools.partial(step, head_of(name)))


def assert_sound(losses, gradient):
    assert set(losses) == set(NAMES)
    for x in jax.tree.leaves((losses, gradient)):
        assert np.isfinite(x).all()
    assert all(loss.shape == () and loss.dtype == jnp.float32 for loss in losses.values())


# Ground truth: any number of masks, padding, labels.


@pytest.mark.long
@every_head
def test_any_number_of_masks_is_one_program(name):
    """As many queries learn a mask as there are masks, or all."""
    options = options_for(name)
    for counts in ((0, 0), (1, 0), (4, 4), (3, 1)):
        losses, gradient = compiled(name)(*batch_for(counts), options)
        assert_sound(losses, gradient)
        learns = np.asarray(gradient.mask_preds).any((-1, -2)).sum(-1)
        np.testing.assert_array_equal(learns, [counts] * LAYERS)
        assert (losses["loss_mask"] > 0) == (losses["loss_dice"] > 0) == (sum(counts) > 0)
        assert losses["loss_cls"] > 0
    assert compiled(name)._cache_size() == 1
    outputs, expected = outputs_for(), compiled(name)(*batch_for((0, 0)), options)
    nothing = np.zeros((2, 0), np.int32), np.zeros((2, 0, *WHOLE), bool)
    close(compiled(name, "no rows")(outputs, *nothing, options), expected)


@every_head
def test_padding_may_stand_anywhere_and_hold_anything(name):
    outputs, labels, masks = batch_for((3, 2))
    options, order = options_for(name), [3, 0, 1, 2]  # The last, which is padding, first.
    expected = compiled(name)(outputs, labels, masks, options)
    for filling, mark in ((np.nan, -1), (np.inf, -7), (1.0, -1)):
        filled = np.where(labels[..., None, None] < 0, np.float32(filling), masks)
        marked = np.where(labels < 0, mark, labels)
        close(compiled(name)(outputs, marked[:, order], filled[:, order], options), expected)


@pytest.mark.long
@every_head
def test_more_masks_than_queries(name):
    outputs, options = outputs_for(), options_for(name)
    losses, gradient = compiled(name, "many")(outputs, *truth_for((9, 8), 9), options)
    assert_sound(losses, gradient)
    assert np.asarray(gradient.mask_preds).any((-1, -2)).all()


@pytest.mark.long
@every_head
def test_masks_and_labels_of_every_type(name):
    outputs, labels, masks = batch_for((4, 4))
    options = options_for(name)
    expected = compiled(name)(outputs, labels, masks, options)
    for of_labels, of_masks in ((np.int8, bool), (np.uint16, jnp.bfloat16)):
        given = labels.astype(of_labels), jnp.asarray(masks).astype(of_masks)
        close(compiled(name, of_labels)(outputs, *given, options), expected)


# Layers, the matching, divisors.


@pytest.mark.long
@every_head
def test_layers_are_independent_and_the_matching_is_detached(name):
    outputs, *truth = batch_for()
    options = options_for(name)
    losses, gradient = compiled(name)(outputs, *truth, options)
    for i, prefix in enumerate(("d0.", "")):
        layer, its_gradient, its_options = jax.tree.map(
            lambda x, i=i: x[i : i + 1], (outputs, gradient, options)
        )
        alone, gradient_alone = compiled(name, "one layer")(layer, *truth, its_options)
        close(alone, {key: losses[prefix + key] for key in alone})
        close(gradient_alone, its_gradient)
    targets = head_of(name).targets(outputs, *truth, **options)
    assert targets.gt_inds.shape == (LAYERS, 2, QUERIES)
    for layer in np.asarray(targets.gt_inds):
        assert sorted(layer[0]) == [0, 0, 1, 2, 3]
        assert sorted(layer[1]) == [0, 0, 0, 0, 1]
    given = compiled(name, "given")
    matching = {"gt_inds": targets.gt_inds}
    close(given(outputs, *truth, options | matching), (losses, gradient))
    rolled = {"gt_inds": jnp.roll(targets.gt_inds, 1, axis=2)}
    worse, _ = given(outputs, *truth, options | rolled)
    assert total(worse) > total(losses)


@every_head
def test_a_matching_that_is_given(name):
    """To padding it is none; a query of -1 learns nothing; a mask may have several queries."""
    outputs, *truth = batch_for((1, 0))
    options = options_for(name)
    gt_inds = np.zeros((LAYERS, 2, QUERIES), np.int8)
    gt_inds[:, 0] = 1, 3, 1, -1, 1  # The third mask is padding.
    targets = head_of(name).targets(outputs, *truth, gt_inds=gt_inds, **options)
    np.testing.assert_array_equal(np.asarray(targets.gt_inds)[0, 0], [1, 0, 1, -1, 1])
    np.testing.assert_array_equal(np.asarray(targets.label_weights)[0, 0], [1, 1, 1, 0, 1])
    found = compiled(name, "narrow")(outputs, *truth, options | {"gt_inds": gt_inds})
    assert_sound(*found)
    learns = np.asarray(found[1].mask_preds).any((-1, -2))
    np.testing.assert_array_equal(learns, np.asarray(targets.gt_inds) == 1)
    np.testing.assert_array_equal(
        np.asarray(found[1].cls_scores).any(-1), np.asarray(targets.label_weights) > 0
    )


@pytest.mark.long
@pytest.mark.parametrize("class_weight", [None, 2.0, [1.0, 2.0, 3.0, 0.5]])
def test_the_divisor_of_classes_is_the_sum_of_their_weights(class_weight):
    head = head_of("Mask2FormerHead", loss_cls={**SOFTMAX, "class_weight": class_weight})
    outputs, *truth = batch_for()
    options = options_for("Mask2FormerHead")
    losses = head.loss(outputs, *truth, **options)
    labels = head.targets(outputs, *truth, **options).labels[-1].ravel()
    logits = outputs.cls_scores[-1].reshape(-1, CLASSES + 1)
    weights = np.broadcast_to(1.0 if class_weight is None else class_weight, CLASSES + 1)[labels]
    cost = jax.nn.logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]
    np.testing.assert_allclose(
        losses["loss_cls"], (weights * cost).sum() / weights.sum(), rtol=1e-5
    )


def test_losses_of_masks_by_hand():
    """Constant logits: an image without masks counts as one in the divisor."""
    head = head_of("MaskFormerHead", loss_mask={**FOCAL, "alpha": 0.25, "loss_weight": 1.0})
    outputs = MaskFormerOutputs(outputs_for().cls_scores, np.zeros((LAYERS, 2, QUERIES, *SIZE)))
    outputs = jax.tree.map(np.float32, outputs)
    labels = np.array([[0, 2, 1], [-1, -1, -1]])
    masks = np.zeros((2, 3, *WHOLE), bool)
    masks[0, :, :3] = True  # A quarter of the pixels.
    losses = head.loss(outputs, labels, masks)
    focal = 0.25 * np.log(2) * (0.25 * 0.25 + 0.75 * 0.75)
    np.testing.assert_allclose(losses["loss_mask"], 3 * focal / 4, rtol=1e-5)
    dice = 1 - (2 * 24 + 1) / (96 + 48 + 1)  # 192 pixels.
    np.testing.assert_allclose(losses["loss_dice"], 3 * dice / 4, rtol=1e-5)


@pytest.mark.long
def test_masks_that_are_the_ground_truth():
    """They are matched, and saturated logits of them cost nothing."""
    labels, masks = truth_for((4, 4))
    masks = np.repeat(np.repeat(masks[:, :, ::4, ::4], 4, axis=2), 4, axis=3)
    padded = np.concatenate([masks, 1 - masks[:, :1]], axis=1)[None]
    outputs = MaskFormerOutputs(outputs_for().cls_scores[:1], padded * 2000 - 1000)
    losses = head_of("MaskFormerHead").loss(outputs, labels, masks)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    targets = head_of("Mask2FormerHead").targets(outputs, labels, masks, key=KEY)
    np.testing.assert_array_equal(targets.gt_inds[0], [[1, 2, 3, 4, 0]] * 2)


# Random points.


@pytest.mark.long
def test_points_come_from_the_key_or_are_given():
    head, (outputs, *truth) = head_of("Mask2FormerHead"), batch_for()
    run = jax.jit(lambda key, points: head.loss(outputs, *truth, key=key, points=points))
    first = run(KEY, None)
    close(first, run(KEY, None))
    assert total(run(jax.random.key(1), None)) != total(first)
    points = options_for("Mask2FormerHead")["points"]
    whole = run(KEY, points)
    close(whole, head.loss(outputs, *truth, points=points))
    close(whole, run(jax.random.key(1), points))
    # Drawn is what is missing.
    halves = points._replace(matching=None), points._replace(candidates=None, rest=None)
    for half in halves:
        assert total(run(KEY, half)) != total(run(jax.random.key(2), half))
    targets = [head.targets(outputs, *truth, key=k, points=halves[1]) for k in (None, KEY)]
    chex.assert_trees_all_equal(*targets)
    layers = jax.tree.map(lambda x: np.stack([x[1], x[1]]), outputs)
    of_both = head.loss(layers, *truth, key=KEY, gt_inds=targets[0].gt_inds[1:].repeat(2, 0))
    assert of_both["loss_cls"] == of_both["d0.loss_cls"]
    assert of_both["loss_mask"] != of_both["d0.loss_mask"]  # Each layer has points of its own.


def test_a_key_is_missing():
    head, (outputs, *truth) = head_of("Mask2FormerHead"), batch_for()
    points = options_for("Mask2FormerHead")["points"]
    match = r"Mask2FormerHead: key must be given, or points\.matching or gt_inds"
    for half in (None, points._replace(matching=None)):
        for call in (head.loss, head.targets):
            with pytest.raises(ValueError, match=match):
                call(outputs, *truth, points=half)
    match = r"Mask2FormerHead: .*key must be given, or both candidates and rest"
    with pytest.raises(ValueError, match=match):
        head.loss(outputs, *truth, points=points._replace(rest=None))


@pytest.mark.long
def test_memory_is_linear_in_the_points():
    """(B, Q, G, H · W) would be 42 MB, a float copy of the ground truth 4 MB.

    Where the derivative of `sample_points` keeps the weights of the points it is 2.9 MB.
    """
    head = head_of("Mask2FormerHead", num_points=2000)
    logits = np.zeros((6, 1, 10, 16, 16), np.float32)
    outputs = MaskFormerOutputs(np.zeros((6, 1, 10, CLASSES + 1), np.float32), logits)
    truth = np.zeros((1, 4), np.int32), np.zeros((1, 4, 512, 512), bool)
    assert temporary_bytes(lambda *x: step(head, *x, {"key": KEY}), outputs, *truth) < 2.4e6


@pytest.mark.long
def test_enlarged_masks_are_computed_in_chunks():
    """All 32 at 256 x 256 would be 8 MB each time; kept for the gradient several times that."""
    head = head_of("MaskFormerHead")
    logits = np.zeros((2, 1, 32, 8, 8), np.float32)
    outputs = MaskFormerOutputs(np.zeros((2, 1, 32, CLASSES + 1), np.float32), logits)
    truth = np.zeros((1, 32), np.int32), np.zeros((1, 32, 256, 256), bool)
    assert temporary_bytes(lambda *x: step(head, *x, {}), outputs, *truth) < 8e6


# Outputs: any finite numbers, half floats, what they mean.


@every_head
def test_extreme_outputs(name):
    outputs, *truth = batch_for()
    for size in (1e4, 1e-30):
        far = jax.tree.map(lambda x, size=size: np.sign(x) * np.float32(size), outputs)
        assert_sound(*compiled(name)(far, *truth, options_for(name)))


@pytest.mark.long
@every_head
def test_half_floats_are_computed_in_float32(name):
    _, *truth = batch_for()
    half = outputs_for(dtype=jnp.bfloat16)
    losses, gradient = compiled(name, "half")(half, *truth, options_for(name))
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    expected, exact_gradient = compiled(name)(exact, *truth, options_for(name))
    assert_sound(losses, gradient)
    close(losses, expected)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact_gradient)
    chex.assert_trees_all_close(gradient, rounded, rtol=1e-2, atol=1e-5)
    assert {x.dtype for x in head_of(name).decode(half)} == {jnp.dtype(jnp.float32)}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_stays_float32_where_x64_is_on(name, x64):
    head = head_of(name)
    key = {} if name == "MaskFormerHead" else {"key": KEY}
    for dtype in (np.float32, np.float64):
        loss = functools.partial(head.loss, **key)
        losses = jax.eval_shape(loss, *batch_for(dtype=dtype))
        assert {loss.dtype for loss in losses.values()} == {np.dtype(dtype)}


def test_decode():
    outputs = outputs_for()
    scores, masks = head_of("Mask2FormerHead").decode(outputs)
    logits = outputs.cls_scores[-1].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores, expected[..., :CLASSES], rtol=1e-5)
    np.testing.assert_allclose(masks, 1 / (1 + np.exp(-outputs.mask_preds[-1])), rtol=1e-5)


@every_head
def test_no_images(name):
    losses, gradient = compiled(name, "empty")(*batch_for(()), options_for(name, 0))
    assert_sound(losses, gradient)
    assert not any(losses.values())


# Transformations, devices, export.


@pytest.mark.long
@every_head
def test_vmap_over_a_hyperparameter(name):
    outputs, *truth = batch_for()

    def losses_of(weight):
        head = head_of(name, loss_dice={**DICE, "loss_weight": weight})
        return head.loss(outputs, *truth, **options_for(name))

    swept = jax.jit(jax.vmap(losses_of))(jnp.array([1.0, 3.0]))
    alone, _ = compiled(name)(outputs, *truth, options_for(name))
    for key, value in swept.items():
        factor = 3 if key.endswith("dice") else 1
        np.testing.assert_allclose(value, [alone[key], factor * alone[key]], rtol=1e-5)


@pytest.mark.long
@every_head
def test_vmap_over_batches_is_the_loop(name):
    batches = [(*batch_for(counts), options_for(name)) for counts in ((3, 1), (0, 4))]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    loss = head_of(name).loss
    mapped = jax.jit(jax.vmap(lambda *x: loss(*x[:3], **x[3])))(*stacked)
    for i, batch in enumerate(batches):
        close(jax.tree.map(lambda x, i=i: x[i], mapped), compiled(name)(*batch)[0])


DEVICES = 4
COUNTS = (3, 0, 4, 1)


def batch_over_devices(name):
    return *batch_for(COUNTS, np.float64), options_for(name, DEVICES, np.float64)


@functools.cache
def on_one_device(name):
    return jax.device_get(
        jax.jit(functools.partial(step, head_of(name)))(*batch_over_devices(name))
    )


SPECS = (P(None, "data"), P("data"), P("data"), P(None, "data"))
exactly = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-14)


@pytest.mark.long
@every_head
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_over_sharded_images(name, axis_type, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), (axis_type,), devices=jax.devices()[:DEVICES])
    with jax.set_mesh(mesh):
        batch = [
            jax.tree.map(lambda x, spec=spec: jax.device_put(x, NamedSharding(mesh, spec)), x)
            for x, spec in zip(batch_over_devices(name), SPECS, strict=True)
        ]
        found = jax.jit(functools.partial(step, head_of(name)))(*batch)
        exactly(jax.device_get(found), on_one_device(name))


@pytest.mark.long
def test_points_that_are_drawn_for_sharded_images(x64):
    mesh = jax.make_mesh(
        (DEVICES,), ("data",), (AxisType.Explicit,), devices=jax.devices()[:DEVICES]
    )
    loss = functools.partial(head_of("Mask2FormerHead").loss, key=KEY)
    batch = batch_over_devices("Mask2FormerHead")[:3]
    with jax.set_mesh(mesh):
        sharded = [
            jax.tree.map(lambda x, spec=spec: jax.device_put(x, NamedSharding(mesh, spec)), x)
            for x, spec in zip(batch, SPECS[:3], strict=True)
        ]
        drawn = jax.device_get(loss(*sharded))
    exactly(drawn, loss(*batch))


@pytest.mark.long
@every_head
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_means_the_devices_losses(name, check_vma, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), (AxisType.Auto,), devices=jax.devices()[:DEVICES])

    def mean_of_devices(outputs, labels, masks, options):
        options = options | {"axis_name": "data"}
        losses, gradient = step(head_of(name), outputs, labels, masks, options)
        return jax.lax.pmean(losses, "data"), jax.tree.map(lambda x: x / DEVICES, gradient)

    mapped = jax.shard_map(
        mean_of_devices,
        mesh=mesh,
        in_specs=SPECS,
        out_specs=(P(), SPECS[0]),
        check_vma=check_vma,
    )
    exactly(jax.device_get(jax.jit(mapped)(*batch_over_devices(name))), on_one_device(name))


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_export_with_any_number_of_images(name):
    head, batch = head_of(name), (*batch_for((2, 1)), options_for(name))
    (images,) = export.symbolic_shape("images")

    def any_images(axis):
        def shape(x):
            return jax.ShapeDtypeStruct((*x.shape[:axis], images, *x.shape[axis + 1 :]), x.dtype)

        return shape

    axes = (1, 0, 0, 1)
    shapes = [jax.tree.map(any_images(axis), x) for axis, x in zip(axes, batch, strict=True)]
    function = jax.jit(lambda *x: head.loss(*x[:3], **x[3]))
    program = export.export(function, platforms=("cpu", "cuda", "tpu"))(*shapes)
    call = export.deserialize(program.serialize()).call
    close(call(*batch), function(*batch))
    one = [
        jax.tree.map(lambda x, axis=axis: np.take(x, [0], axis), x)
        for axis, x in zip(axes, batch, strict=True)
    ]
    close(call(*one), function(*one))


# As an object.


@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_is_frozen_hashable_and_without_leaves(name):
    head, twin = head_of(name), head_of(name)
    assert head == twin
    assert hash(head) == hash(twin)
    assert head != head_of(name, loss_dice={**DICE, "loss_weight": 7.0})
    assert jax.tree.leaves(head) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.num_things_classes = 4


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_equal_heads_share_one_trace_and_live_in_modules(name):
    batch, options, traces = batch_for(), options_for(name), []

    @jax.jit
    def traced(head, *batch):
        traces.append(head)
        return head.loss(*batch, **options)

    class Linen(linen.Module):
        head: nnx.Module

        def __call__(self, *arguments):
            return self.head.loss(*arguments, **options)

    expected, _ = compiled(name)(*batch, options)
    for _ in range(3):
        close(traced(head_of(name), *batch), expected)
    assert len(traces) == 1
    close(Linen(head_of(name)).apply({}, *batch), expected)


@pytest.mark.long
@pytest.mark.parametrize("name", CONFIGS)
def test_a_head_without_statistics_has_an_update(name):
    head, batch = head_of(name), batch_for()
    state = head.init()
    assert state == {"loss_cls": (), "loss_mask": (), "loss_dice": ()}
    losses, after = head.update(state, *batch, **options_for(name))
    assert after == state
    close(losses, compiled(name)(*batch, options_for(name))[0])
    with pytest.raises(ValueError, match=f"{name}: state must come from init"):
        head.update({}, *batch, **options_for(name))


@pytest.mark.parametrize("name", CONFIGS)
def test_signatures_and_docstrings(name):
    head = head_of(name)
    of_update = inspect.signature(head.update).parameters
    assert list(of_update)[:4] == ["state", "outputs", "gt_labels", "gt_masks"]
    signature = inspect.signature(head.loss)
    assert list(signature.parameters.values()) == list(of_update.values())[1:]
    assert parse(head.loss.__doc__).arguments.keys() == signature.parameters.keys()
    assert parse(head.update.__doc__).arguments.keys() == of_update.keys()
    assert inspect.signature(head.targets).parameters.keys() < signature.parameters.keys()
    fields = {field.name for field in dataclasses.fields(head)}
    assert parse(type(head).__doc__).arguments.keys() == fields
    assert type(head) is HEADS[name]


def test_defaults_are_mmdets():
    costs = [{"type": "ClassificationCost"}, {"type": "FocalLossCost", "binary_input": True}]
    costs += [{"type": "DiceCost", "pred_act": True, "eps": 1.0}]
    costs[1]["weight"] = 20.0
    assigner = {"type": "HungarianAssigner", "match_costs": costs}
    weights = {"class_weight": [1.0] * 133 + [0.1]}
    given = {"type": "MaskFormerHead", "loss_cls": {**SOFTMAX, **weights}, "assigner": assigner}
    assert build_head({**given, "loss_mask": FOCAL, "loss_dice": DICE}) == MaskFormerHead()
    costs[0]["weight"] = 2.0
    costs[1] = {"type": "CrossEntropyLossCost", "use_sigmoid": True, "weight": 5.0}
    costs[2]["weight"] = 5.0
    config = {
        "type": "Mask2FormerHead",
        "loss_cls": {**SOFTMAX, **weights, "loss_weight": 2.0},
        "loss_mask": SIGMOID,
        "loss_dice": {**DICE, "loss_weight": 5.0},
        "strides": [4, 8, 16, 32],
        "num_queries": 100,
    }
    training = {"assigner": assigner, "sampler": {"type": "MaskPseudoSampler"}}
    training |= {"num_points": 12544, "oversample_ratio": 3.0, "importance_sample_ratio": 0.75}
    assert build_head(config, training) == Mask2FormerHead()
    fusion = {"type": "MaskFormerFusionHead", "num_things_classes": 80}
    model = {"panoptic_head": config, "panoptic_fusion_head": fusion, "train_cfg": training}
    assert build_detector(model) == {"panoptic_head": Mask2FormerHead()}
    assert Mask2FormerHead().num_classes == 133


# Errors.


@pytest.mark.long
@pytest.mark.parametrize("name", few(CONFIGS, ["MaskFormerHead"]))
def test_checked(name):
    head, options = head_of(name), options_for(name)
    outputs, labels, masks = batch_for()
    close(
        checked(head).loss(outputs, labels, masks, **options),
        head.loss(outputs, labels, masks, **options),
    )
    for spoil, message in (
        ((outputs._replace(mask_preds=outputs.mask_preds * np.nan), labels, masks), "mask_preds"),
        ((outputs, labels + CLASSES, masks), "gt_labels"),
        ((outputs, labels, masks * 255), r"gt_masks.* must be in \[0, 1\]"),
    ):
        with pytest.raises(checkify.JaxRuntimeError, match=f"{name}: .*{message}"):
            checked(head).loss(*spoil, **options)
    with pytest.warns(UserWarning, match=f"{name}: every image is without ground truth"):
        found = checked(head).loss(outputs, labels * 0 - 1, masks, **options)
    close(found, head.loss(outputs, labels * 0 - 1, masks, **options))


@pytest.mark.parametrize("name", CONFIGS)
def test_inputs_that_do_not_fit(name):
    head, options = head_of(name), options_for(name)
    outputs, labels, masks = batch_for()
    scores, logits = outputs
    for arguments, error, message in (
        ((tuple(outputs), labels, masks), TypeError, "outputs must be MaskFormerOutputs, got tupl"),
        (
            (MaskFormerOutputs(scores[..., :3], logits), labels, masks),
            ValueError,
            "cls_scores must have shape (L, B, Q, 4), got (2, 2, 5, 3)",
        ),
        (
            (MaskFormerOutputs(scores, logits[:, :, :4]), labels, masks),
            ValueError,
            "mask_preds must have shape (2, 2, 5, h, w), got (2, 2, 4, 6, 8)",
        ),
        ((outputs, labels[:1], masks), ValueError, "gt_labels must have shape (2, G), got (1, 4)"),
        ((outputs, labels * 1.0, masks), TypeError, "gt_labels must hold integer class indices"),
        (
            (outputs, labels, masks[:, :3]),
            ValueError,
            "gt_masks must have shape (2, 4, H, W), got (2, 3, 12, 16)",
        ),
        ((outputs, labels, None), TypeError, "gt_masks must be an array, got NoneType"),
        ((outputs, labels), TypeError, "missing a required argument: 'gt_masks'"),
    ):
        for call in (head.loss, head.targets):
            with pytest.raises(error, match=re.escape(f"{name}: {message}")):
                call(*arguments, **options)
    with pytest.raises(ValueError, match=rf"{name}: gt_inds must have shape \(2, 2, 5\)"):
        head.loss(outputs, labels, masks, gt_inds=np.zeros((2, 5), np.int32), **options)


def test_points_that_do_not_fit():
    head, batch = head_of("Mask2FormerHead"), batch_for()
    points = options_for("Mask2FormerHead")["points"]
    for wrong, message in (
        (
            points._replace(matching=points.matching[:1]),
            r"points\.matching must have shape \(2, 2, 16, 2\)",
        ),
        (points._replace(rest=points.matching), r"points\.rest must have shape \(2, 2, 5, 4, 2\)"),
        (
            points._replace(candidates=points.candidates[..., :40, :]),
            r"points\.candidates must have shape \(2, 2, 5, 48, 2\)",
        ),
    ):
        with pytest.raises(ValueError, match=f"Mask2FormerHead: {message}"):
            head.loss(*batch, points=wrong)
    with pytest.raises(TypeError, match="points must be MaskPoints, got tuple"):
        head.loss(*batch, points=tuple(points))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_cls": {**SOFTMAX, "class_weight": [1.0, 0.1]}}, "loss_cls gets pred"),
        ({"loss_cls": SIGMOID}, "loss_cls must have a softmax"),
        ({"loss_cls": FOCAL}, "loss_cls must be CrossEntropyLoss"),
        ({"loss_dice": {"type": "GIoULoss"}}, "loss_dice gets pred"),
        ({"loss_mask": SOFTMAX}, "loss_mask gets pred"),
        ({"sampler": {"type": "RandomSampler"}}, "sampler must be MaskPseudoSampler"),
        ({"num_things_classes": 0}, "num_things_classes must be at least 1, got 0"),
        ({"num_stuff_classes": -1}, "num_stuff_classes must be at least 0, got -1"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"importance_sample_ratio": 1.5}, r"importance_sample_ratio must be in \[0, 1\], got 1.5"),
        ({"assigner": {"type": "MaxIoUAssigner"}}, "MaxIoUAssigner needs a key"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        head_of("Mask2FormerHead", **changes)
