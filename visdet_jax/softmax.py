"""What the losses of softmax share: one exp for the value and for its slope."""

import functools

import jax
import jax.numpy as jnp


def exponentials(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """m = max x along `axis`, exp(x - m) and its sum, both reductions with that axis of size 1.

    -log p is log Σ - (x - m), with more digits than (m + log Σ) - x.
    """
    m = x.max(axis, keepdims=True)
    # exp(0) is 1 either way. The select gives XLA's CPU backend one loop for the exp, whose
    # result the slope takes up in place; without it the sum takes the exp to itself, in a
    # library whose exp is slower.
    e = jnp.where(x == m, 1, jnp.exp(x - m))
    return m, e, e.sum(axis, keepdims=True)


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
