"""Extended IoU of pairs of boxes, of libfacedetection."""

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, pair_geometry
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import NonNegative, Positive
from visdet_jax.losses.boxes.box_loss import BoxLoss, box_loss, smooth_near_0
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@box_loss
def eiou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-6,
    smooth_point: Positive = 0.1,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the extended IoU of each pair of boxes, smooth where they nearly match.

    With e = 1 - I / U: e² / (2 s) where e < s, e - s / 2 elsewhere, s = `smooth_point`.
    For boxes that overlap I is the overlap. For boxes that do not it is below 0, the more the
    further they are apart. U = area + area - I.

    This is Extended IoU, as mmdet's loss of this name. It is not the Efficient IoU
    (https://arxiv.org/abs/2101.08158), called EIoU too, that penalizes widths and heights: that is
    `efficient_iou_loss`.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Added to U, in pixels squared, at least 0.
      smooth_point: Where the parabola ends, in units of IoU, above 0. Larger values lower the
        gradient of boxes that nearly match.

    Returns: (...), from 0 (equal) to 2 - s / 2 (apart; more if inverted), reduced as
      `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Peng & Yu 2021, A Systematic IoU-Related Method: Beyond Simplified Regression for
      Better Localization, https://ieeexplore.ieee.org/document/9429909
    """
    pair = pair_geometry(pred, target)
    (x1, y1, x2, y2), (left, top, _, _) = pair.intersection, pair.enclosing
    overlap = (
        (x2 - left) * (y2 - top)
        + (jnp.minimum(x1, x2) - left) * (jnp.minimum(y1, y2) - top)
        - (x1 - left) * (jnp.maximum(y1, y2) - top)
        - (jnp.maximum(x1, x2) - left) * (y1 - top)
    )
    error = 1 - divide(overlap, pair.area1 + pair.area2 - overlap + eps)
    # Equal inverted boxes have I / U = 2 area / eps. Without this bound the gradient of its square
    # overflows float32.
    error = jnp.maximum(error, -1e10)
    return smooth_near_0(error, smooth_point)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EIoULoss(BoxLoss, function=eiou_loss):
    """Extended IoU loss, not Efficient IoU: `eiou_loss` with its hyperparameters as fields."""

    eps: float = 1e-6
    smooth_point: float = 0.1
