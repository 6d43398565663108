"""A sample of the candidates with the largest losses: OHEM."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.random import LimitedSampler
from visdet_jax.detectors.samplers.sampler import Candidates, pick_largest


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class OHEMSampler(LimitedSampler):
    """The positives and the negatives with the largest losses: online hard example mining.

    It goes by the class loss of every candidate, with the label that its assignment gives it, or
    background: `choose` needs `losses`. Nothing is random. Of equal losses the first one is taken.

    Args:
      loss_key: The name of the loss that `losses` holds.

    Source: Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540; mmdet's `OHEMSampler`.
    """

    loss_key: str = "loss_cls"

    @property
    def draws(self) -> bool:
        return False

    def pick_positives(self, key: jax.Array | None, candidates: Candidates, most: int) -> jax.Array:
        return self._hardest(candidates.gt_inds > 0, candidates.losses, jnp.asarray(most), most)

    def pick_negatives(
        self, key: jax.Array | None, candidates: Candidates, count: jax.Array
    ) -> jax.Array:
        return self._hardest(candidates.gt_inds == 0, candidates.losses, count, self.num)

    def _hardest(
        self, among: jax.Array, losses: jax.Array | None, count: jax.Array, most: int
    ) -> jax.Array:
        if losses is None:
            raise self.value_error("goes by the losses of the candidates: give losses=")
        losses = jnp.asarray(losses).astype(compute_dtype(losses=losses))
        # Losses are not negative; one that is NaN counts as the least.
        losses = jnp.maximum(jnp.where(jnp.isnan(losses), 0, losses), 0)
        return pick_largest(jnp.where(among, losses, -1), count, most)
