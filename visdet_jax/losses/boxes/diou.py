"""Overlap, distance and aspect ratio of pairs of boxes: DIoU and CIoU."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import arctan2, clamp, clamp_min, divide
from visdet_jax.losses.boxes._box_loss import box_loss
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_term
from visdet_jax.registry import LOSSES


def _iou(pair, eps):
    return divide(pair.overlap, pair.union + eps)


def _distance(pair, eps):
    """The squared distance of the centres over the hull's squared diagonal."""
    diagonal2 = pair.enclosing_width**2 + pair.enclosing_height**2 + eps
    return divide(pair.dx**2 + pair.dy**2, diagonal2)


def aspect_difference(pair, eps):
    """4 / π² (arctan(w / h) of B - of A)², with eps added to the heights."""
    return (4 / math.pi**2) * _angle_between(pair, eps) ** 2


def _angle_between(pair, eps):
    """arctan(w / h) of B less that of A, as one angle: arctan is slow on a CPU."""
    w1, h1, w2, h2 = pair.width1, pair.height1 + eps, pair.width2, pair.height2 + eps
    # arctan sees no difference between (w, h) and (-w, -h).
    w1, h1 = jnp.where(h1 < 0, -w1, w1), jnp.abs(h1)
    w2, h2 = jnp.where(h2 < 0, -w2, w2), jnp.abs(h2)
    sine, cosine = w2 * h1 - w1 * h2, h1 * h2 + w1 * w2
    return arctan2(sine, cosine)


@box_loss
def diou_loss(pred, target, *, eps=1e-6, inner_ratio=None, focaler=None):
    """One minus the IoU of each pair of boxes, plus the distance of their centres.

    1 - IoU + d² / c², d between the centres, c the diagonal of the smallest box around both.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to the union and to c², in pixels squared.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 (equal) to 2 (far apart), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zheng et al. 2020, https://arxiv.org/abs/1911.08287
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou = overlap_term(iou_of(pair), iou_of, pred, target, inner_ratio, focaler)
    return 1 - (iou - _distance(pair, eps))


@box_loss
def ciou_loss(pred, target, *, eps=1e-6, gated=True, inner_ratio=None, focaler=None):
    """`diou_loss` plus the difference of the boxes' aspect ratios.

    1 - IoU + d² / c² + alpha v, v = 4 / π² (arctan(w / h) of target - of pred)²,
    alpha = v / (1 - IoU + v) where IoU > 0.5, else 0.

    No gradient flows through alpha. The loss is at most 2. Equal boxes cost 0 (in the reference
    NaN in float32). With `gated=False`, as in YOLOv5, alpha is the same at every IoU, and the
    loss has no bound.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to the union and to c², in pixels squared, and to the heights, in pixels; not
        to these without `gated`, but to alpha's denominator.
      gated: aspect ratios count only where IoU > 0.5, and the loss is at most 2.
      inner_ratio, focaler: what replaces the IoU, but in alpha; see `overlap_term`.
    Returns: (...), from 0 (equal) to 2 (far apart), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zheng et al. 2021, https://arxiv.org/abs/2005.03572
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou, distance = iou_of(pair), _distance(pair, eps)
    v = aspect_difference(pair, eps if gated else 0)
    # Rounding can lift the IoU of nearly equal boxes above 1.
    rest = clamp_min(1 - iou, 0) + v
    alpha = jnp.where(iou > 0.5, divide(v, rest), 0) if gated else divide(v, rest + eps)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    ciou = iou - (distance + jax.lax.stop_gradient(alpha) * v)
    return 1 - (clamp(ciou, -1, 1) if gated else ciou)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DIoULoss(OverlapLoss):
    """Flax shim of `diou_loss`."""

    eps: float = 1e-6

    def compute(self, pred, target, weight, **reduce):
        return diou_loss(pred, target, weight, eps=self.eps, **self.term, **reduce)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CIoULoss(OverlapLoss):
    """Flax shim of `ciou_loss`."""

    eps: float = 1e-6
    gated: bool = True

    def compute(self, pred, target, weight, **reduce):
        return ciou_loss(
            pred, target, weight, eps=self.eps, gated=self.gated, **self.term, **reduce
        )
