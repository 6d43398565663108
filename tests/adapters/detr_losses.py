"""Losses of the detectors after DETR: RT-DETR, D-FINE, DEIM, LW-DETR, Align-DETR."""

import jax
import jax.numpy as jnp
import numpy as np

from adapters.base import RAISES, Instead, adapts, differ
from visdet_jax import bbox_overlaps, build_loss, dfine, giou_loss, l1_loss
from visdet_jax.boxes import convert_boxes

TINY = 1e-12


def corners(boxes):
    """Boxes cx, cy, w, h as corners; in these sources a size below 0 counts as 0."""
    boxes = jnp.concatenate([boxes[..., :2], jnp.where(boxes < 0, 0, boxes)[..., 2:]], axis=-1)
    return convert_boxes(boxes, "cxcywh", "xyxy")


def matched_iou(pred_boxes, target_boxes, matched):
    """IoUs of boxes (B, Q, 4), which are not read where nothing is matched."""
    pairs = (jnp.where(matched[..., None], corners(x), 0) for x in (pred_boxes, target_boxes))
    return bbox_overlaps(*pairs, is_aligned=True, eps=TINY)


def label_and_iou(num_classes, target, iou=None, pred_boxes=None, target_boxes=None):
    matched = target < num_classes
    if iou is None:
        iou = matched_iou(pred_boxes, target_boxes, matched)
    return target, jnp.where(matched, iou, 0)


def dense(num_classes, target, **boxes):
    label, iou = label_and_iou(num_classes, target, **boxes)
    classes = jnp.arange(num_classes, dtype=label.dtype).reshape(1, 1, -1)
    return jnp.where(label[..., None] == classes, iou[..., None], 0)


@adapts("deim.MAL", static=["num_classes"])
def mal(config, pred, target, avg_factor, **boxes):
    loss = build_loss(
        {
            "type": "MatchabilityAwareLoss",
            "gamma": config.get("gamma", 2.0),
            "alpha": config.get("mal_alpha"),
        }
    )
    quality = label_and_iou(config["num_classes"], target, **boxes)
    return loss(pred, quality, avg_factor=avg_factor)


@adapts("dfine.DETRVarifocalLoss", static=["num_classes"])
def detr_varifocal(config, pred, target, avg_factor, **boxes):
    options = {"alpha": 0.2, "gamma": 2.0} | config
    classes = options.pop("num_classes")
    loss = build_loss({"type": "VarifocalLoss", "detached": True, **options})
    return loss(pred, label_and_iou(classes, target, **boxes), avg_factor=avg_factor)


@adapts("rfdetr.LWVarifocalLoss", static=["num_classes"])
def lw_varifocal(config, pred, target, avg_factor, **boxes):
    loss = build_loss({"type": "VarifocalLoss", "alpha": 1 - config.get("alpha", 0.25)})
    quality = dense(config["num_classes"], target, **jax.lax.stop_gradient(boxes))
    return loss(pred, quality, avg_factor=avg_factor)


@adapts("rfdetr.PositionSupervisedLoss", static=["num_classes"])
def position_supervised(config, pred, target, avg_factor, **boxes):
    loss = build_loss({"type": "QualityFocalLoss", "alpha": config.get("alpha", 0.25)})
    label, iou = label_and_iou(config["num_classes"], target, **jax.lax.stop_gradient(boxes))
    iou /= iou.max(1, keepdims=True) + 1e-8
    return loss(pred, (label, iou), avg_factor=avg_factor)


@adapts("aligndetr.IABCELoss", "rfdetr.IABCELoss", static=["num_classes"])
def ia_bce(config, pred, target, avg_factor, gt_index=None, w_prime=None, **boxes):
    options = dict(config)
    quality = label_and_iou(options.pop("num_classes"), target, **boxes)
    call = {}
    if gt_index is not None:  # w_prime holds exp(-rank / tau), from rank 0 on
        options["tau"] = -1 / jnp.log(w_prime[1])
        call["gt_inds"] = gt_index + 1
    loss = build_loss({"type": "IoUAwareBCELoss", **options})
    return loss(pred, quality, avg_factor=avg_factor, **call)


@adapts("dfine.FGL", static=["num_classes", "reg_max"])
def fgl(config, pred, target, pred_boxes, target_boxes, ref_points, avg_factor):
    bins = config["reg_max"] + 1
    scale, up = config.get("reg_scale", 4.0), config.get("up", 0.5)
    matched = target < config["num_classes"]
    iou = matched_iou(*jax.lax.stop_gradient((pred_boxes, target_boxes)), matched)
    targets = dfine.bbox2distance(ref_points, corners(target_boxes), bins - 1, scale, up)
    loss = build_loss({"type": "FineGrainedLocalizationLoss"})
    weight = jnp.where(matched, iou, 0)[..., None]
    return loss(pred.reshape(*pred.shape[:2], 4, bins), targets, weight, avg_factor)


@adapts("dfine.DDF", static=["num_classes", "reg_max"])
def ddf(config, pred, target, pred_boxes, target_boxes, teacher_corners, teacher_logits, **unread):
    shape = (*pred.shape[:2], 4, config["reg_max"] + 1)
    matched = target < config["num_classes"]
    iou = matched_iou(pred_boxes, target_boxes, matched)
    confidence = jnp.where(matched, iou, 1 / (1 + jnp.exp(-teacher_logits.max(-1))))
    loss = build_loss({"type": "DecoupledDistillationFocalLoss", "T": config.get("T", 5.0)})
    sides = (jnp.broadcast_to(x[..., None], shape[:-1]) for x in (confidence, matched))
    options = dict(zip(("confidence", "matched"), sides, strict=True))
    return loss(pred.reshape(shape), teacher_corners.reshape(shape), **options)


@adapts("dfine.UnimodalDFL")
def unimodal_dfl(
    config,
    pred,
    target,
    weight_right,
    weight_left,
    weight=None,
    avg_factor=None,
    reduction="sum",
):
    loss = build_loss({"type": "FineGrainedLocalizationLoss"})
    # avg_factor goes before reduction there.
    reduction = "mean" if avg_factor is not None else reduction
    targets = (target, weight_right, weight_left)
    return loss(pred, targets, weight, avg_factor, reduction)


@adapts("dfine.weighting_function", static=["reg_max"])
def weighting_function(config, pred, reg_max, reg_scale, deploy=False):
    return dfine.weighting_function(reg_max, pred, reg_scale)


@adapts("dfine.translate_gt", static=["reg_max"])
def translate_gt(config, pred, reg_max, reg_scale, up):
    return tuple(x.reshape(-1) for x in dfine.translate_gt(pred, reg_max, reg_scale, up))


@adapts("dfine.bbox2distance", static=["reg_max"])
def bbox2distance(config, pred, target, reg_max, reg_scale, up, eps=0.1):
    parts = dfine.bbox2distance(pred, target, reg_max, reg_scale, up, eps)
    return tuple(x.reshape(-1) for x in parts)


@adapts("dfine.distance2bbox")
def distance2bbox(config, pred, target, reg_scale):
    return dfine.distance2bbox(pred, target, reg_scale)


@adapts("deim.SetBoxLoss", static=["num_classes"])
def set_box_loss(config, pred, target, target_boxes, avg_factor, boxes_weight=None):
    matched = (target < config["num_classes"]).astype(pred.dtype)
    weight = matched if boxes_weight is None else matched * boxes_weight
    pair = corners(pred), corners(target_boxes)
    return {
        "loss_bbox": l1_loss(pred, target_boxes, matched, avg_factor=avg_factor),
        "loss_giou": giou_loss(*pair, weight, eps=TINY, avg_factor=avg_factor),
    }


def last_bin(config, inputs, outputs):
    """The neighbour of the last bin is the last bin."""
    pred = inputs["pred"].astype(np.float64)
    log_p = pred - np.log(np.exp(pred).sum(1, keepdims=True))
    shares = inputs["weight_right"].astype(np.float64) + inputs["weight_left"]
    return {"out": -(shares * log_p[:, -1]).sum()}


def nan_shares(config, inputs, outputs):
    unknown = np.isnan(inputs["pred"])
    return outputs | {key: np.where(unknown, np.nan, outputs[key]) for key in ("out.1", "out.2")}


differ("a right neighbour beyond the last bin counts as the last", Instead(last_bin),
       "dfine.UnimodalDFL", "last_bin_err")  # fmt: skip
differ("an odd reg_max makes one value too few", RAISES, "dfine.weighting_function", "odd_reg")
differ("a NaN is not a distance of bin 0", Instead(nan_shares), "dfine.translate_gt", "nan")
