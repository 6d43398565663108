"""A draw that prefers some candidates: what the balanced samplers of Libra R-CNN end in."""

import jax
import jax.numpy as jnp

from visdet_jax.detectors.samplers.sampler import pick_largest


def fill_at_random(
    key: jax.Array, preferred: jax.Array, among: jax.Array, count: jax.Array | int, most: int
) -> jax.Array:
    """`count` of the candidates (N,) that are True, drawn without replacement: (N,) bool.

    The preferred ones are drawn first, and the others only where these are too few. All are taken
    where there are no more than `count`.

    Keep the priorities in float32. XLA:CPU searches for the largest of float32 alone; of int32 it
    sorts all: 90 against 0.6 ms for 256 of 268 569 (jax 0.10.2).
    """
    priority = jax.random.uniform(key, among.shape, jnp.float32) + preferred.astype(jnp.float32)
    # `pick_largest` counts in the default integers, which are int64 where x64 is on.
    return pick_largest(jnp.where(among, priority, -1), jnp.asarray(count).astype(int), most)
