"""α-IoU: powers of the overlap of pairs of boxes and of the penalties beside it."""

from dataclasses import dataclass
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.hyperparameters import NonNegative, Positive
from visdet_jax.core.power import power
from visdet_jax.losses.boxes.box_loss import BoxLoss, box_loss
from visdet_jax.losses.boxes.diou import aspect_difference
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@box_loss
def alpha_iou_loss(
    pred: Columns,
    target: Columns,
    *,
    mode: Literal["iou", "giou", "diou", "ciou"] = "iou",
    alpha: Positive = 2.0,
    eps: NonNegative = 1e-9,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes to the power alpha, plus powers of penalties.

    iou: 1 - IoU^alpha.
    giou: plus ((|C| - |A ∪ B|) / |C|)^alpha, C the smallest box around A and B.
    diou: plus (d² / c²)^alpha, d between the centres, c the diagonal of C.
    ciou: plus that and (a v)^alpha, v = 4 / π² (arctan(w / h) of target - of pred)²,
      a = v / (1 - IoU + v), which no gradient flows through.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      mode: "iou", "giou", "diou" or "ciou".
      alpha: The power, above 0. Larger values raise the gradient of pairs that overlap much and
        lower that of the others. The authors' code has 2, the paper recommends 3.
      eps: Added to the bases of all powers but that of d², to what is divided by, and to the
        heights; at least 0.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    Source: He et al. 2021, https://arxiv.org/abs/2110.13675
    """
    pair = pair_geometry(pred, target)
    union = pair.union_with_eps_in_heights(eps)
    iou = divide(pair.overlap, union)
    term = power(iou + eps, alpha)
    if mode == "giou":
        enclosing = jnp.maximum(pair.enclosing_width * pair.enclosing_height + eps, union)
        rest = divide(enclosing - union, enclosing) + eps
        # At most 1, but for inverted boxes, whose power would overflow.
        term -= power(jnp.where(rest > 2, 2, rest), alpha)
    if mode in ("diou", "ciou"):
        term -= _distance(pair, alpha, eps)
    if mode == "ciou":
        v = aspect_difference(pair, eps)
        a = divide(v, clamp_min(1 - iou, 0) + eps + v)
        term -= power(jax.lax.stop_gradient(a) * v + eps, alpha)
    return 1 - term


def _distance(pair: PairGeometry, alpha: Any, eps: Any) -> jax.Array:
    """(d²)^alpha / ((c²)^alpha + eps), computed in units of the enclosing box's longer side.

    In pixels the power of a squared side of 2000 overflows float32 from alpha = 6 on.
    """
    cw, ch = pair.enclosing_width, pair.enclosing_height
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(cw, ch), 1))
    dx, dy, cw, ch = (side / unit for side in (pair.dx, pair.dy, cw, ch))
    diagonal = cw**2 + ch**2
    # d is at most c, but for inverted boxes, whose power would overflow.
    distance = dx**2 + dy**2
    highest = jax.lax.stop_gradient(2 * diagonal)
    distance = jnp.where(distance > highest, highest, distance)
    return divide(power(distance, alpha), power(diagonal, alpha) + eps * power(1 / unit, 2 * alpha))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class AlphaIoULoss(BoxLoss, function=alpha_iou_loss):
    """α-IoU loss: `alpha_iou_loss` with its hyperparameters as fields."""

    mode: str = "iou"
    alpha: float = 2.0
    eps: float = 1e-9
