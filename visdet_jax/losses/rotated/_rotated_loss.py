"""What the losses of pairs of rotated boxes share: the check of their inputs and their weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ParamSpec

import jax

from visdet_jax.core.rules import ROTATED_BOXES, Expected
from visdet_jax.losses.boxes._box_loss import Formula, loss_of_columns
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import WeightedLoss

P = ParamSpec("P")


def rotated_loss(formula: Formula[P]) -> WeightedLoss[P]:
    """Decorator that makes a loss of a formula of rotated boxes; see `box_loss`.

    The formula gets the columns x, y, w, h, angle of pred and target. The loss takes boxes
    (..., 5), and weights (...) or (..., 5), the latter by their mean.
    """
    return loss_of_columns(formula, 5, "rotated boxes")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError unless `value` is one of `choices`."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {listed}; got {value!r}")


@jax.custom_jvp
def bounded(distance: jax.Array, tau: jax.Array) -> jax.Array:
    """1 - 1 / (tau + distance), as a fraction: for tau = 1 small distances keep their digits.

    The slope of that fraction would be a difference without any for large ones.
    """
    return (tau - 1 + distance) / (tau + distance)


@bounded.defjvp
def _bounded_jvp(primals, tangents):
    root = 1 / (primals[0] + primals[1])
    return bounded(*primals), root * root * (tangents[0] + tangents[1])


@dataclass(frozen=True, kw_only=True)
class RotatedLoss(Loss):
    """Base of the losses of rotated boxes."""

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, ROTATED_BOXES), Expected("target", target, ROTATED_BOXES)]
