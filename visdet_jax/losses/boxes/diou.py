"""Overlap, distance and aspect ratio of pairs of boxes: DIoU and CIoU."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import arctan2, clamp, clamp_min, divide, divide_once
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def diou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-6,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes, plus the distance of their centres.

    1 - IoU + d² / c², d between the centres, c the diagonal of the smallest box around both.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Added to the union and to c², in pixels squared, at least 0.

    Returns: (...), from 0 (equal) to 2 (far apart), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Zheng et al. 2020, https://arxiv.org/abs/1911.08287
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps, eps=eps)
    iou = overlap_term(iou_of(pair, by=divide_once), iou_of, pred, target, inner_ratio, focaler)
    return 1 - (iou - distance_term(pair, eps))


@overlap_loss
def ciou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-6,
    gated: bool = True,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """`diou_loss` plus the difference of the boxes' aspect ratios.

    1 - IoU + d² / c² + alpha v, v = 4 / π² (arctan(w / h) of target - of pred)²,
    alpha = v / (1 - IoU + v) where IoU > 0.5, else 0.

    No gradient flows through alpha. The loss is at most 2. Equal boxes cost 0 (in mmdet NaN in
    float32). With `gated=False`, as in YOLOv5, alpha is the same function at every IoU, and the
    loss has no bound. The IoU in alpha is never replaced.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Added to the union and to c², in pixels squared, at least 0. With `gated` it is also
        added to the heights in v, in pixels; without, to alpha's denominator.
      gated: Aspect ratios count only where IoU > 0.5, and the loss is at most 2.

    Returns: (...), from 0 (equal) to 2 (far apart), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Zheng et al. 2021, https://arxiv.org/abs/2005.03572
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps, eps=eps)
    iou, distance = iou_of(pair, by=divide_once), distance_term(pair, eps)
    v = aspect_difference(pair, eps if gated else 0)
    rest = clamp_min(1 - iou, 0) + v  # The IoU may be above 1, see `PairGeometry`.
    alpha = jnp.where(iou > 0.5, divide(v, rest), 0) if gated else divide(v, rest + eps)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    ciou = iou - (distance + jax.lax.stop_gradient(alpha) * v)
    return 1 - (clamp(ciou, -1, 1) if gated else ciou)


def distance_term(pair: PairGeometry, eps: Any) -> jax.Array:
    """The centres' squared distance over the enclosing box's squared diagonal plus eps."""
    return divide_once(pair.squared_distance, pair.squared_diagonal + eps)


def aspect_difference(pair: PairGeometry, eps: Any) -> jax.Array:
    """4 / π² (arctan(w / h) of B - of A)², with eps added to the heights.

    Keep one arctangent, of the angle between the two. The difference of two arctangents has four
    times the error where the aspect ratios nearly agree, and with it the loss takes 1.3 times as
    long or more on a CPU (jax 0.10.2).
    """
    w1, h1, w2, h2 = pair.width1, pair.height1 + eps, pair.width2, pair.height2 + eps
    # arctan(w / h) does not tell (w, h) from (-w, -h), and arctan2 does.
    w1, h1 = jnp.where(h1 < 0, -w1, w1), jnp.abs(h1)
    w2, h2 = jnp.where(h2 < 0, -w2, w2), jnp.abs(h2)
    angle = arctan2(w2 * h1 - w1 * h2, h1 * h2 + w1 * w2)
    return (4 / math.pi**2) * angle**2


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DIoULoss(OverlapLoss, function=diou_loss):
    """Distance IoU loss: `diou_loss` with its hyperparameters as fields."""

    eps: float = 1e-6


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CIoULoss(OverlapLoss, function=ciou_loss):
    """Complete IoU loss: `ciou_loss` with its hyperparameters as fields."""

    eps: float = 1e-6
    gated: bool = True
