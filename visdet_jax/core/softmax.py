"""Softmax for losses: one exp serves the value and its derivative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def exponentials(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """m = max x along `axis`, exp(x - m), and the sum of these; m and the sum keep the axis."""
    m = x.max(axis, keepdims=True)
    # Keep this redundant `where`: exp(0) is 1 either way. With it XLA:CPU computes the exp in one
    # loop, and the derivative overwrites the result in place. Without it the exp is fused into the
    # sum and computed a second time for the derivative.
    e = jnp.where(x == m, 1, jnp.exp(x - m))
    return m, e, e.sum(axis, keepdims=True)


def log_sum_exp(x: jax.Array, axis: int, alone: bool = False) -> tuple[jax.Array, jax.Array]:
    """m = max x and log Σ exp(x - m) along `axis`, which they keep.

    They come apart because log Σ - (x - m) has more digits than (m + log Σ) - x.

    Args:
      alone: no derivative is taken, so that nothing of the exp has to be kept.
    """
    if not alone:
        m, _, total = exponentials(x, axis)
    else:
        m = x.max(axis, keepdims=True)
        total = jnp.exp(x - m).sum(axis, keepdims=True)
        # Keep this `where`, which changes nothing. Without it XLA:CPU fuses the sums with what
        # follows, one number a row, and takes half as long again.
        total = jnp.where(jnp.isnan(total), jnp.nan, total)
    return m, jnp.log(total)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: jax.Array, axis: int) -> jax.Array:
    """The probabilities along `axis`; shares its exp with `log_sum_exp`, unless that is alone."""
    _, e, total = exponentials(x, axis)
    return e * (1 / total)


@softmax.defjvp
def _softmax_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    p = softmax(x, axis)
    return p, p * (dx - (p * dx).sum(axis, keepdims=True))
