"""Efficient IoU and its focal form: overlap, distance, width and height of pairs of boxes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import jax

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import divide_once
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.core.power import power
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def efficient_iou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-7,
    focal_gamma: NonNegative | None = None,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes, plus distance, width and height costs.

    1 - IoU + d² / c² + (Δw)² / cw² + (Δh)² / ch², d between the centres, cw and ch the sides of
    the smallest box around both and c its diagonal. Focal-EIoU multiplies that by IoU^focal_gamma.

    No gradient flows through the focal weight, whose IoU is never replaced. With it boxes that do
    not overlap cost 0.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Added to c², cw² and ch², and twice to the union, in pixels squared, at least 0.
      focal_gamma: Exponent of the focal weight, at least 0. Larger values down-weight pairs that
        overlap little more. The paper has 0.5; None has no focal weight.

    Returns: (...), from 0 (equal) to 4, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Zhang et al. 2021, https://arxiv.org/abs/2101.08158; eps stands where the losses of the
      YOLO family have it.
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps, eps=2 * eps)
    iou = iou_of(pair, by=divide_once)
    x1, y1, x2, y2 = pair.enclosing
    squared_width, squared_height = (x2 - x1) ** 2, (y2 - y1) ** 2
    penalty = (
        divide_once(pair.squared_distance, squared_width + squared_height + eps)
        + divide_once((pair.width2 - pair.width1) ** 2, squared_width + eps)
        + divide_once((pair.height2 - pair.height1) ** 2, squared_height + eps)
    )
    loss = 1 - (overlap_term(iou, iou_of, pred, target, inner_ratio, focaler) - penalty)
    if focal_gamma is None:
        return loss
    return loss * power(jax.lax.stop_gradient(iou), focal_gamma)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EfficientIoULoss(OverlapLoss, function=efficient_iou_loss):
    """Efficient IoU loss, Focal-EIoU with `focal_gamma`: `efficient_iou_loss`."""

    eps: float = 1e-7
    focal_gamma: float | None = None
