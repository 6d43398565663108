"""Shape-IoU: overlap, distance and shape of pairs of boxes, weighted by the target's shape."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.hyperparameters import Finite, NonNegative, Number, Positive
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.losses.boxes.siou import shape_cost
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def shape_iou_loss(
    pred: Columns,
    target: Columns,
    *,
    scale: Finite = 0.0,
    eps: NonNegative = 1e-7,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes, plus distance and shape costs.

    1 - IoU + (hh dx² + ww dy²) / c² + shape / 2, d between the centres, c the diagonal of the
    smallest box around both, with
    ww = 2 w^s / (w^s + h^s) and hh = 2 - ww, w and h of the target, s = `scale`,
    shape = Σ of (1 - exp(-hh |Δw| / larger w))⁴ and (1 - exp(-ww |Δh| / larger h))⁴.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      scale: How much the target's shape counts. Larger values weight more what happens along its
        shorter side; 0 weights both alike, and below 0 the longer side has the larger weight. The
        paper ties it to the size of a data set's objects.
      eps: Added to the union and to c², in pixels squared, and taken in place of a larger side
        that is 0; at least 0.

    Returns: (...), from 0 (equal), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Zhang & Zhang 2023, https://arxiv.org/abs/2312.17663
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps, eps=eps)
    iou = overlap_term(iou_of(pair), iou_of, pred, target, inner_ratio, focaler)
    # w^s / (w^s + h^s) by logarithms: powers of pixels overflow.
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
class ShapeIoULoss(OverlapLoss, function=shape_iou_loss):
    """Shape-IoU loss: `shape_iou_loss` with its hyperparameters as fields."""

    scale: float = 0.0
    eps: float = 1e-7
