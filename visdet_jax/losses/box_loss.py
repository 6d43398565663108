"""What the losses of pairs of boxes share: the check of their inputs and their weights."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import BOXES, Expected
from visdet_jax.function import check_array, check_same_shape
from visdet_jax.module import Loss
from visdet_jax.pairs import columns
from visdet_jax.reduction import weighted_loss


def check_boxes(pred: jax.Array, target: jax.Array) -> None:
    """Raises a ValueError unless both are boxes (..., 4) of one shape."""
    check_same_shape(pred, target)
    if pred.ndim == 0 or pred.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (..., 4), got {pred.shape}")


def box_loss(formula: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`weighted_loss` for values (...) of boxes (..., 4), whose weight may be (..., 4) too.

    The formula gets pred and target as their columns. Its slope is autodiff's, of the columns and
    put together once: that of slices would be four arrays of pred's shape, mostly zeros, added.
    """

    @functools.wraps(formula)
    def value(pred, target, **options):
        check_boxes(pred, target)
        return formula(columns(pred), columns(target), **options)

    def slope(pred, target, **options):
        def of_columns(*pred):
            return formula(pred, columns(target), **options)

        values, pull = jax.vjp(of_columns, *columns(pred))
        return jnp.stack(pull(jnp.ones_like(values)), axis=-1)

    return weighted_loss(value, slope=slope, axis=-1, weight_of_values=weight_of_boxes)


def weight_of_boxes(boxes: jax.Array, weight: jax.Array) -> jax.Array:
    """A weight for each coordinate counts by its mean, as mmdet's box targets give it."""
    check_array("weight", weight)
    if weight.shape == boxes.shape:
        return weight.astype(boxes.dtype).mean(-1)
    if weight.shape == boxes.shape[:-1]:
        return weight
    raise ValueError(
        f"weight must have shape {boxes.shape[:-1]} or {boxes.shape}, got {weight.shape}"
    )


@dataclass(frozen=True, kw_only=True)
class BoxLoss(Loss):
    """Base of the losses that are of boxes, and of no other four numbers."""

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, BOXES), Expected("target", target, BOXES)]
