"""Arrays and sums that are spread over devices."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


def reduce_mean(x: jax.Array, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The mean of `x` over the devices of a named mesh axis: mmdet's `reduce_mean`.

    Use it for normalisers such as the number of positives of a batch, inside `shard_map` or
    `vmap(axis_name=...)`. Without an axis the result is `x` itself, which is right under plain
    `jit` over sharded arrays: sums are over the whole array there.
    """
    return x if axis_name is None else jax.lax.pmean(x, axis_name)


def reduce_sum(x: jax.Array, axis_name: str | tuple[str, ...] | None = None) -> jax.Array:
    """The sum of `x` over the devices of a named mesh axis, or `x` itself without an axis.

    Use it for running statistics; see `reduce_mean`.
    """
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device, for a loss whose rows depend on each other.

    An explicitly sharded array cannot be sorted along a sharded axis, and cannot be compared with
    itself (both axes of N × N would lie on the same axis of the mesh). Other arrays stay as they
    are.
    """
    x = jnp.asarray(x)
    if all(axis is None for axis in jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def sharded_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` with its axes sharded as the first axes of an explicitly sharded array are."""
    spec = jax.typeof(like).sharding.spec
    spec = [*spec, *[None] * like.ndim][: x.ndim]
    if all(axis is None for axis in spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec))
