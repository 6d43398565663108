"""What the losses of pairs of boxes share: their decorator, their weights and their base class."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import (
    Columns,
    in_lanes,
    join_columns,
    join_lanes,
    one_of_each_lane,
    split_columns,
)
from visdet_jax.core.checks import check_array, check_same_shape
from visdet_jax.core.rules import BOXES, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import WeightedLoss, weighted_loss

P = ParamSpec("P")
Formula = Callable[Concatenate[Columns, Columns, P], jax.Array]


def box_loss(formula: Formula[P]) -> WeightedLoss[P]:
    """Decorator that makes a loss of a formula of boxes; see `weighted_loss`.

    The formula gets the columns x1, y1, x2, y2 of pred and target, each (...), and returns values
    (...). The loss takes boxes (..., 4), and weights (...) or (..., 4), the latter by their mean.
    """
    return loss_of_columns(formula, 4, "boxes")


def loss_of_columns(formula: Formula[P], count: int, what: str) -> WeightedLoss[P]:
    """The loss of a formula that gets the `count` columns of pred and target.

    Keep the derivative by columns, which autodiff takes and which are stacked once. The derivative
    by slices of pred would be `count` arrays of pred's shape, mostly zeros, that are added up; on
    a CPU it takes five times as long for GIoU (jax 0.10.2).
    """
    of_columns: Callable[..., jax.Array] = formula

    def value(pred: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
        check_boxes(pred, target, count, what)
        return of_columns(split_columns(pred), split_columns(target), **options)

    def d_columns(pred: Columns, target: Columns, **options: Any) -> Columns:
        def value_of_columns(*pred: jax.Array) -> jax.Array:
            return of_columns(pred, target, **options)

        values, pullback = jax.vjp(value_of_columns, *pred)
        return tuple(pullback(jnp.ones_like(values)))

    def derivative(pred: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
        return join_columns(d_columns(split_columns(pred), split_columns(target), **options))

    def value_by_lanes(pred: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
        check_boxes(pred, target, count, what)
        return join_lanes(in_lanes(of_columns, pred, target, **options))

    def derivative_by_lanes(pred: jax.Array, target: jax.Array, **options: Any) -> jax.Array:
        return one_of_each_lane(in_lanes(d_columns, pred, target, **options))

    functools.update_wrapper(value, formula)
    loss: Any = weighted_loss(
        derivative=derivative,
        axis=-1,
        weight_of_values=weight_of_boxes,
        on_gpu=(value_by_lanes, derivative_by_lanes) if count == 4 else None,
    )
    weighted: WeightedLoss[P] = loss(value)
    return weighted


def check_boxes(pred: jax.Array, target: jax.Array, count: int = 4, what: str = "boxes") -> None:
    """Raises a ValueError unless both are boxes (..., count) of one shape."""
    check_same_shape(pred, target)
    if pred.ndim == 0 or pred.shape[-1] != count:
        raise ValueError(f"{what} must have shape (..., {count}), got {pred.shape}")


def weight_of_boxes(boxes: jax.Array, weight: jax.Array) -> jax.Array:
    """One weight a box: a weight for each coordinate counts by its mean, as mmdet's do."""
    check_array("weight", weight)
    if weight.shape == boxes.shape:
        return weight.astype(boxes.dtype).mean(-1)
    if weight.shape == boxes.shape[:-1]:
        return weight
    raise ValueError(
        f"weight must have shape {boxes.shape[:-1]} or {boxes.shape}, got {weight.shape}"
    )


def smooth_near_0(error: jax.Array, width: Any) -> jax.Array:
    """error² / (2 width) where error < width, and error - width / 2 elsewhere: smooth L1."""
    # A minimum, not a `where` of both sides: with a width near 0 the square of a large error
    # overflows, and 0 × inf would be NaN in the gradient.
    inner = jnp.minimum(error, width)
    return 0.5 * inner * (inner / width) + (error - inner)


@dataclass(frozen=True, kw_only=True)
class BoxLoss(Loss):
    """Base of the losses that take boxes, and no other four numbers."""

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, BOXES), Expected("target", target, BOXES)]
