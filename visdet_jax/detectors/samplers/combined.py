"""A sample whose positives and negatives come from two samplers: Libra R-CNN."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.random import LimitedSampler
from visdet_jax.detectors.samplers.sampler import Candidates
from visdet_jax.registry import as_dict, is_config


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class CombinedSampler(LimitedSampler):
    """Positives by one sampler, negatives by another.

    How many are drawn of each is told by the fields of this sampler alone.

    Args:
      pos_sampler: Draws the positives: a sampler of a fixed number, or its config, which may leave
        out `num`, `pos_fraction`, `neg_pos_ub` and `add_gt_as_proposals`.
      neg_sampler: Draws the negatives, likewise.

    Source: Pang et al. 2019, https://arxiv.org/abs/1904.02701; mmdet's `CombinedSampler`.
    """

    pos_sampler: object
    neg_sampler: object

    def __post_init__(self) -> None:
        super().__post_init__()
        limits: dict[str, Any] = {
            "num": self.num,
            "pos_fraction": self.pos_fraction,
            "neg_pos_ub": self.neg_pos_ub,
            "add_gt_as_proposals": self.add_gt_as_proposals,
        }
        for name in ("pos_sampler", "neg_sampler"):
            part: Any = getattr(self, name)
            if is_config(part):
                try:
                    part = TASK_UTILS.build(limits | as_dict(part))
                except (TypeError, ValueError) as error:
                    raise type(error)(f"{type(self).__name__}: {name}: {error}") from error
            if not isinstance(part, LimitedSampler):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be a sampler of a fixed number, such as "
                    f"RandomSampler, got {part!r}"
                )
            # The part's own limits would bound what it can draw, and would not be equal.
            object.__setattr__(self, name, dataclasses.replace(part, **limits))

    @property
    def draws(self) -> bool:
        return any(part.draws for part in self._parts)

    @property
    def _parts(self) -> tuple[Any, Any]:
        return self.pos_sampler, self.neg_sampler

    def pick_positives(self, key: jax.Array | None, candidates: Candidates, most: int) -> jax.Array:
        picked: jax.Array = self._parts[0].pick_positives(key, candidates, most)
        return picked

    def pick_negatives(
        self, key: jax.Array | None, candidates: Candidates, count: jax.Array
    ) -> jax.Array:
        picked: jax.Array = self._parts[1].pick_negatives(key, candidates, count)
        return picked
