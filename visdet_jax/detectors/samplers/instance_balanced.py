"""A random sample with as many positives of each ground truth: Libra R-CNN."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.random import RandomSampler
from visdet_jax.detectors.samplers.sampler import Candidates, pick_at_random


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class InstanceBalancedPosSampler(RandomSampler):
    """A random sample with about as many positives of each ground truth.

    Where there are more positives than the limit, each ground truth gets at most
    round(limit / number of ground truths with positives) + 1 of its own, at random. Of these the
    limit is drawn; where they are fewer, the rest is drawn from the other positives. Negatives are
    drawn as by `RandomSampler`.

    mmdet draws the rest from all positives, those that it has already among them, and then leaves
    out what is there twice: it samples fewer positives than the limit, by chance.

    Source: Pang et al. 2019, https://arxiv.org/abs/1904.02701; mmdet's
      `InstanceBalancedPosSampler`.
    """

    def pick_positives(self, key: jax.Array | None, candidates: Candidates, most: int) -> jax.Array:
        assert key is not None
        gt_inds = candidates.gt_inds
        positive = gt_inds > 0
        if not gt_inds.size:
            return positive
        of_each, of_all = jax.random.split(key)
        # The positives of one ground truth side by side, in random order, behind all others.
        owner = jnp.where(positive, gt_inds, 0)
        number = jnp.arange(gt_inds.size, dtype=jnp.int32)
        priority = jax.random.uniform(of_each, gt_inds.shape, jnp.float32)
        owner, _, order = jax.lax.sort((owner, priority, number), num_keys=2)
        is_first = jnp.concatenate([owner[:1] > 0, owner[1:] > owner[:-1]])
        place = number - jax.lax.cummax(jnp.where(is_first, number, 0))
        owners = jnp.maximum(is_first.astype(jnp.float32).sum(), 1)
        quota = jnp.round(most / owners) + 1
        within = (place.astype(jnp.float32) < quota) & (owner > 0)
        preferred = jnp.zeros_like(positive).at[order].set(within, unique_indices=True)
        return pick_at_random(of_all, positive, most, most, preferred)
