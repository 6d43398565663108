"""Losses of pairs of boxes by their overlap."""

import functools
from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.function import warn
from visdet_jax.losses.box_loss import box_loss
from visdet_jax.losses.iou_term import OverlapLoss, overlap_term
from visdet_jax.numerics import clamp_min, divide
from visdet_jax.pairs import pair_geometry
from visdet_jax.registry import LOSSES

IOU_MODES = ("linear", "square", "log")


def _iou(pair, eps):
    union = jnp.maximum(pair.union, eps)
    return divide(pair.overlap, union)


@box_loss
def iou_loss(pred, target, *, linear=False, mode="log", eps=1e-6, inner_ratio=None, focaler=None):
    """A decreasing function of the IoU of each pair of boxes.

    1 - IoU (mode "linear"), 1 - IoU² ("square") or -log IoU ("log"), with IoU at least eps.

    The IoU's union is at least 1e-6 whatever eps is. Boxes that do not overlap cost -log eps
    (13.8 by default) in log mode, with gradient 0.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      linear: deprecated spelling of mode="linear".
      mode: "linear", "square" or "log".
      eps: floor of the IoU.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    Yu et al. 2016, https://arxiv.org/abs/1608.01471
    """
    if linear:
        _warn_linear()
        mode = "linear"
    if mode not in IOU_MODES:
        raise ValueError(f"mode must be one of {', '.join(IOU_MODES)}; got {mode!r}")
    iou_of = functools.partial(_iou, eps=1e-6)
    iou = iou_of(pair_geometry(pred, target))
    iou = clamp_min(overlap_term(iou, iou_of, pred, target, inner_ratio, focaler), eps)
    if mode == "linear":
        return 1 - iou
    return 1 - iou * iou if mode == "square" else -jnp.log(iou)


@box_loss
def giou_loss(pred, target, *, eps=1e-6, inner_ratio=None, focaler=None):
    """One minus the generalized IoU of each pair of boxes.

    1 - (IoU - (|C| - |A ∪ B|) / |C|), C the smallest box around A and B.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: floor of the areas that are divided by, in pixels squared.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 (equal) to 2 (far apart), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630
    """
    pair = pair_geometry(pred, target)
    union = jnp.maximum(pair.union, eps)
    iou, iou_of = divide(pair.overlap, union), functools.partial(_iou, eps=eps)
    hull = jnp.maximum(pair.hull_width * pair.hull_height, eps)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    return 1 - (iou - divide(hull - union, hull))


def _warn_linear():
    warn('linear=True is deprecated, write mode="linear"', DeprecationWarning)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class IoULoss(OverlapLoss):
    """Flax shim of `iou_loss`; `linear=True` becomes mode="linear"."""

    linear: bool = False
    eps: float = 1e-6
    mode: str = "log"

    def __post_init__(self):
        super().__post_init__()
        if self.mode not in IOU_MODES:
            self.refuse(f"mode must be one of {', '.join(IOU_MODES)}; got {self.mode!r}")
        if self.linear:
            _warn_linear()
            object.__setattr__(self, "mode", "linear")
            object.__setattr__(self, "linear", False)

    def compute(self, pred, target, weight, **reduce):
        return iou_loss(pred, target, weight, mode=self.mode, eps=self.eps, **self.term, **reduce)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GIoULoss(OverlapLoss):
    """Flax shim of `giou_loss`."""

    eps: float = 1e-6

    def compute(self, pred, target, weight, **reduce):
        return giou_loss(pred, target, weight, eps=self.eps, **self.term, **reduce)
