"""One entry a row: which one it is, and what it holds."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec


def is_at(index: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """Whether an entry of x is the one at its row's index along `axis`: the one-hot form, as bools.

    Args:
      index: Integers, of x's shape with 1 in place of C. One out of range is no entry.
      x: (..., C, ...). Only its shape matters, and how it is sharded.
      axis: The axis of the C entries.
    """
    places = places_along(x.shape[axis], x.ndim, axis, index.dtype)
    if (name := jax.typeof(x).sharding.spec[axis]) is not None:
        # Sharded as x is, or `where(is_at(...), x, 0)` would be an error.
        spec: list[Any] = [None] * x.ndim
        spec[axis] = name
        places = jax.sharding.reshard(places, PartitionSpec(*spec))
    return index + 1 == places


def places_along(size: int, ndim: int, axis: int, dtype: Any) -> jax.Array:
    """1 to `size` along an axis, the others being 1.

    It is a literal that does not start at 0. XLA makes an iota of one that does, and of an iota a
    64-bit number for each element, by which XLA:CPU's 256-bit code handles four elements at a time
    in place of eight: focal loss of class indices takes 2.3 times as long (jax 0.10.2).
    """
    shape = [1] * ndim
    shape[axis] = size
    # A size that is not known when it is traced, as `jax.export` allows, is no literal.
    numbers = np if isinstance(size, int) else jnp
    return jnp.asarray(numbers.arange(1, size + 1, dtype=dtype).reshape(shape))


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
    # Keep the subtraction inside the sum. After it a GPU reads x a second time.
    entries = x if minus is None else x - minus
    return jnp.where(is_at(index, x, axis), entries, 0).sum(axis, keepdims=True)
