"""Losses of boxes by their overlap."""

import numpy as np

from adapters.base import RAISES, Instead, Rounding, adapts, differ
from visdet_jax import WIoUState, build_loss, wiou_loss
from visdet_jax.boxes import convert_boxes

BASES = {
    "none": {"type": "IoULoss", "mode": "linear", "eps": 0.0},
    "GIoU": {"type": "GIoULoss", "eps": 1e-7},
    "DIoU": {"type": "DIoULoss", "eps": 1e-7},
    "CIoU": {"type": "CIoULoss", "eps": 1e-7, "gated": False},
    "EIoU": {"type": "EfficientIoULoss"},
    "SIoU": {"type": "SIoULoss", "eps": 1e-7, "neg_gamma": True},
}


def costs(config, pred, target, xywh=True, **call):
    """The loss of each pair of boxes, which come as centres and sizes."""
    if xywh:
        pred, target = (convert_boxes(boxes, "cxcywh", "xyxy") for boxes in (pred, target))
    return build_loss({"reduction": "none", **config})(pred, target, **call)


@adapts("objdet.EfficientIoU")
def efficient_iou(config, pred, target):
    config = {"gamma": 0.5, "xywh": True, **config}
    gamma, xywh = config.pop("gamma"), config.pop("xywh")
    if config.pop("Focal", False):
        config["focal_gamma"] = gamma
    return costs({"type": "EfficientIoULoss", **config}, pred, target, xywh)


@adapts("objdet.MPDIoU")
def mpdiou(config, pred, target, img_shape):
    config = {"xywh": False, **config}
    xywh = config.pop("xywh")
    return costs({"type": "MPDIoULoss", **config}, pred, target, xywh, image_shape=img_shape)


@adapts("shapeiou.ShapeIoU")
def shape_iou(config, pred, target):
    return costs({"type": "ShapeIoULoss", **config}, pred, target)


@adapts("alphaiou.AlphaIoU")
def alpha_iou(config, pred, target):
    modes = [key for key in ("GIoU", "DIoU", "CIoU") if config.get(key)]
    config = {key: x for key, x in config.items() if key not in modes}
    mode = modes[0].lower() if modes else "iou"
    return costs({"type": "AlphaIoULoss", "mode": mode, **config}, pred, target)


@adapts("nwd.WassersteinLoss")
def wasserstein(config, pred, target, **call):
    return build_loss({"type": "WassersteinLoss", **config})(pred, target, **call)


@adapts("inneriou.InnerCIoU")
def inner_ciou(config, pred, target):
    config = {**BASES["CIoU"], "ratio": 1.0, **config}
    config["inner_ratio"] = config.pop("ratio")
    return costs(config, pred, target)


@adapts("inneriou.InnerSIoU")
def inner_siou(config, pred, target):
    config = {**BASES["SIoU"], "ratio": 1.0, **config}
    config["inner_ratio"] = config.pop("ratio")
    return costs(config, pred, target)


@adapts("focaleriou.FocalerIoU", static=("d", "u"))
def focaler_iou(config, pred, target):
    config = {"base": "none", "d": 0.0, "u": 0.95, **config}
    focaler = config.pop("d"), config.pop("u")
    return costs({**BASES[config.pop("base")], "focaler": focaler, **config}, pred, target)


@adapts("wiou.WIoU")
def wiou(config, pred, target, iou_mean):
    config = {"ltype": "WIoU", "monotonous": False, "training": True, **config}
    base = config.pop("ltype").lower()
    version = {None: 1, True: 2, False: 3}[config.pop("monotonous")]
    training = config.pop("training")
    config = {"base": base, "version": version, "reduction": "none", **config}
    if training:
        loss = build_loss({"type": "WIoULoss", **config})
        state = WIoUState(iou_mean) if loss.init() else ()
        value, state = loss.update(state, pred, target)
    else:
        config.pop("momentum", None)
        state = WIoUState(iou_mean) if version > 1 else ()
        value = wiou_loss(pred, target, state=state, **config)
    return {"loss": value, **state._asdict()} if state else {"loss": value}


def as_it_is(config, inputs, outputs):
    return outputs


def without_mean(config, inputs, outputs):
    return {"out.loss": outputs["out.loss"]}


def iou_and_sides(pred, target):
    """IoU, d², and the sides of the enclosing box and of both boxes, of ordinary boxes."""
    size1, size2 = pred[:, 2:] - pred[:, :2], target[:, 2:] - target[:, :2]
    inner = np.minimum(pred[:, 2:], target[:, 2:]) - np.maximum(pred[:, :2], target[:, :2])
    outer = np.maximum(pred[:, 2:], target[:, 2:]) - np.minimum(pred[:, :2], target[:, :2])
    overlap = np.maximum(inner, 0).prod(1)
    between = (pred + np.roll(pred, 2, 1) - target - np.roll(target, 2, 1))[:, :2] / 2
    iou = overlap / (size1.prod(1) + size2.prod(1) - overlap)
    return iou, (between**2).sum(1), outer, size1, size2


def focused_efficient_iou(config, inputs, outputs):
    boxes = (np.asarray(inputs[name], np.float64) for name in ("pred", "target"))
    iou, distance2, outer, size1, size2 = iou_and_sides(*boxes)
    loss = 1 - iou + distance2 / (outer**2).sum(1) + ((size1 - size2) ** 2 / outer**2).sum(1)
    if config.get("monotonous", False) is None:
        return {"out.loss": loss}
    beta = (1 - iou) / outputs["out.iou_mean"]
    return {**outputs, "out.loss": loss * beta / (2.7 * 1.7 ** (beta - 2.7))}


def focaler_of_plain_iou(config, inputs, outputs):
    boxes = (np.asarray(inputs[name], np.float64) for name in ("pred", "target"))
    corners = (np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1) for b in boxes)
    return {"out": 1 - np.clip(iou_and_sides(*corners)[0] / 0.95, 0, 1)}


differ(
    "the power alpha is on all but the sides' squared differences: pixels² over pixels^2alpha",
    RAISES,
    "objdet.EfficientIoU",
    "alpha3",
    "alpha3_focal",
)
differ(
    "in float32 the corners of a box of 1e-4 pixels at 332 have lost its shape",
    Rounding(2e-3),
    "inneriou.InnerCIoU",
    "zero_wh",
)
differ(
    "mmdet's SIoU adds eps, here 0.001, to the heights; values are the same to 1e-6",
    Instead(as_it_is, None),
    "inneriou.InnerSIoU",
    "eps",
)
differ(
    "the original adds its eps to the penalty once more",
    Instead(lambda config, inputs, outputs: {"out": outputs["out"] - 1e-7}, 1.0),
    "focaleriou.FocalerIoU",
    "giou",
    "ciou",
    "siou",
)
differ(
    "2e-7 added to unions of 0.01 is seen in boxes that are fractions of the image",
    Instead(focaler_of_plain_iou, None),
    "focaleriou.FocalerIoU",
    "normalised",
)
differ(
    "version 1 keeps no mean",
    Instead(without_mean, 1.0),
    "wiou.WIoU",
    "v1",
    "v1_eval",
    "IoU_plain",
    "GIoU_plain",
    "DIoU_plain",
    "CIoU_plain",
)
differ(
    "version 1 keeps no mean, and the eps of the original's SIoU, 1e-4, is seen in gradients",
    Instead(without_mean, None),
    "wiou.WIoU",
    "SIoU_plain",
)
differ(
    "the eps of the original's SIoU, 1e-4, is seen in gradients",
    Instead(as_it_is, None),
    "wiou.WIoU",
    "SIoU_v3",
)
differ(
    "the original's EIoU has the centres' offsets where the paper has the sides' differences",
    Instead(focused_efficient_iou, None),
    "wiou.WIoU",
    "EIoU_plain",
    "EIoU_v3",
)
differ(
    "the derivative of an overlap that begins: 0 by the original's relu, 1 by clamp as in mmdet",
    Instead(as_it_is, None),
    "wiou.WIoU",
    "touching",
    "zero_wh",
)
