"""Weight, reduction and avg_factor: what happens to the values of every loss, written once."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.closed_form import closed_form
from visdet_jax.function import as_dtype, check_array, compute_dtype, jitted

REDUCTIONS = ("none", "mean", "sum")
# The reference adds float32's eps to every avg_factor, in float64 too.
AVG_FACTOR_EPS = float(np.finfo(np.float32).eps)


def reduce_loss(loss: jax.Array, reduction: str) -> jax.Array:
    """The values as they are ("none"), their mean (0 of nothing) or their sum."""
    return weight_reduce_loss(loss, reduction=reduction)


def weight_reduce_loss(
    loss: jax.Array,
    weight: jax.Array | None = None,
    reduction: str = "mean",
    avg_factor: jax.Array | float | None = None,
) -> jax.Array:
    """Weighs the values of a loss, then reduces them.

    Args:
      loss: values, any shape. Half floats are summed in float32.
      weight: of the values' shape, or of its leading part such as (N,) against (N, C), which
        counts for the rest, or with axes of size 1 such as (N, 1). A value of weight 0 adds
        exactly 0, to the gradient too, even if it is NaN.
      reduction: "mean" divides the sum by the number of values (not by the sum of weights);
        "sum"; "none" keeps the shape.
      avg_factor: a number to divide the sum by in place of the number of values, plus 1.2e-7.
        A batch's number of positives, say. Without effect under "none".
    Returns: a scalar, or values under "none"; float32, or float64 for float64 values.
    Raises: ValueError for another reduction, avg_factor with "sum", an avg_factor that is no
      scalar, and a weight whose shape does not fit.
    """
    check_reduction(reduction, avg_factor)
    loss = loss.astype(compute_dtype(loss=loss))
    if weight is not None:
        weight = spread_weight(weight, loss.shape).astype(loss.dtype)
        loss = jnp.where(weight == 0, 0, loss) * weight
    if reduction == "none":
        return loss
    total = loss.sum()
    if reduction == "sum":
        return total
    if avg_factor is None:
        return total / max(loss.size, 1)
    return total / (as_dtype(loss.dtype, avg_factor) + AVG_FACTOR_EPS)


def check_reduction(reduction: str, avg_factor: jax.Array | float | None) -> None:
    """Raises a ValueError for another reduction and an avg_factor that it cannot be used with."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    if avg_factor is None or reduction == "none":
        return
    if reduction == "sum":
        raise ValueError('avg_factor can not be used with reduction="sum"')
    shape = jnp.shape(avg_factor)
    if shape:
        raise ValueError(f"avg_factor must be a number, got an array of shape {shape}")


def spread_weight(weight: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`weight` with as many axes as `shape`, so that (N,) counts for the rows of (N, C)."""
    check_array("weight", weight)
    leading = weight.ndim > 0 and weight.shape == shape[: weight.ndim]
    ones = weight.ndim == len(shape) and all(
        w in (1, n) for w, n in zip(weight.shape, shape, strict=True)
    )
    if not (leading or ones):
        raise ValueError(
            f"weight {weight.shape} does not fit values {shape}: give one weight a value, "
            f"or one a row {shape[:1]}"
        )
    return weight.reshape(weight.shape + (1,) * (len(shape) - weight.ndim))


def weight_without(
    ignored: jax.Array, weight: jax.Array | None, shape: tuple[int, ...]
) -> jax.Array:
    """`weight`, or ones, with 0 where `ignored` (a mask whose axes are those of `shape` or 1)."""
    kept = jnp.ones_like(ignored, jnp.float32) if weight is None else spread_weight(weight, shape)
    return jnp.where(ignored, 0, kept)


def zero_where_unweighted(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` with 0 wherever its weight is 0: what stood there, NaN say, is never computed with.

    On the inputs, because a NaN that a formula has read is in its gradient whatever is done to
    its value.
    """
    return jnp.where(spread_weight(weight, x.shape) == 0, 0, x)


def weighted_loss(
    formula: Callable[..., jax.Array] | None = None,
    *,
    slope: Callable[..., jax.Array] | None = None,
    axis: int | slice | None = None,
    exponents: Sequence[str] = (),
    weight_of_values: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> Callable[..., Any]:
    """Makes a loss of a formula: adds `weight`, `reduction` and `avg_factor`, and the jit.

    The formula takes `pred`, `target` and keyword hyperparameters, and returns values whose shape
    is a leading part of pred's. It gets pred and target as floats of one type (float64 where one
    of them is, else float32) and rows of weight 0 as zeros. A hyperparameter is a number or a
    tuple of numbers, which come in that type too, a string, a bool or None. The loss made of it
    has the signature
    `(pred, target, weight=None, *, <hyperparameters>, reduction="mean", avg_factor=None)`; see
    `weight_reduce_loss` for the last three. Its gradient has the inputs' types.

    Args:
      formula: `(pred, target, *, hyperparameters) -> values`.
      slope: the derivative of the formula by pred, of the same arguments and pred's shape. Without
        it autodiff finds the gradient, and keeps more; see `closed_form`.
      axis: of pred, or a slice of its axes, which a formula with a slope sums; None for an
        elementwise one.
      exponents: hyperparameters that are powers; see `jitted`.
      weight_of_values: `(pred, weight) -> weight`, for a weight that is not given as the values'.

    Example:
      >>> @weighted_loss
      ... def log_cosh_loss(pred, target):
      ...     return jnp.log(jnp.cosh(pred - target))
    """
    if formula is None:
        return functools.partial(
            weighted_loss,
            slope=slope,
            axis=axis,
            exponents=exponents,
            weight_of_values=weight_of_values,
        )

    def loss(pred, target, weight=None, *, reduction="mean", avg_factor=None, **options):
        dtype = compute_dtype(pred=pred, target=target)
        pred, target = pred.astype(dtype), target.astype(dtype)
        options = jax.tree.map(
            lambda x: x if isinstance(x, str | bool) else as_dtype(dtype, x), defaults | options
        )
        if weight is not None:
            check_array("weight", weight)
            if weight_of_values is not None:
                weight = weight_of_values(pred, weight)
        if slope is not None:
            values = _in_closed_form(formula, slope, axis, pred, target, weight, options)
            return weight_reduce_loss(values, None, reduction, avg_factor)
        if weight is not None:
            pred = zero_where_unweighted(pred, weight)
            target = zero_where_unweighted(target, weight)
        values = formula(pred, target, **options)
        return weight_reduce_loss(values, weight, reduction, avg_factor)

    common = list(inspect.signature(loss).parameters.values())[:-1]
    own = [p for p in inspect.signature(formula).parameters.values() if p.kind == p.KEYWORD_ONLY]
    defaults = {p.name: p.default for p in own}
    functools.update_wrapper(loss, formula)
    signature = inspect.Signature(common[:3] + own + common[3:])
    loss.__signature__ = signature  # type: ignore[attr-defined]
    return jitted(loss, exponents=exponents)


def _in_closed_form(formula, slope, axis, pred, target, weight, options):
    """The values of a formula with a slope, weighed."""
    static = {k: v for k, v in options.items() if v is None or isinstance(v, str | bool)}
    names = [k for k in options if k not in static]

    def with_names(function):
        return lambda pred, target, *numbers: function(
            pred, target, **dict(zip(names, numbers, strict=True)), **static
        )

    summed = () if axis is None else np.atleast_1d(np.arange(pred.ndim)[axis]).tolist()
    if weight is not None:
        shape = tuple(n for i, n in enumerate(pred.shape) if i not in summed)
        weight = spread_weight(weight, shape).astype(pred.dtype)
    weighed = closed_form(with_names(formula), with_names(slope), tuple(summed))
    return weighed(weight, pred, target, *(options[name] for name in names))


def reduce_mean(x: jax.Array, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The mean of `x` over the devices of a named mesh axis: mmdet's `reduce_mean`.

    For normalisers such as a batch's number of positives, inside `shard_map` or
    `vmap(axis_name=...)`. Without an axis, and under plain `jit` over sharded arrays where sums
    are global already, `x` itself.
    """
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def reduce_sum(x: jax.Array, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The sum of `x` over the devices of a named mesh axis, `x` itself without one.

    For the running statistics of the losses that keep any; see `reduce_mean`.
    """
    return x if axis_name is None else jax.lax.psum(x, axis_name)
