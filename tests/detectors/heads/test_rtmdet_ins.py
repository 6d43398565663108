"""RTMDet-Ins beside mmdet's numbers: which positives get a mask, memory, devices, bitmaps."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from cases import as_long
from head_cases import CLASSES, GIOU, IMAGE, SIZES, boxes_for, shapes_for
from programs import temporary_bytes
from visdet_jax import checked
from visdet_jax.detectors import HeadOutputs, build_head
from visdet_jax.detectors.heads import rtmdet_ins

CONFIG = {
    "type": "RTMDetInsHead",
    "num_classes": CLASSES,
    "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16]},
    "loss_cls": {"type": "QualityFocalLoss"},
    "loss_bbox": GIOU,
    "num_prototypes": 3,
    "dyconv_channels": 2,
}
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def head_with(**changes):
    return build_head({**CONFIG, **changes})


def outputs_for(head, batch=2, dtype=np.float32, seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)

    def maps(channels, scale=1):
        return tuple(
            (scale * rng.normal(0, 1, (batch, *size, channels))).astype(dtype) for size in sizes
        )

    return HeadOutputs(
        maps(CLASSES),
        tuple(np.abs(x) for x in maps(4, 8)),
        kernel_preds=maps(head.channels["kernel_preds"]),
        mask_feats=rng.normal(0, 1, (batch, *sizes[0], head.num_prototypes)).astype(dtype),
    )


def truth_for(counts, rows=4, dtype=np.float32):
    """(boxes, labels, image shapes) and bitmaps, NaN where they are padding."""
    boxes, labels = boxes_for(counts, rows, dtype)
    y, x = np.arange(IMAGE[0])[:, None], np.arange(IMAGE[1])
    x1, y1, x2, y2 = (boxes[..., i, None, None] for i in range(4))
    masks = ((x >= x1) & (x < x2) & (y >= y1) & (y < y2)).astype(dtype)
    masks = np.where(labels[..., None, None] >= 0, masks, np.nan).astype(dtype)
    return (boxes, labels, shapes_for(len(counts))), masks


def value_and_gradient(head, axis_name=None):
    def value(outputs, boxes, labels, shapes, masks):
        losses = head.loss(outputs, boxes, labels, shapes, gt_masks=masks, axis_name=axis_name)
        return sum(losses.values()), losses

    return jax.value_and_grad(value, has_aux=True)


@functools.cache
def compiled(head):
    return jax.jit(value_and_gradient(head))


@pytest.mark.long
def test_both_names_are_one_loss():
    head, other = head_with(), head_with(type="RTMDetInsSepBNHead")
    truth, masks = truth_for((3, 1))
    outputs = outputs_for(head)
    expected = head.loss(outputs, *truth, gt_masks=masks)
    assert expected.keys() == {"loss_cls", "loss_bbox", "loss_mask"}
    assert all(loss > 0 for loss in expected.values())
    chex.assert_trees_all_equal(other.loss(outputs, *truth, gt_masks=masks), expected)
    close(checked(head).loss(outputs, *truth, gt_masks=np.nan_to_num(masks)), expected)
    bitmaps = np.nan_to_num(masks, nan=1).astype(bool)
    chex.assert_trees_all_equal(head.loss(outputs, *truth, gt_masks=bitmaps), expected)


@pytest.mark.long
def test_one_compilation_for_all_ground_truth():
    head = head_with()
    outputs = outputs_for(head)
    for counts in ((0, 0), (1, 0), (4, 4)):
        truth, masks = truth_for(counts)
        (_, losses), gradient = compiled(head)(outputs, *truth, masks)
        for x in jax.tree.leaves((losses, gradient)):
            assert np.isfinite(x).all()
        learns = np.any(gradient.mask_feats)
        assert learns == (losses["loss_mask"] > 0) == any(counts)
    assert compiled(head)._cache_size() == 1


@pytest.mark.long
def test_no_rows_are_no_boxes():
    head = head_with()
    outputs = outputs_for(head)
    truth, masks = truth_for((0, 0))
    expected = head.loss(outputs, *truth, gt_masks=masks)
    nothing = np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.int32), shapes_for(2)
    close(head.loss(outputs, *nothing, gt_masks=masks[:, :0]), expected)


@pytest.mark.long
def test_the_positives_of_highest_metric_get_the_masks():
    """A slot more or less changes the mean of the masks' losses as it must."""
    truth, masks = truth_for((4, 1))
    outputs = outputs_for(head_with())
    targets = head_with().targets(outputs, *truth, gt_masks=masks)
    metrics = np.where(np.asarray(targets.gt_inds) > 0, targets.metrics, -1)
    counts = (metrics >= 0).sum(1)
    assert counts.max() > 3
    means = {}
    for slots in (1, 3, 300):
        value = head_with(max_masks=slots).loss(outputs, *truth, gt_masks=masks)["loss_mask"]
        means[slots] = float(value) * np.minimum(counts, slots).sum()
    every = head_with()
    alone = []
    for image in range(2):
        for prior in np.argsort(-metrics[image], kind="stable")[: counts[image]]:
            found = targets._replace(
                gt_inds=jnp.zeros_like(targets.gt_inds)
                .at[image, prior]
                .set(targets.gt_inds[image, prior])
            )
            alone.append((image, float(every._loss_mask(outputs, found, masks, None))))
    for slots, mean in means.items():
        chosen = [[x for i, x in alone if i == image][:slots] for image in range(2)]
        np.testing.assert_allclose(mean, sum(map(sum, chosen)), rtol=1e-4)


@pytest.mark.long
def test_chunks_change_nothing(monkeypatch):
    head = head_with()
    truth, masks = truth_for((4, 2))
    outputs = outputs_for(head)
    expected = jax.jit(value_and_gradient(head))(outputs, *truth, masks)
    monkeypatch.setattr(rtmdet_ins, "MASKS_TOGETHER", 7)
    jax.clear_caches()
    close(jax.jit(value_and_gradient(head))(outputs, *truth, masks), expected)
    jax.clear_caches()


@pytest.mark.long
def test_activations_of_all_masks_are_never_there_at_once():
    head = head_with(dyconv_channels=8, max_masks=256)
    sizes = ((16, 24), (8, 12))
    outputs = outputs_for(head, 1, sizes=sizes)
    (boxes, labels, _), masks = truth_for((4,))
    masks = np.tile(masks, (1, 1, 4, 4))
    arguments = outputs, boxes, labels, np.array([[128, 192]]), masks
    of_one_layer = 256 * 8 * 16 * 24 * 4
    assert temporary_bytes(value_and_gradient(head), *arguments) < of_one_layer


@pytest.mark.long
def test_half_floats_are_computed_in_float32():
    head = head_with()
    truth, masks = truth_for((3, 1))
    half = outputs_for(head, dtype=jnp.bfloat16)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    (_, losses), gradient = compiled(head)(half, *truth, masks)
    (_, expected), _ = compiled(head)(exact, *truth, masks)
    close(losses, expected)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.long
def test_extreme_outputs():
    head = head_with()
    truth, masks = truth_for((3, 1))
    for size in (1e4, 1e-30):
        far = jax.tree.map(lambda x, size=size: np.sign(x) * np.float32(size), outputs_for(head))
        for x in jax.tree.leaves(compiled(head)(far, *truth, masks)):
            assert np.isfinite(x).all()


@pytest.mark.long
def test_the_mean_over_devices_is_the_loss_of_the_batch(x64):
    head = head_with()
    truth, masks = truth_for((3, 0, 1, 0, 2, 1, 4, 0), dtype=np.float64)
    outputs = outputs_for(head, 8, np.float64)
    (_, losses), gradient = jax.jit(value_and_gradient(head))(outputs, *truth, masks)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def of_device(*arguments):
        (_, losses), gradient = value_and_gradient(head, "data")(*arguments)
        return jax.lax.pmean(losses, "data"), gradient

    spread = jax.shard_map(of_device, mesh=mesh, in_specs=P("data"), out_specs=(P(), P("data")))
    found, of_devices = jax.jit(spread)(outputs, *truth, masks)
    chex.assert_trees_all_close(found, losses, rtol=1e-12)
    of_devices = jax.tree.map(lambda x: x / 8, of_devices)
    chex.assert_trees_all_close(of_devices, gradient, rtol=1e-9, atol=1e-12)


def bitmap_by_hand(head, outputs, image, prior):
    """The logits of one point's mask at the image's pixels, in NumPy."""
    rows = np.concatenate([x[image].reshape(-1, x.shape[-1]) for x in outputs.kernel_preds])
    numbers = rows[prior].astype(np.float64)
    grid = head.grid(SIZES, np.float64)
    feats = outputs.mask_feats[image].astype(np.float64)
    y, x = np.mgrid[: SIZES[0][0], : SIZES[0][1]] * 8
    maps = np.stack([grid.priors[prior, 0] - x, grid.priors[prior, 1] - y], axis=-1)
    maps = np.concatenate([maps / (8 * grid.strides[prior]), feats], axis=-1)
    shapes = [(2, 5), (2, 2), (1, 2)]
    weights, biases = numbers[:16], np.split(numbers[16:], [2, 4])
    for number, (shape, bias) in enumerate(zip(shapes, biases, strict=True)):
        start = sum(a * b for a, b in shapes[:number])
        weight = weights[start : start + shape[0] * shape[1]].reshape(shape)
        maps = np.maximum(maps, 0) if number else maps
        maps = maps @ weight.T + bias

    def along(axis, pixels, cells):
        at = np.clip((np.arange(pixels) + 0.5) / 8 - 0.5, 0, cells - 1)
        low = np.minimum(at.astype(int), cells - 2)
        part = np.expand_dims(at - low, 1 - axis)
        below, above = (np.take(logits, i, axis) for i in (low, low + 1))
        return below * (1 - part) + above * part

    logits = maps[..., 0]
    logits = along(0, IMAGE[0], SIZES[0][0])
    return along(1, IMAGE[1], SIZES[0][1])


def test_bitmaps_of_detections():
    head = head_with(test_cfg={"score_thr": 0.4, "max_per_img": 20, "mask_thr_binary": 0.3})
    outputs = outputs_for(head, seed=3)
    found = head.detect(outputs, IMAGE)
    bitmaps = head.paste_masks(outputs, found, image_shape=(30, 40))
    assert bitmaps.shape == (2, 20, 30, 40)
    assert bitmaps.dtype == bool
    assert found.exists.any()
    for image, slot in np.ndindex(2, 20):
        if not found.exists[image, slot]:
            assert not bitmaps[image, slot].any()
            continue
        logits = bitmap_by_hand(head, outputs, image, int(found.indices[image, slot]))[:30, :40]
        expected = logits > np.log(0.3 / 0.7)
        sure = np.abs(logits - np.log(0.3 / 0.7)) > 1e-4
        np.testing.assert_array_equal(bitmaps[image, slot] & sure, expected & sure)
    with pytest.raises(ValueError, match=re.escape("image_shape must be at most (32, 48), got")):
        head.paste_masks(outputs, found, image_shape=(33, 48))


def test_what_does_not_fit():
    head = head_with()
    outputs = outputs_for(head)
    truth, masks = truth_for((3, 1))
    for spoilt, message in (
        (outputs._replace(mask_feats=None), "outputs.mask_feats must be given"),
        (outputs._replace(kernel_preds=None), "kernel_preds must be 2 levels, got None"),
        (
            outputs._replace(mask_feats=outputs.mask_feats[..., :2]),
            "mask_feats must have shape (2, h, w, 3), got (2, 4, 6, 2)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(f"RTMDetInsHead: {message}")):
            head.loss(spoilt, *truth, gt_masks=masks)
    message = re.escape("RTMDetInsHead: gt_masks must have shape (2, 4, 32, 48)")
    with pytest.raises(ValueError, match=message):
        head.loss(outputs, *truth, gt_masks=masks[..., :40])
    with pytest.raises(TypeError, match="missing a required argument: 'gt_masks'"):
        head.loss(outputs, *truth)
    with pytest.raises(ValueError, match="mask_loss_stride must be a divisor of the finest stri"):
        head_with(mask_loss_stride=3)
    with pytest.raises(ValueError, match="num_dyconvs must be at least 2, got 1"):
        head_with(num_dyconvs=1)


@pytest.mark.parametrize("name", ["RTMDetInsHead", as_long("RTMDetInsSepBNHead")])
def test_configs_of_mmyolo(name):
    with pytest.raises(ValueError, match="mmyolo's RTMDet heads with masks have no losses"):
        build_head({"type": name, "head_module": {"num_classes": 3}})
    head = build_head(
        {
            "type": "mmyolo.RTMDetHead",
            "head_module": {"type": "RTMDetSepBNHeadModule", "num_classes": 3, "in_channels": 9},
            "prior_generator": CONFIG["anchor_generator"] | {"type": "mmdet.MlvlPointGenerator"},
        },
        {"assigner": {"type": "BatchDynamicSoftLabelAssigner", "topk": 9}, "debug": False},
        {"multi_label": True, "score_thr": 0.2},
    )
    assert type(head).__name__ == "YOLORTMDetHead"
    assert (head.num_classes, head.strides, head.assigner.topk) == (3, (8, 16), 9)
    assert head.test_cfg.score_thr == 0.2
