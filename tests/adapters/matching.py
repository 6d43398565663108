"""Match costs, the Hungarian assigner and the criteria of DETR."""

import jax
import jax.numpy as jnp
import numpy as np

from adapters.base import Instead, Rounding, adapts, differ
from visdet_jax.detectors import DETROutputs, Instances, build_head
from visdet_jax.detectors.registry import TASK_UTILS


def cost(name, pred, gt, image_shape=None, **config):
    return TASK_UTILS.build({"type": name, **config})(pred, gt, image_shape)


@adapts("mmdet.BBoxL1Cost")
def bbox_l1_cost(config, pred, target, img_shape):
    boxes = Instances(bboxes=pred), Instances(bboxes=target)
    return cost("BBoxL1Cost", *boxes, jnp.array(img_shape), **config)


@adapts("mmdet.IoUCost")
def iou_cost(config, pred, target):
    return cost("IoUCost", Instances(bboxes=pred), Instances(bboxes=target), **config)


@adapts("mmdet.ClassificationCost")
def classification_cost(config, pred, target):
    return cost("ClassificationCost", Instances(scores=pred), Instances(labels=target), **config)


@adapts("mmdet.FocalLossCost")
def focal_loss_cost(config, pred, target):
    if config.get("binary_input"):
        return mask_cost("FocalLossCost", config, pred, target)
    return cost("FocalLossCost", Instances(scores=pred), Instances(labels=target), **config)


@adapts("mmdet.BinaryFocalLossCost")
def binary_focal_loss_cost(config, pred, target, text_token_mask):
    gt = Instances(positive_maps=target, text_token_mask=text_token_mask)
    return cost("BinaryFocalLossCost", Instances(scores=pred), gt, **config)


def mask_cost(name, config, pred, target):
    target = target.astype(pred.dtype)
    return cost(name, Instances(masks=pred), Instances(masks=target), **config)


@adapts("mmdet.DiceCost")
def dice_cost(config, pred, target):
    return mask_cost("DiceCost", config, pred, target)


@adapts("mmdet.CrossEntropyLossCost")
def cross_entropy_loss_cost(config, pred, target):
    return mask_cost("CrossEntropyLossCost", config, pred, target)


@adapts("mmdet.HungarianAssigner", whole=True)
def hungarian_assigner(
    config, pred, target, img_shape, bboxes=None, gt_bboxes=None, masks=None, gt_masks=None
):
    assigner = TASK_UTILS.build({"type": "HungarianAssigner", **config})
    if gt_masks is not None:
        gt_masks = gt_masks.astype(masks.dtype)
    instances = (
        Instances(scores=pred, bboxes=bboxes, masks=masks),
        Instances(labels=target, bboxes=gt_bboxes, masks=gt_masks),
        jnp.array(img_shape),
    )
    found, costs = assigner.assign(*instances), assigner.cost(*instances)
    taken = jax.nn.one_hot(found.gt_inds - 1, costs.shape[1], dtype=costs.dtype)
    return {
        "gt_inds": found.gt_inds,
        "labels": found.labels,
        "cost": costs,
        "matched_cost": (taken * costs).sum(),
    }


def criterion(config, pred, target, bbox_preds, gt_bboxes, num_gts, img_shapes, gt_inds=None):
    config = {k: v for k, v in config.items() if v is not None}
    head = build_head({"type": config.pop("head"), **config})
    # Padded boxes are spoilt: nothing of them may count.
    gt_bboxes = jnp.where(target[..., None] >= 0, gt_bboxes, jnp.nan)
    outputs = DETROutputs(pred[None], bbox_preds[None])
    gt_inds = None if gt_inds is None else gt_inds[None]
    return head.loss(outputs, gt_bboxes, target, img_shapes, gt_inds=gt_inds)


@adapts("mmdet.DETRCriterion", static=("num_classes",), whole=True)
def detr_criterion(config, **inputs):
    return criterion(config, **inputs)


@adapts("mmdet.DETRSetLoss", static=("num_classes",), whole=True)
def detr_set_loss(config, **inputs):
    return criterion(config, **inputs)


def ignored_labels(config, inputs, outputs):
    return {"out": np.where(inputs["target"][None] < 0, 0, outputs["out"])}


def no_class(config, inputs, outputs):
    """The columns of labels that are classes are those of a case without the others."""
    pred, target = inputs["pred"], inputs["target"]
    p = np.exp(pred - pred.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    known = target < pred.shape[1]
    return {"out": np.where(known[None], -p[:, np.where(known, target, 0)], np.nan)}


def no_ground_truth(config, inputs, outputs):
    return {"out": np.zeros((len(inputs["pred"]), 0))}


def scalar(config, inputs, outputs):
    return {name: np.squeeze(value) for name, value in outputs.items()}


COSTS = "mmdet.ClassificationCost mmdet.FocalLossCost"
differ(
    "a negative label is padding: its column costs 0", Instead(ignored_labels), COSTS, "neg_label"
)
differ(
    "a label that is no class makes its column NaN",
    Instead(no_class),
    "mmdet.ClassificationCost",
    "label_oob",
)
differ(
    "no ground truth is a matrix without columns",
    Instead(no_ground_truth),
    "mmdet.BinaryFocalLossCost",
    "no_gt",
)
differ(
    "1 - p has lost digits in the original",
    Rounding(1e-5),
    "mmdet.FocalLossCost",
    "extreme",
    "binary_extreme",
)
differ(
    "a loss is a scalar, synchronised or not",
    Instead(scalar, 1.0),
    "mmdet.DETRCriterion mmdet.DETRSetLoss",
    "detr_sync",
    "focal_sync",
)
