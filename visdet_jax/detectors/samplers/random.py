"""The sampler of Faster R-CNN: a fixed number, drawn at random."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.hyperparameters import Count, Finite, Fraction
from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.sampler import (
    NEGATIVE,
    NOT_CHOSEN,
    POSITIVE,
    Candidates,
    Sampler,
    pick_at_random,
    whole_part,
)


@dataclass(frozen=True, kw_only=True)
class LimitedSampler(Sampler):
    """Base of the samplers of a fixed number. A subclass has `pick_positives`, `pick_negatives`.

    With P positives and N negatives, n₊ = min(P, ⌊num · pos_fraction⌋) positives are chosen, and
    min(N, num - n₊) negatives, of which `neg_pos_ub` may leave fewer.

    Args:
      num: How many are chosen of an image at most, at least 1.
      pos_fraction: The part of `num` that positives have at most, in [0, 1]. Negatives fill what
        they leave.
      neg_pos_ub: At most so many negatives are chosen for each positive; an image without positives
        counts as one with one. A negative number sets no limit.
      add_gt_as_proposals: Whether a second stage takes the ground truth boxes for proposals too.
    """

    num: Count
    pos_fraction: Fraction
    neg_pos_ub: Finite = -1
    add_gt_as_proposals: bool = True

    @property
    def adds_gt(self) -> bool:
        return self.add_gt_as_proposals

    def slots(self, candidates: int) -> int:
        return min(self.num, candidates)

    def positive_slots(self, candidates: int) -> int:
        return min(int(self.num * self.pos_fraction), candidates)

    def sample(self, key: jax.Array | None, candidates: Candidates) -> jax.Array:
        keys = (None, None) if key is None else jax.random.split(key)
        most = int(self.num * self.pos_fraction)
        positive = self.pick_positives(keys[0], candidates, most)
        count = positive.sum()
        rest = self.num - count
        if self.neg_pos_ub >= 0:
            limit = whole_part(float(self.neg_pos_ub), jnp.maximum(count, 1), max(most, 1))
            rest = jnp.minimum(rest, limit)
        negative = self.pick_negatives(keys[1], candidates, rest)
        chosen = jnp.where(negative, NEGATIVE, NOT_CHOSEN)
        return jnp.where(positive, POSITIVE, chosen).astype(jnp.int8)

    def pick_positives(self, key: jax.Array | None, candidates: Candidates, most: int) -> jax.Array:
        """Which (N,) are chosen as positives: `most` of them, or all where they are fewer."""
        raise NotImplementedError(f"{type(self).__name__} must define pick_positives")

    def pick_negatives(
        self, key: jax.Array | None, candidates: Candidates, count: jax.Array
    ) -> jax.Array:
        """Which (N,) are chosen as negatives: `count` of them, or all where they are fewer."""
        raise NotImplementedError(f"{type(self).__name__} must define pick_negatives")


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class RandomSampler(LimitedSampler):
    """Positives and negatives, each drawn without replacement, all with equal probability.

    Source: Ren et al. 2015, https://arxiv.org/abs/1506.01497; mmdet's `RandomSampler`
    """

    def pick_positives(self, key: jax.Array | None, candidates: Candidates, most: int) -> jax.Array:
        assert key is not None
        return pick_at_random(key, candidates.gt_inds > 0, most, most)

    def pick_negatives(
        self, key: jax.Array | None, candidates: Candidates, count: jax.Array
    ) -> jax.Array:
        assert key is not None
        return pick_at_random(key, candidates.gt_inds == 0, count, self.num)
