"""What the losses of softmax share: one exp for the value and for its slope."""

import functools

import jax
import jax.numpy as jnp


def exponentials(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """m = max x along `axis`, exp(x - m) and its sum, both reductions with that axis of size 1."""
    m = x.max(axis, keepdims=True)
    # exp(0) is 1 either way. The select gives XLA's CPU backend one loop for the exp, whose
    # result the slope takes up in place. Without it the sum takes the exp to itself, which keeps
    # nothing, and is the better where there is no slope.
    e = jnp.where(x == m, 1, jnp.exp(x - m))
    return m, e, e.sum(axis, keepdims=True)


def log_sum_exp(x: jax.Array, axis: int, beside_slope: bool) -> tuple[jax.Array, jax.Array]:
    """m = max x and log Σ exp(x - m) along `axis`, with that axis of size 1.

    Apart, since log Σ - (x - m) has more digits than (m + log Σ) - x.
    """
    if beside_slope:
        m, _, total = exponentials(x, axis)
    else:
        m = x.max(axis, keepdims=True)
        total = jnp.exp(x - m).sum(axis, keepdims=True)
        # A select that changes nothing: with what follows, a number a row, in one fusion with the
        # sums XLA's CPU backend takes half as long again.
        total = jnp.where(jnp.isnan(total), jnp.nan, total)
    return m, jnp.log(total)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: jax.Array, axis: int) -> jax.Array:
    """The probabilities along `axis`."""
    _, e, total = exponentials(x, axis)
    return e * (1 / total)


@softmax.defjvp
def _softmax_jvp(axis, primals, tangents):
    (x,), (dx,) = primals, tangents
    p = softmax(x, axis)
    return p, p * (dx - (p * dx).sum(axis, keepdims=True))
