"""SIoU: overlap, angle, distance and shape of pairs of boxes."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import absolute, clamp, clamp_min, divide
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def siou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-6,
    neg_gamma: bool = False,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes, plus half of a distance and a shape cost.

    1 - IoU + (distance + shape) / 2, clamped to [0, 2], with
    angle = sin 2a, a the angle of the line between the centres,
    distance = Σ over x, y of 1 - exp(g rho), rho = (centres' distance / enclosing box's side)²,
    shape = Σ over w, h of (1 - exp(-|difference| / larger))⁴,
    g = angle - 2 with `neg_gamma`, 2 - angle without.

    Set neg_gamma=True, the paper's form. mmdet's default, False, makes the distance negative: it
    rewards boxes for being apart. Boxes 10 pixels wide, shifted by 0, 1, 3, 6, 9, 12, 20 and
    50 pixels cost 0, .17, .41, .59, .66, .59, .28 and 0.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Added to the union, the heights and the centres' distances; the least side of the
        enclosing box, and what replaces a larger side of 0. At least 0.
      neg_gamma: The sign of g: True is the paper's form.

    Returns: (...), from 0 to 2, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Gevorgyan 2022, https://arxiv.org/abs/2205.12740
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps, eps=eps)
    iou = iou_of(pair)
    costs = distance_and_shape_costs(pair, eps, neg_gamma)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    return 1 - clamp(iou - 0.5 * costs, -1, 1)


def distance_and_shape_costs(pair: PairGeometry, eps: Any, neg_gamma: bool) -> jax.Array:
    """The sum of the distance and the shape cost of SIoU; see `siou_loss`."""
    dx, dy = pair.dx + eps, pair.dy + eps
    # sin 2a of the smaller over the larger side, which is sin(2 arcsin(side / hypotenuse)).
    across, along = absolute(dx), absolute(dy)
    ratio = divide(jnp.minimum(across, along), jnp.maximum(across, along))
    angle = 2 * ratio / (1 + ratio * ratio)
    gamma = angle - 2 if neg_gamma else 2 - angle
    limit = _exponent_limit(dx)

    def distance_cost(offset: jax.Array, enclosing_side: jax.Array) -> jax.Array:
        rho = (offset / clamp_min(enclosing_side, _above_0(eps))) ** 2
        return 1 - _exp(gamma * rho, limit)

    distance = distance_cost(dx, pair.enclosing_width) + distance_cost(dy, pair.enclosing_height)
    shape = shape_cost(pair.width1, pair.width2, eps)
    shape += shape_cost(pair.height1 + eps, pair.height2 + eps, eps)
    return distance + shape


def shape_cost(side1: jax.Array, side2: jax.Array, eps: Any, factor: Any = 1) -> jax.Array:
    """(1 - exp(-factor |difference| / larger))⁴ of two sides; eps replaces a larger side of 0."""
    larger = jnp.maximum(side1, side2)
    # Below 1e-15 its square, which the gradient divides by, underflows float32.
    larger_or_eps = jnp.where(absolute(larger) < 1e-15, _above_0(eps), larger)
    difference = absolute(side1 - side2) / larger_or_eps
    return (1 - _exp(-factor * difference, _exponent_limit(larger) / 4)) ** 4


def _above_0(eps: Any) -> jax.Array:
    """What is divided by where a side is 0, for an eps of 0 too."""
    return jnp.maximum(eps, 1e-12)


def _exponent_limit(x: jax.Array) -> float:
    """The logarithm of √max, max being the largest number of x's type.

    What is left is for the factors by which a gradient multiplies its exp.
    """
    return 0.5 * math.log(float(jnp.finfo(x.dtype).max))


def _exp(x: jax.Array, limit: float) -> jax.Array:
    """exp(min(x, limit)), for inverted boxes.

    Without the limit their exp overflows, and the loss's clamp, with gradient 0, makes it
    0 × inf = NaN.
    """
    return jnp.exp(jnp.minimum(x, limit))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SIoULoss(OverlapLoss, function=siou_loss):
    """SIoU loss: `siou_loss` with its hyperparameters as fields. Set neg_gamma=True, see there."""

    eps: float = 1e-6
    neg_gamma: bool = False
