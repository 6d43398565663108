"""What the losses of pairs of rotated boxes share: the check of their inputs and their weights."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import ROTATED_BOXES, Expected
from visdet_jax.function import check_same_shape
from visdet_jax.losses.box_loss import weight_of_boxes
from visdet_jax.module import Loss
from visdet_jax.pairs import Columns
from visdet_jax.reduction import weighted_loss


def check_rotated(pred: jax.Array, target: jax.Array) -> None:
    """Raises a ValueError unless both are of one shape (..., 5)."""
    check_same_shape(pred, target)
    if pred.ndim == 0 or pred.shape[-1] != 5:
        raise ValueError(f"rotated boxes must have shape (..., 5), got {pred.shape}")


def rotated_columns(boxes: jax.Array) -> Columns:
    """The five numbers of boxes (..., 5), each (...)."""
    return tuple(boxes[..., i] for i in range(5))


def rotated_loss(formula: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`box_loss` for values (...) of rotated boxes (..., 5), whose weight may be (..., 5) too."""

    @functools.wraps(formula)
    def value(pred, target, **options):
        check_rotated(pred, target)
        return formula(rotated_columns(pred), rotated_columns(target), **options)

    def slope(pred, target, **options):
        def of_columns(*pred):
            return formula(pred, rotated_columns(target), **options)

        values, pull = jax.vjp(of_columns, *rotated_columns(pred))
        return jnp.stack(pull(jnp.ones_like(values)), axis=-1)

    return weighted_loss(value, slope=slope, axis=-1, weight_of_values=weight_of_boxes)


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
