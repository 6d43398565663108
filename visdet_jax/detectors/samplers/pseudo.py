"""The sampler that samples nothing: every prior takes part."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.sampler import (
    NEGATIVE,
    NOT_CHOSEN,
    POSITIVE,
    Candidates,
    Sampler,
)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class PseudoSampler(Sampler):
    """No sampling: every positive and every negative takes part."""

    @property
    def draws(self) -> bool:
        return False

    def sample(self, key: jax.Array | None, candidates: Candidates) -> jax.Array:
        negative = jnp.where(candidates.gt_inds == 0, NEGATIVE, NOT_CHOSEN)
        return jnp.where(candidates.gt_inds > 0, POSITIVE, negative).astype(jnp.int8)
