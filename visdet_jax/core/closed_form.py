"""Losses whose derivative by pred is written by hand.

Autodiff of a loss keeps three to four arrays of pred's size between the value and the gradient,
and padding has to be hidden from the formula on its inputs, which costs one more pass over them.
With the derivative in closed form value and gradient are one loop each: read pred, write the
result.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

Formula = Callable[..., jax.Array]
Axis = int | tuple[int, ...]


def closed_form(
    value: Formula,
    derivative: Formula,
    axis: Axis = (),
    has_alone: bool = False,
    on_gpu: tuple[Formula, Formula] | None = None,
) -> Formula:
    """Makes `(weight, pred, *others) -> weight · value(pred, *others)` of a value and a derivative.

    Where the weight is 0 the result and its gradients of every order are exactly 0, even if pred
    is NaN there. Higher derivatives by pred, and all derivatives by the others and by the weight,
    are left to autodiff.

    Args:
      value: `(pred, *others) -> values`, of pred's shape without `axis`. Others that broadcast
        against pred (arrays of as many axes) are not read where the weight is 0; numbers and
        arrays of fewer axes are hyperparameters.
      derivative: its derivative by pred, of the same arguments and of pred's shape. What both
        spell in the same way, XLA computes once and stores; what is spelt in two ways it computes
        twice and stores nowhere.
      axis: the axis or axes of pred that the value has summed.
      has_alone: `value` takes `alone=True` where no derivative is taken, for another spelling of
        itself that is better there.
      on_gpu: value and derivative as GPUs get them, for another spelling that is better there.
        Autodiff never sees it, so it may hold what autodiff cannot take.

    Returns: a function of the weight (None, or one that broadcasts against the values, with as
      many axes), of pred and of the others.
    """
    value_alone = functools.partial(value, alone=True) if has_alone else value
    value_here, derivative_here = value_alone, derivative
    if on_gpu is not None:
        value_here, derivative_here = map(_by_platform, (value_alone, derivative), on_gpu)
    weighted = jax.custom_jvp(functools.partial(_weighted, value_here, (), False))
    weighted_derivative = jax.custom_jvp(functools.partial(_weighted, derivative_here, axis, True))

    def weighted_jvp(primals: Any, tangents: Any) -> Any:
        d_weight, d_pred, *d_others = tangents
        out = _weighted(value, (), False, *primals) if has_alone else weighted(*primals)
        hidden = functools.partial(_weighted_inside, value, axis, ())
        tangent = _jvp_along_nonzero(hidden, primals, (d_weight, None, *d_others))
        if not isinstance(d_pred, SymbolicZero):
            along_pred = (weighted_derivative(*primals) * d_pred).sum(axis)
            tangent = along_pred if tangent is None else tangent + along_pred
        return out, jnp.zeros_like(out) if tangent is None else tangent

    def weighted_derivative_jvp(primals: Any, tangents: Any) -> Any:
        out = weighted_derivative(*primals)
        hidden = functools.partial(_weighted_inside, derivative, axis, axis)
        tangent = _jvp_along_nonzero(hidden, primals, tangents)
        return out, jnp.zeros_like(out) if tangent is None else tangent

    weighted.defjvp(weighted_jvp, symbolic_zeros=True)
    weighted_derivative.defjvp(weighted_derivative_jvp, symbolic_zeros=True)
    return weighted


def _by_platform(formula: Formula, on_gpu: Formula) -> Formula:
    """The formula, and on GPUs the other one."""

    def function(*arguments: Any) -> jax.Array:
        forms = {"cuda": on_gpu, "rocm": on_gpu, "default": formula}
        result: jax.Array = jax.lax.platform_dependent(*arguments, **forms)
        return result

    return function


def _weighted(
    formula: Formula,
    axis: Axis,
    is_derivative: bool,
    weight: jax.Array | None,
    pred: jax.Array,
    *others: Any,
) -> jax.Array:
    """The formula times the weight, for a formula that autodiff does not differentiate.

    It may read NaN where the weight is 0: the result is thrown away there.
    """
    result = formula(pred, *others)
    if weight is not None:
        weight = jnp.expand_dims(weight, axis)
        return jnp.where(weight == 0, 0, result * weight)
    if is_derivative or result.shape != pred.shape:
        return result
    # Keep this redundant `where`. Without it XLA:CPU sends the sum to an external library, which
    # needs up to four temporaries of pred's size and takes four times as long (jax 0.10.2). The
    # derivative has none: a TPU would store isnan(pred) between the two, which then are no longer
    # one loop, and their time goes from 1.1 to 5 times that of one pass over the arrays.
    return jnp.where(jnp.isnan(pred), jnp.nan, result)


def _weighted_inside(
    formula: Formula,
    axis: Axis,
    result_axis: Axis,
    weight: jax.Array | None,
    pred: jax.Array,
    *others: Any,
) -> jax.Array:
    """The formula times the weight, for autodiff: its inputs are 0 where the weight is 0."""
    if weight is None:
        return formula(pred, *others)
    read = jnp.expand_dims(weight, axis) != 0
    pred, others = jax.tree.map(
        lambda x: jnp.where(read, x, 0) if 0 < jnp.ndim(x) == read.ndim else x, (pred, others)
    )
    weight = jnp.expand_dims(weight, result_axis)
    return jnp.where(weight != 0, formula(pred, *others) * weight, 0)


def _jvp_along_nonzero(function: Formula, primals: Any, tangents: Any) -> jax.Array | None:
    """The directional derivative along the tangents that are not zero; None if all are zero."""
    zero = object()
    tangents = jax.tree.map(
        lambda d: zero if d is None or isinstance(d, SymbolicZero) else d,
        tangents,
        is_leaf=lambda d: d is None or isinstance(d, SymbolicZero),
    )
    primals, tree = jax.tree.flatten(primals, is_leaf=lambda x: x is None)
    tangents = jax.tree.leaves(tangents)
    moving = [i for i, d in enumerate(tangents) if d is not zero]
    if not moving:
        return None

    def along(*moved: Any) -> jax.Array:
        leaves = list(primals)
        for i, x in zip(moving, moved, strict=True):
            leaves[i] = x
        return function(*jax.tree.unflatten(tree, leaves))

    _, derivative = jax.jvp(along, [primals[i] for i in moving], [tangents[i] for i in moving])
    return derivative
