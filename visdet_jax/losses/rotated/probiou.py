"""ProbIoU: overlap of rotated boxes as Gaussians."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes._gaussians import box_pair
from visdet_jax.core.elementary import absolute, arctan2, clamp, clamp_min
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, rotated_loss
from visdet_jax.registry import LOSSES


@rotated_loss
def probiou_loss(pred, target, *, eps=1e-7, floor=0.0, ciou=False):
    """The Hellinger distance of each pair of rotated boxes as Gaussians.

    √(1 - exp(-B) + eps), with B = clamp(¼ dᵀ S⁻¹ d + ½ log(det S / (4 √(det P det T))), eps, 100)
    the Bhattacharyya distance, S = P + T, d between the centres, and eps added to det S, to the
    divisor and to the quotient in the logarithm. The variances along the sides are side² / 12 +
    floor.
    ciou: plus alpha v of `ciou_loss`, v = 4 / π² (arctan(w / h) of target - of pred)²,
    alpha = v / (v + loss + eps).

    No gradient flows through alpha. Equal boxes cost √(2 eps), with gradient 0, and so do boxes
    far apart, whose B is above 100. Sides count by their absolute value.

    Args:
      pred, target: boxes (..., 5): centre x, y, width and height in pixels, angle in radians.
        Weights: (...) or (..., 5), the latter by its mean.
      eps: keeps the distance of equal and empty boxes finite; > 0.
      floor: added to the variances, in pixels squared; bounds the gradient of tiny boxes.
      ciou: adds the difference of the boxes' aspect ratios.
    Returns: (...), 1 less the ProbIoU: from 0 to 1, and to 1.5 with `ciou`, before the weight and
      the reduction.
    Raises: ValueError where the shapes differ or do not end in 5.
    Murrugarra-Llerena et al. 2021, https://arxiv.org/abs/2106.06072; ultralytics' `probiou`.
    """
    pair = box_pair(_deviations(pred, floor), _deviations(target, floor))
    apart = pair.offset / (pair.sum_det + eps)
    product = 4 * pair.root1 * pair.root2 + eps
    # Of det S / product + eps less 1: what is left of nearly equal boxes is all in `gap`. At
    # least rounding above -1, for boxes that are next to nothing beside eps.
    lowest = float(jnp.finfo(product.dtype).eps) - 1
    excess = clamp_min((pair.gap - eps) / product + eps, lowest)
    distance = clamp(apart / 4 + jnp.log1p(excess) / 2, eps, 100)
    loss = jnp.sqrt(eps - jnp.expm1(-distance))
    if not ciou:
        return loss
    w1, h1, w2, h2 = (absolute(side) for side in (*pred[2:4], *target[2:4]))
    v = (4 / math.pi**2) * arctan2(w2 * h1 - w1 * h2, h1 * h2 + w1 * w2) ** 2
    return loss + jax.lax.stop_gradient(v / (v + loss + eps)) * v


def _deviations(boxes, floor):
    """The boxes as `box_pair` takes them; the root of no variance has gradient 0."""
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
class ProbIoULoss(RotatedLoss):
    """Flax shim of `probiou_loss`."""

    eps: float = 1e-7
    floor: float = 0.0
    ciou: bool = False

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("eps")

    def compute(self, pred, target, weight, **reduce):
        return probiou_loss(
            pred, target, weight, eps=self.eps, floor=self.floor, ciou=self.ciou, **reduce
        )
