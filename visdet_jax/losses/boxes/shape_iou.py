"""Shape-IoU: overlap, distance and shape of pairs of boxes, as the target's shape has it."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.losses.boxes._box_loss import box_loss
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_term
from visdet_jax.losses.boxes.siou import shape_cost
from visdet_jax.registry import LOSSES


def _iou(pair, eps):
    return divide(pair.overlap, pair.union + eps)


@box_loss
def shape_iou_loss(pred, target, *, scale=0.0, eps=1e-7, inner_ratio=None, focaler=None):
    """One minus the IoU of each pair of boxes, plus distance and shape costs.

    1 - IoU + (hh dx² + ww dy²) / c² + shape / 2, d between the centres, c the diagonal of the
    smallest box around both, with
    ww = 2 w^s / (w^s + h^s) and hh = 2 - ww, w and h of the target, s = `scale`,
    shape = Σ of (1 - exp(-hh |Δw| / larger w))⁴ and (1 - exp(-ww |Δh| / larger h))⁴.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      scale: how much the target's shape counts; 0 for not at all. The paper ties it to the size
        of a data set's objects.
      eps: added to the union and to c², in pixels squared.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 (equal), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zhang & Zhang 2023, https://arxiv.org/abs/2312.17663
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou = overlap_term(iou_of(pair), iou_of, pred, target, inner_ratio, focaler)
    # Of logarithms: powers of pixels overflow.
    tiny = float(jnp.finfo(iou.dtype).tiny)
    log_aspect = jnp.log(clamp_min(pair.width2, tiny)) - jnp.log(clamp_min(pair.height2, tiny))
    ww = 2 * jax.nn.sigmoid(scale * log_aspect)
    hh = 2 * jax.nn.sigmoid(-scale * log_aspect)
    x1, y1, x2, y2 = pair.enclosing
    distance = divide(hh * pair.dx**2 + ww * pair.dy**2, (x2 - x1) ** 2 + (y2 - y1) ** 2 + eps)
    shape = shape_cost(pair.width1, pair.width2, eps, hh)
    shape += shape_cost(pair.height1, pair.height2, eps, ww)
    return 1 - (iou - distance - 0.5 * shape)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class ShapeIoULoss(OverlapLoss):
    """Flax shim of `shape_iou_loss`."""

    scale: float = 0.0
    eps: float = 1e-7

    def compute(self, pred, target, weight, **reduce):
        return shape_iou_loss(
            pred, target, weight, scale=self.scale, eps=self.eps, **self.term, **reduce
        )
