"""ProbIoU: overlap of rotated boxes as Gaussians."""

import math
from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._gaussians import pair_of_boxes
from visdet_jax.boxes._pairs import Columns
from visdet_jax.core.elementary import absolute, arctan2, clamp, clamp_min
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, rotated_loss
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@rotated_loss
def probiou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: Positive = 1e-7,
    floor: NonNegative = 0.0,
    ciou: bool = False,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """The Hellinger distance of each pair of rotated boxes as Gaussians.

    √(1 - exp(-B) + eps), with B = clamp(¼ dᵀ S⁻¹ d + ½ log(det S / (4 √(det P det T))), eps, 100)
    the Bhattacharyya distance. P and T are the covariances of pred and target, whose variances
    along the sides are side² / 12 + floor; S = P + T, and d is the offset of the centres. eps is
    also added to det S in S⁻¹, to the divisor in the logarithm and to the quotient there.
    ciou adds alpha v of `ciou_loss`: v = 4 / π² (arctan(w / h) of target - of pred)², and
    alpha = v / (v + loss + eps), through which no gradient flows.

    Equal boxes cost √(2 eps), with gradient 0. So have boxes far apart, whose B is above 100. Sides
    count by their absolute value. Gradients are finite for boxes without area too, where
    ultralytics' are NaN.

    Args:
      pred, target: Boxes (..., 5): centre x, y, width and height in pixels, angle in radians.
      weight: (...), or (..., 5), of which the mean of the five counts.
      eps: Keeps the loss and its gradient finite for equal and for empty boxes, above 0. Larger
        values flatten the loss of near-equal boxes.
      floor: Added to the variances, in pixels squared, at least 0. Larger values bound the gradient
        of tiny boxes more strictly.
      ciou: Adds the difference of the boxes' aspect ratios.

    Returns: (...), 1 less the ProbIoU, from 0 to 1, and to 1.5 with `ciou`, reduced as
      `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 5.
    Source: Murrugarra-Llerena et al. 2021, https://arxiv.org/abs/2106.06072; ultralytics'
      `probiou`.
    """
    pair = pair_of_boxes(_with_deviations(pred, floor), _with_deviations(target, floor))
    centres = pair.squared_offset_times_det_sum / (pair.det_sum + eps)
    product = 4 * pair.root_det1 * pair.root_det2 + eps
    # The logarithm is of det S / product + eps, and this is that less 1. What is left of it for
    # nearly equal boxes is all in det_sum_excess. Boxes that are tiny beside eps give about -1,
    # which has to stay above -1 by more than rounding.
    lowest = float(jnp.finfo(product.dtype).eps) - 1
    less_1 = clamp_min((pair.det_sum_excess - eps) / product + eps, lowest)
    distance = clamp(centres / 4 + jnp.log1p(less_1) / 2, eps, 100)
    loss = jnp.sqrt(eps - jnp.expm1(-distance))
    if not ciou:
        return loss
    w1, h1, w2, h2 = (absolute(side) for side in (*pred[2:4], *target[2:4]))
    v = (4 / math.pi**2) * arctan2(w2 * h1 - w1 * h2, h1 * h2 + w1 * w2) ** 2
    return loss + jax.lax.stop_gradient(v / (v + loss + eps)) * v


def _with_deviations(boxes: Columns, floor: Number) -> Columns:
    """The boxes with standard deviations as sides; the root of a variance of 0 has gradient 0."""
    x, y, *sides, angle = boxes
    variances = [side * side / 12 + floor for side in sides]
    tiny = jnp.finfo(x.dtype).tiny
    roots = [
        jnp.where(variance < tiny, 0, jnp.sqrt(jnp.where(variance < tiny, 1, variance)))
        for variance in variances
    ]
    return x, y, *roots, angle


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class ProbIoULoss(RotatedLoss, function=probiou_loss):
    """One less the ProbIoU of rotated boxes: `probiou_loss` with its hyperparameters as fields."""

    eps: float = 1e-7
    floor: float = 0.0
    ciou: bool = False
