"""The sampler that samples nothing: every prior takes part."""

from dataclasses import dataclass

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.registry import TASK_UTILS


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class PseudoSampler(FrozenModule):
    """No sampling: every positive and every negative takes part. The heads know no other one."""
