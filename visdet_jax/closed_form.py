"""Losses whose slope by pred is known: nothing kept for the backward pass, no NaN read.

Autodiff of such a loss keeps three to four arrays of pred's size between the value and its
gradient, and has to hide padding from the formula on its inputs, which costs a pass over them.
With the slope in closed form value and gradient are one loop each: read pred, write the result.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def closed_form(
    value: Callable[..., jax.Array],
    slope: Callable[..., jax.Array],
    axis: int | tuple[int, ...] = (),
    alone: Callable[..., jax.Array] | None = None,
) -> Callable[..., jax.Array]:
    """Makes `(weight, pred, *others) -> weight · value(pred, *others)` of a formula and its slope.

    Where the weight is 0 the result is exactly 0, value and gradients of every order, even if
    pred is NaN there. The derivative by pred is `slope`; further ones, and those by the others
    and by the weight, are left to autodiff.

    Args:
      value: (pred, *others) -> values of pred's shape without `axis`. Others that broadcast
        against pred, arrays of as many axes, are as unread as it is where the weight is 0;
        numbers and arrays of fewer axes are hyperparameters.
      slope: its derivative by pred, of the same arguments and of pred's shape. Where it spells
        what both need as `value` does, XLA computes that once and keeps it; spelt otherwise, it
        keeps nothing.
      axis: the axis or axes of pred that the value has summed.
      alone: the value where no derivative is taken, if another spelling is better there.
    Returns: a function of the weight (None, or one that broadcasts against the values, with as
      many axes), pred and the others.
    """
    weighed = jax.custom_jvp(functools.partial(_weighed, alone or value, ()))
    weighed_slope = jax.custom_jvp(functools.partial(_weighed, slope, axis))

    def weighed_jvp(primals, tangents):
        d_weight, d_pred, *d_others = tangents
        out = weighed(*primals) if alone is None else _weighed(value, (), *primals)
        unread = functools.partial(_unread, value, axis, ())
        tangent = _tangent(unread, primals, (d_weight, None, *d_others))
        if not isinstance(d_pred, SymbolicZero):
            own = (weighed_slope(*primals) * d_pred).sum(axis)
            tangent = own if tangent is None else tangent + own
        return out, jnp.zeros_like(out) if tangent is None else tangent

    def weighed_slope_jvp(primals, tangents):
        out = weighed_slope(*primals)
        tangent = _tangent(functools.partial(_unread, slope, axis, axis), primals, tangents)
        return out, jnp.zeros_like(out) if tangent is None else tangent

    weighed.defjvp(weighed_jvp, symbolic_zeros=True)
    weighed_slope.defjvp(weighed_slope_jvp, symbolic_zeros=True)
    return weighed


def _weighed(formula, axis, weight, pred, *others):
    """The weight on the outside: for a formula whose derivative is not autodiff's."""
    result = formula(pred, *others)
    if weight is not None:
        weight = jnp.expand_dims(weight, axis)
        return jnp.where(weight == 0, 0, result * weight)
    # A select here too: XLA's CPU backend gives a sum of anything else to a library that has no
    # compares, with up to four arrays of pred's size to feed it, four times slower.
    return jnp.where(jnp.isnan(pred), jnp.nan, result) if result.shape == pred.shape else result


def _unread(formula, axis, result_axis, weight, pred, *others):
    """The weight on the inputs: what autodiff reads is 0 where the weight is."""
    if weight is None:
        return formula(pred, *others)
    read = jnp.expand_dims(weight, axis) != 0
    pred, others = jax.tree.map(
        lambda x: jnp.where(read, x, 0) if 0 < jnp.ndim(x) == read.ndim else x, (pred, others)
    )
    weight = jnp.expand_dims(weight, result_axis)
    return jnp.where(weight != 0, formula(pred, *others) * weight, 0)


def _tangent(function: Callable[..., Any], primals: Any, tangents: Any) -> jax.Array | None:
    """The directional derivative along the tangents that are not zero; None if all are."""
    still = object()
    tangents = jax.tree.map(
        lambda d: still if d is None or isinstance(d, SymbolicZero) else d,
        tangents,
        is_leaf=lambda d: d is None or isinstance(d, SymbolicZero),
    )
    primals, tree = jax.tree.flatten(primals, is_leaf=lambda x: x is None)
    tangents = jax.tree.leaves(tangents)
    moving = [i for i, d in enumerate(tangents) if d is not still]
    if not moving:
        return None

    def along(*moved):
        leaves = list(primals)
        for i, x in zip(moving, moved, strict=True):
            leaves[i] = x
        return function(*jax.tree.unflatten(tree, leaves))

    return jax.jvp(along, [primals[i] for i in moving], [tangents[i] for i in moving])[1]
