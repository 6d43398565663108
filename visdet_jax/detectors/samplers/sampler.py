"""The base of the samplers: which of the assigned priors or proposals take part in the losses."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.frozen import FrozenModule

NOT_CHOSEN, POSITIVE, NEGATIVE = 0, 1, 2


class Candidates(NamedTuple):
    """What samplers may go by, of the N candidates of an image, or of each of B images."""

    gt_inds: jax.Array  # (N,): 1 for the first box; 0 background, negative: never chosen.
    overlaps: jax.Array | None = None  # (N,) the largest IoU.
    losses: jax.Array | None = None  # (N,) the class loss.


@dataclass(frozen=True, kw_only=True)
class Sampler(FrozenModule):
    """Base of the samplers: a subclass is its fields, `sample`, and what it needs for that."""

    @property
    def draws(self) -> bool:
        """Whether `sample` needs a key."""
        return True

    @property
    def adds_gt(self) -> bool:
        """Whether a second stage takes the ground truth boxes for proposals too."""
        return False

    def slots(self, candidates: int) -> int:
        """How many of so many candidates can be chosen at most."""
        return candidates

    def positive_slots(self, candidates: int) -> int:
        """How many of so many candidates can be chosen as positives at most."""
        return candidates

    def sample(self, key: jax.Array | None, candidates: Candidates) -> jax.Array:
        """The choice (N,) of one image, int8; see `choose`."""
        raise NotImplementedError(f"{type(self).__name__} must define sample")

    def choose(
        self,
        gt_inds: jax.Array,
        *,
        key: jax.Array | None = None,
        overlaps: jax.Array | None = None,
        losses: jax.Array | None = None,
        chosen: jax.Array | None = None,
    ) -> jax.Array:
        """Which of the N candidates of each of B images take part.

        Args:
          gt_inds: (B, N): 1 for the first box; 0 background, negative for what is never chosen.
          key: A `jax.random.key`, for samplers that draw.
          overlaps: (B, N) the largest IoU of each candidate, for samplers that go by it.
          losses: (B, N) the class loss of each candidate, for samplers that go by it.
          chosen: (B, N) the result, in place of a draw: 1 positive, 2 negative, 0 not chosen.

        Returns: (B, N) int8, 1 for a positive, 2 for a negative, 0 for what is not chosen.
        Raises: ValueError for a key that is missing and for shapes that do not fit, TypeError for a
          `chosen` that is no integers.
        """
        if chosen is not None:
            check_array("chosen", chosen)
            if chosen.shape != gt_inds.shape:
                raise ValueError(f"chosen must have shape {gt_inds.shape}, got {chosen.shape}")
            if not jnp.issubdtype(chosen.dtype, jnp.integer):
                raise TypeError(f"chosen must be integers, got {chosen.dtype}")
            return jnp.asarray(chosen).astype(jnp.int8)
        keys = None
        if self.draws:
            if key is None:
                raise ValueError(
                    f"{type(self).__name__} draws: give key=jax.random.key(...), another for each "
                    "step, or chosen="
                )
            keys = sharded_as(jax.random.split(key, gt_inds.shape[0]), gt_inds)
        return jax.vmap(self.sample)(keys, Candidates(gt_inds, overlaps, losses))


def pick_at_random(
    key: jax.Array,
    among: jax.Array,
    count: jax.Array | int,
    most: int,
    preferred: jax.Array | None = None,
) -> jax.Array:
    """`count` of the candidates (N,) that are True, drawn without replacement: (N,) bool.

    All of them where there are no more. `most` is at least every count; the candidates are not
    sorted, only the `most` largest of N random numbers are found, in a twentieth of the time. Those
    that are `preferred` (N,) are drawn first, and the others only where these are too few.

    Keep the numbers in float32. XLA:CPU searches for the largest of float32 alone; of int32 it
    sorts all: 90 against 0.6 ms for 256 of 268 569 (jax 0.10.2).
    """
    numbers = jax.random.uniform(key, among.shape, jnp.float32)
    if preferred is not None:
        numbers += preferred.astype(jnp.float32)
    # `pick_largest` counts in the default integers, which are int64 where x64 is on.
    return pick_largest(jnp.where(among, numbers, -1), jnp.asarray(count).astype(int), most)


def pick_largest(values: jax.Array, count: jax.Array, most: int) -> jax.Array:
    """The `count` largest of the values (N,) that are not negative, at most `most`: (N,) bool."""
    largest, places = jax.lax.top_k(values, min(most, values.size))
    taken = (jnp.arange(largest.size) < count) & (largest >= 0)
    return jnp.zeros_like(values, bool).at[places].set(taken, unique_indices=True)


def whole_part(factor: float, count: jax.Array, most: int) -> jax.Array:
    """int(factor · count) of a traced count from 0 to `most`, in Python's floats as in mmdet.

    A table, since in float32 it is another number now and then: int(100 · 0.29) is 28 in Python and
    29 there. Read by a sum, since a gather is not sharded as the count is on an explicit mesh.
    """
    table = jnp.asarray([int(factor * n) for n in range(most + 1)], count.dtype)
    places = jnp.arange(most + 1, dtype=count.dtype)
    return jnp.where(places == count, table, 0).sum(dtype=count.dtype)
