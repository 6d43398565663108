"""Sparse R-CNN's head beside mmdet's numbers: masks of QueryInst, configs, errors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from head_cases import CLASSES, COSTS, EVERY_ROW, IMAGE, batch_for
from visdet_jax import checked
from visdet_jax.boxes.masks import crop_masks
from visdet_jax.detectors import EmbeddingRPNHead, build_detector, build_head

SIZE = 6
MASK = {
    "type": "DynamicMaskHead",
    "num_classes": CLASSES,
    "num_convs": 4,
    "dynamic_conv_cfg": {"type": "DynamicConv"},
    "loss_mask": {
        "type": "DiceLoss",
        "loss_weight": 8.0,
        "use_sigmoid": True,
        "activate": False,
        "eps": 1e-5,
    },
}


def head_with_masks(**changes):
    return EVERY_ROW["SparseRoIHead"].head(mask_head={**MASK, **changes}, mask_size=SIZE)


def batch_with_masks(dtype=np.float32, counts=(3, 1), channels=CLASSES):
    """Arguments of `loss`: logits of masks for each box of the ground truth, and its bitmaps."""
    outputs, *truth = batch_for(EVERY_ROW["SparseRoIHead"].head(), counts, dtype=dtype)
    rng = np.random.default_rng(1)
    shape = (len(outputs.cls_scores), len(counts), truth[0].shape[1], SIZE, SIZE, channels)
    masks = rng.random((len(counts), truth[0].shape[1], *IMAGE)) < 0.5
    preds = rng.normal(size=shape).astype(dtype)
    return outputs._replace(mask_preds=preds), *truth, masks.astype(np.uint8)


@pytest.mark.long
@pytest.mark.parametrize("agnostic", [False, True])
def test_masks_by_their_formula(agnostic, x64):
    """Of mmdet's source: the class's mask in the predicted box, dice, over the matched queries."""
    head = head_with_masks(class_agnostic=agnostic)
    channels = 1 if agnostic else CLASSES
    outputs, boxes, labels, shapes, masks = batch_with_masks(np.float64, channels=channels)
    losses = head.loss(outputs, boxes, labels, shapes, masks)
    gt_inds = np.asarray(head.targets(outputs, boxes, labels, shapes).gt_inds)
    assert set(losses) == {*EVERY_ROW["SparseRoIHead"].names, "s0.loss_mask", "s1.loss_mask"}
    for stage, weight in enumerate(head.stage_loss_weights):
        total, count = 0.0, 0
        for image, region in np.argwhere(gt_inds[stage] > 0):
            number = gt_inds[stage, image, region]
            box = outputs.bbox_preds[stage, image, region][None]
            (target,) = crop_masks(masks[image], box, np.array([number]), output_size=SIZE)
            channel = 0 if agnostic else labels[image, number - 1]
            p = 1 / (1 + np.exp(-outputs.mask_preds[stage, image, number - 1, :, :, channel]))
            both = (p * target).sum()
            total += 1 - 2 * both / ((p**2).sum() + (target**2).sum() + 2e-5)
            count += 1
        expected = weight * 8 * total / count
        np.testing.assert_allclose(losses[f"s{stage}.loss_mask"], expected, rtol=1e-6)


@pytest.mark.long
def test_masks_without_a_region_are_not_read():
    """Of padding, and of boxes that the matching leaves out."""
    head = head_with_masks()
    outputs, *truth = batch_with_masks()
    gt_inds = np.array(head.targets(outputs, *truth[:3]).gt_inds)
    gt_inds[gt_inds == 2] = 0
    labels = np.broadcast_to(truth[1], (2, *truth[1].shape))
    without = (labels < 0) | (np.arange(1, 5) == 2)
    spoilt = outputs._replace(
        mask_preds=np.where(without[..., None, None, None], np.nan, outputs.mask_preds)
    )

    def total(outputs):
        losses = head.loss(outputs, *truth, gt_inds=gt_inds)
        return sum(losses.values()), losses

    expected, found = (jax.value_and_grad(total, has_aux=True)(x) for x in (outputs, spoilt))
    chex.assert_trees_all_close(found, expected)
    assert not found[1].mask_preds[without].any()
    none = batch_with_masks(counts=(0, 0))
    assert head.loss(*none)["s0.loss_mask"] == 0


def test_the_regions_of_masks():
    head = head_with_masks()
    outputs, boxes, labels, shapes, _ = batch_with_masks()
    # One stage alone, as a network has it before the next; without masks.
    first = type(outputs)(outputs.cls_scores[:1], outputs.bbox_preds[:1])
    gt_inds = head.targets(first, boxes, labels, shapes).gt_inds
    regions = np.asarray(head.matched(gt_inds, labels))
    assert regions.shape == (1, *labels.shape)
    np.testing.assert_array_equal(regions[0] >= 0, labels >= 0)
    for image, number in np.argwhere(labels >= 0):
        assert gt_inds[0, image, regions[0, image, number]] == number + 1


@pytest.mark.long
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_masks_over_devices(axis_type, x64):
    head = head_with_masks()
    batch = batch_with_masks(np.float64, (3, 0, 1, 2))
    expected = head.loss(*batch)
    mesh = jax.make_mesh((4,), ("data",), (axis_type,), devices=jax.devices()[:4])
    specs = (P(None, "data"), *[P("data")] * 4)
    with jax.set_mesh(mesh):
        spread = [
            jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip(batch, specs, strict=True)
        ]
        chex.assert_trees_all_close(jax.device_get(head.loss(*spread)), expected, rtol=1e-12)
    if axis_type == AxisType.Auto:

        def mean(*arguments):
            return jax.lax.pmean(head.loss(*arguments, axis_name="data"), "data")

        mapped = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P())
        chex.assert_trees_all_close(jax.jit(mapped)(*batch), expected, rtol=1e-12)


@pytest.mark.long
def test_checked_looks_at_masks():
    head = head_with_masks()
    outputs, *truth, masks = batch_with_masks()
    look = checked(head).loss

    def with_nan(where):
        return outputs._replace(
            mask_preds=np.where(where[None, ..., None, None, None], np.nan, outputs.mask_preds)
        )

    padding = truth[1] < 0
    losses = look(with_nan(padding), *truth, masks)
    chex.assert_trees_all_close(losses, head.loss(outputs, *truth, masks))
    with pytest.raises(ValueError, match="mask_preds"):
        look(with_nan(~padding), *truth, masks)
    with pytest.raises(ValueError, match="gt_masks"):
        look(outputs, *truth, masks * 3.0)


def test_the_first_stage():
    head = EmbeddingRPNHead(num_proposals=2)
    boxes = jnp.array([[0.5, 0.5, 1, 1], [0.25, 0.5, 0.5, 0.2]])
    found = head.proposals(boxes, [[10, 20], [100, 40]])
    np.testing.assert_allclose(found.boxes[0], [[0, 0, 20, 10], [0, 4, 10, 6]])
    np.testing.assert_allclose(found.boxes[1], [[0, 0, 40, 100], [0, 40, 20, 60]], atol=1e-5)
    assert found.exists.all()
    with pytest.raises(ValueError, match=r"EmbeddingRPNHead: init_boxes must have shape \(2, 4\)"):
        head.proposals(boxes[:1], [[10, 20]])


BRANCH = {"type": "DIIHead", "num_classes": CLASSES, "bbox_coder": {"type": "DeltaXYWHBBoxCoder"}}
STAGE = {
    "assigner": {"type": "HungarianAssigner", "match_costs": COSTS},
    "sampler": {"type": "PseudoSampler"},
    "pos_weight": 1,
    "mask_size": SIZE,
}
ROI = {"type": "SparseRoIHead", "num_stages": 2, "stage_loss_weights": [1, 1]}


def test_a_model_of_mmdet():
    model = {
        "rpn_head": {
            "type": "EmbeddingRPNHead",
            "num_proposals": 7,
            "proposal_feature_channel": 256,
        },
        "roi_head": {**ROI, "bbox_head": [BRANCH] * 2, "mask_head": [MASK] * 2},
        "train_cfg": {"rpn": None, "rcnn": [STAGE] * 2},
        "test_cfg": {"rpn": None, "rcnn": {"max_per_img": 7}},
    }
    heads = build_detector(model)
    assert heads["rpn_head"] == EmbeddingRPNHead(num_proposals=7)
    roi = heads["roi_head"]
    assert roi.mask_head.num_classes == CLASSES
    assert roi.mask_size == SIZE
    assert roi.assigner.costs[1].weight == 5
    one = {**ROI, "bbox_head": BRANCH, "mask_head": MASK}
    assert build_head(one, STAGE, {"max_per_img": 7}) == roi
    outputs, *_, shapes = batch_for(build_head(ROI | {"bbox_head": BRANCH}, STAGE))
    found = roi.detect(outputs._replace(mask_preds=None), shapes)
    scores = np.sort(roi.decode(outputs, shapes).scores.reshape(len(shapes), -1))
    np.testing.assert_array_equal(found.scores, scores[:, : -7 - 1 : -1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox_head": [BRANCH, {**BRANCH, "num_classes": 4}]}, "bbox_head must be the same for"),
        (
            {"bbox_head": {**BRANCH, "type": "BBoxHead"}},
            "bbox_head must be a DIIHead, got BBoxHead",
        ),
        ({"num_stages": 3}, "one weight for each of one stage or more"),
        ({"mask_head": {**MASK, "num_classes": 9}}, "mask_head must have num_classes=3"),
        ({"loss_cls": {"type": "VarifocalLoss"}}, "loss_cls gets pred"),
        (
            {"mask_head": {**MASK, "loss_mask": {"type": "GIoULoss"}}},
            "loss_mask gets probabilities",
        ),
    ],
)
def test_errors_of_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        build_head({**ROI, "bbox_head": BRANCH, **changes}, STAGE)


def test_more_errors():
    with pytest.raises(ValueError, match="the sampler must be a PseudoSampler"):
        build_head({**ROI, "bbox_head": BRANCH}, {**STAGE, "sampler": {"type": "RandomSampler"}})
    head, plain = head_with_masks(), EVERY_ROW["SparseRoIHead"].head()
    outputs, *truth, masks = batch_with_masks()
    with pytest.raises(ValueError, match="SparseRoIHead: gt_masks and outputs"):
        head.loss(outputs, *truth)
    with pytest.raises(ValueError, match="SparseRoIHead: gt_masks and mask_preds must be None"):
        plain.loss(outputs, *truth)
    narrow = outputs._replace(mask_preds=outputs.mask_preds[..., :1])
    with pytest.raises(ValueError, match=r"mask_preds must have shape \(2, 2, 4, 6, 6, 3\), got"):
        head.loss(narrow, *truth, masks)
    with pytest.raises(ValueError, match=r"gt_masks must have shape \(2, 4, H, W\), got"):
        head.loss(outputs, *truth, masks[:, :2])
    one = type(outputs)(outputs.cls_scores[:1], outputs.bbox_preds[:1])
    with pytest.raises(ValueError, match="outputs must be of 2 stages, got 1"):
        plain.loss(one, *truth)
    with pytest.raises(TypeError, match="outputs must be SparseRoIOutputs, got tuple"):
        plain.loss(tuple(one), *truth)
    with pytest.raises(ValueError, match=r"bbox_preds must have shape \(L, B, Q, 4\), got"):
        plain.loss(one._replace(bbox_preds=one.bbox_preds[..., :3]), *truth)
