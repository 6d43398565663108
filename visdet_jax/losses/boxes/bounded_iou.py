"""Bounded IoU: each coordinate's best possible IoU, of Fitness NMS."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import absolute, divide
from visdet_jax.core.jitted import jitted
from visdet_jax.losses.boxes._box_loss import BoxLoss, check_boxes
from visdet_jax.reduction import spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def bounded_iou_loss(
    pred, target, weight=None, *, beta=0.2, eps=1e-3, reduction="mean", avg_factor=None
):
    """Smooth L1 of one minus the IoU that each of x, y, w, h alone would allow.

    1 - max((w - 2 |dx|) / (w + 2 |dx|), 0), w the target's width and dx between the centres, the
    same for y, and 1 - min(w / w', w' / w), w' pred's width, the same for h; of these e² / (2
    beta) where e < beta, e - beta / 2 elsewhere.

    No gradient flows into target.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...) or (..., 4), the latter by x, y, w, h.
      beta: where the parabola ends, in units of IoU; > 0.
      eps: added to the lengths that are divided by, in pixels.
    Returns: (..., 4) of x, y, w, h, before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Tychsen-Smith & Petersson 2018, https://arxiv.org/abs/1711.00164
    """
    dtype = compute_dtype(pred=pred, target=target)
    check_boxes(pred, target)
    pred, target = pred.astype(dtype), jax.lax.stop_gradient(target.astype(dtype))
    beta, eps = as_dtype(dtype, beta, eps)
    if weight is not None:
        weight = spread_weight(weight, pred.shape)
        # Each of x, y, w, h reads two coordinates: only a box without any weight is not read.
        read = (weight != 0).any(-1, keepdims=True)
        pred, target = jnp.where(read, pred, 0), jnp.where(read, target, 0)
    pair = pair_geometry(pred, target)
    errors = []
    for length, offset in ((pair.width2, pair.dx), (pair.height2, pair.dy)):
        twice = 2 * absolute(offset)
        errors.append(1 - jnp.maximum(divide(length - twice, length + twice + eps), 0))
    for side1, side2 in ((pair.width1, pair.width2), (pair.height1, pair.height2)):
        errors.append(1 - jnp.minimum(divide(side2, side1 + eps), divide(side1, side2 + eps)))
    error = jnp.stack(errors, axis=-1)
    inner = jnp.minimum(error, beta)
    values = 0.5 * inner * (inner / beta) + (error - inner)
    return weight_reduce_loss(values, weight, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class BoundedIoULoss(BoxLoss):
    """Flax shim of `bounded_iou_loss`."""

    beta: float = 0.2
    eps: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("beta")

    def compute(self, pred, target, weight, **reduce):
        return bounded_iou_loss(pred, target, weight, beta=self.beta, eps=self.eps, **reduce)
