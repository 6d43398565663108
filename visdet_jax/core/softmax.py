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


def entry_at(
    x: jax.Array, index: jax.Array, axis: int, minus: jax.Array | None = None
) -> jax.Array:
    """The entry of each row of x at its index along `axis`, which is kept with size 1.

    For an index out of range the result means nothing, but it is finite where x is.

    Args:
      x: (..., C, ...).
      index: Integers, of x's shape with 1 in place of C. Axes of 1 are broadcast, those of x too.
      axis: The axis of the C entries.
      minus: What is subtracted from each entry of a row, of x's shape with 1 in place of C; a
        softmax's largest logit.
    """
    rows = (x, index) if minus is None else (x, index, minus)
    if any(name is not None for part in rows for name in jax.typeof(part).sharding.spec):
        # A gather along an explicitly sharded axis is an error when it is traced.
        return _entry_by_sum(*rows, axis=axis)
    # Keep both forms. As a masked sum it is part of the loop that sums the exponentials: a GPU
    # reads x once in place of three times, and on a TPU a gather of one entry a row is a loop over
    # the rows, nearly all of a softmax loss's time. XLA:CPU computes each sum in a loop of its own
    # and stores what it sums: there a gather takes a third of the time (jax 0.10.2 and 0.12).
    # Where an entry is itself an array, such as a mask, a GPU reads one in C of them by a gather.
    by_gather, by_sum = (functools.partial(f, axis=axis) for f in (_entry_by_gather, _entry_by_sum))
    of_arrays = index.shape[-1] == 1 and axis % x.ndim != x.ndim - 1
    forms = dict.fromkeys(("cpu", "cuda", "rocm") if of_arrays else ("cpu",), by_gather)
    return jax.lax.platform_dependent(*rows, **forms, default=by_sum)


def _entry_by_gather(
    x: jax.Array, index: jax.Array, minus: jax.Array | None = None, *, axis: int
) -> jax.Array:
    # Keep this mode. The default looks for indices out of range to make their rows NaN, and XLA:CPU
    # takes up to 2.4 times as long with two classes (jax 0.10.2).
    entry = jnp.take_along_axis(x, index, axis=axis, mode="clip")
    return entry if minus is None else entry - minus


def _entry_by_sum(
    x: jax.Array, index: jax.Array, minus: jax.Array | None = None, *, axis: int
) -> jax.Array:
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    places = jnp.arange(x.shape[axis], dtype=index.dtype).reshape(shape)
    # Keep the subtraction inside the sum. After it a GPU reads x a second time.
    entries = x if minus is None else x - minus
    return jnp.where(index == places, entries, 0).sum(axis, keepdims=True)
