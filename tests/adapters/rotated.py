"""Rotated boxes: mmrotate's Gaussian distances and KFIoU, ultralytics' ProbIoU."""

import numpy as np

from adapters.base import Instead, Rounding, adapts, differ
from visdet_jax import GDLoss, KFLoss, ProbIoULoss, build_loss


@adapts("mmrotate.GDLoss")
def gd_loss(config, pred, target, **call):
    return GDLoss(**config)(pred, target, **call)


@adapts("mmrotate.GDLoss_v1")
def gd_loss_v1(config, pred, target, weight=None, **call):
    """One value a row, as the original, whose weight only says which rows there are."""
    rows = None if weight is None else (weight > 0).astype(pred.dtype)
    loss = build_loss({"type": "GDLoss_v1", "reduction": "none", **config})
    values = loss(pred, target, rows, **call)
    return values if config["loss_type"] == "gwd" else values[:, None]


@adapts("mmrotate.KFLoss")
def kf_loss(config, pred, target, **call):
    return KFLoss(**config)(pred, target, **call)


@adapts("ultralytics.ProbIoU")
def probiou(config, pred, target):
    """The similarity (N, 1)."""
    config = {"ciou" if key == "CIoU" else key: value for key, value in config.items()}
    return 1 - ProbIoULoss(reduction="none", **config)(pred, target)[:, None]


def _in_their_rows(config, inputs, outputs):
    """The original's values of the rows of weight above 0 (none where it gives one 0), else 0."""
    kept = inputs["weight"] > 0
    values = np.zeros((len(kept), 1))
    if kept.any():
        values[kept] = outputs["out"]
    return {"out": values}


def _zero(config, inputs, outputs):
    return {"out": np.float64(0)}


differ(
    "rows of weight 0 cost 0 instead of being left out",
    Instead(_in_their_rows, gradient=1.0),
    "mmrotate.GDLoss_v1",
    "masked",
    "w_zero",
)
differ(
    "the original multiplies (N, 5) by (N,) where no weight is above 0: here it is 0",
    Instead(_zero),
    "mmrotate.KFLoss",
    "w_zero",
    "empty_avg",
)
ROUNDED = "the original's determinants of covariances of sides of 1e-7 are off by up to 4e-5"
differ(
    ROUNDED,
    Rounding(4e-5),
    "mmrotate.GDLoss",
    *(f"{name}_zero_wh" for name in ("gwd", "kld", "jd", "kld_symmax", "kld_symmin")),
)
differ(ROUNDED, Rounding(4e-5), "mmrotate.GDLoss_v1", "kld_zero_wh", "bcd_zero_wh")
