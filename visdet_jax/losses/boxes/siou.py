"""SIoU: overlap, angle, distance and shape of pairs of boxes."""

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import absolute, clamp, clamp_min, divide
from visdet_jax.losses.boxes._box_loss import box_loss
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_term
from visdet_jax.registry import LOSSES


@box_loss
def siou_loss(pred, target, *, eps=1e-6, neg_gamma=False, inner_ratio=None, focaler=None):
    """One minus the IoU of each pair of boxes, plus half of a distance and a shape cost.

    1 - IoU + (distance + shape) / 2, from 0 to 2, with
    angle = sin 2a, a the angle of the line between the centres,
    distance = Σ over x, y of 1 - exp(g rho), rho = (centres' distance / hull's side)²,
    shape = Σ over w, h of (1 - exp(-|difference| / larger))⁴,
    g = angle - 2 with `neg_gamma`, 2 - angle without.

    Set neg_gamma=True, the paper's form. The reference's default, False, makes distance negative:
    it rewards boxes for being apart. Boxes 10 pixels wide, shifted by 0, 1, 3, 6, 9, 12, 20 and
    50 pixels cost 0, .17, .41, .59, .66, .59, .28 and 0.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to the union, the heights and the centres' distances, floor of the hull's sides.
      neg_gamma: the sign of g.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 to 2, before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Gevorgyan 2022, https://arxiv.org/abs/2205.12740
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou = iou_of(pair)
    dx, dy = pair.dx + eps, pair.dy + eps
    # sin 2a of the smaller over the larger side, which is sin(2 arcsin(side / hypotenuse)).
    across, along = absolute(dx), absolute(dy)
    ratio = divide(jnp.minimum(across, along), jnp.maximum(across, along))
    angle = 2 * ratio / (1 + ratio * ratio)
    gamma = angle - 2 if neg_gamma else 2 - angle
    limit = _exponent_limit(iou)
    distance = shape = 0.0
    for centres, side in ((dx, pair.enclosing_width), (dy, pair.enclosing_height)):
        rho = (centres / clamp_min(side, eps)) ** 2
        distance += 1 - _exp(gamma * rho, limit)
    for side1, side2 in (
        (pair.width1, pair.width2),
        (pair.height1 + eps, pair.height2 + eps),
    ):
        shape += shape_cost(side1, side2, eps)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    return 1 - clamp(iou - 0.5 * (distance + shape), -1, 1)


def shape_cost(side1, side2, eps, factor=1):
    """(1 - exp(-factor |difference| / larger))⁴ of two sides."""
    larger = jnp.maximum(side1, side2)
    nothing = absolute(larger) < 1e-15  # whose square underflows in the division's gradient
    difference = absolute(side1 - side2) / jnp.where(nothing, eps, larger)
    return (1 - _exp(-factor * difference, _exponent_limit(larger) / 4)) ** 4


def _iou(pair, eps):
    return divide(pair.overlap, pair.union + eps)


def _exponent_limit(x):
    return 0.9 * math.log(jnp.finfo(x.dtype).max)


def _exp(x, limit):
    """exp(min(x, limit)): inverted boxes overflow it, and the clamp's 0 × inf would be NaN."""
    return jnp.exp(jnp.minimum(x, limit))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SIoULoss(OverlapLoss):
    """Flax shim of `siou_loss`; set neg_gamma=True, see there."""

    eps: float = 1e-6
    neg_gamma: bool = False

    def compute(self, pred, target, weight, **reduce):
        return siou_loss(
            pred,
            target,
            weight,
            eps=self.eps,
            neg_gamma=self.neg_gamma,
            **self.term,
            **reduce,
        )
