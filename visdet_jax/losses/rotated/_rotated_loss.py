"""What the losses of rotated boxes share: their decorator, their bound and their base class."""

from dataclasses import dataclass
from typing import Any, ParamSpec

import jax

from visdet_jax.core.rules import ROTATED_BOXES, Expected
from visdet_jax.losses.boxes.box_loss import Formula, loss_of_columns
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import WeightedLoss

P = ParamSpec("P")


def rotated_loss(formula: Formula[P]) -> WeightedLoss[P]:
    """Decorator that makes a loss of a formula of rotated boxes; see `box_loss`.

    The formula gets the columns x, y, w, h, angle of pred and target, each (...), and returns
    values (...). The loss takes boxes (..., 5), and weights (...) or (..., 5), the latter by their
    mean.
    """
    return loss_of_columns(formula, 5, "rotated boxes")


@jax.custom_jvp
def bounded(distance: jax.Array, tau: jax.Array) -> jax.Array:
    """1 - 1 / (tau + distance), which is below 1 for every distance.

    Keep the fraction: for tau = 1 the difference above has lost the digits of small distances. Keep
    the derivative by hand: the fraction's own is a difference that has lost the digits of large
    distances.
    """
    return (tau - 1 + distance) / (tau + distance)


@bounded.defjvp
def _bounded_jvp(primals: Any, tangents: Any) -> Any:
    distance, tau = primals
    d_distance, d_tau = tangents
    root = 1 / (distance + tau)
    return bounded(distance, tau), root * root * (d_distance + d_tau)


@dataclass(frozen=True, kw_only=True)
class RotatedLoss(Loss):
    """Base of the losses of rotated boxes."""

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, ROTATED_BOXES), Expected("target", target, ROTATED_BOXES)]
