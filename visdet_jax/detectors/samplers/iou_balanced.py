"""A random sample whose negatives are spread over the IoUs: Libra R-CNN."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, Fraction, Number, Range
from visdet_jax.detectors.assigners.assigner import DROPPED
from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.detectors.samplers.random import RandomSampler
from visdet_jax.detectors.samplers.sampler import Candidates, pick_at_random, whole_part


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class IoUBalancedNegSampler(RandomSampler):
    """A random sample whose negatives are spread evenly over the IoUs.

    Where there are more negatives than the limit, int(limit · (1 - floor_fraction)) of them are
    drawn from those whose IoU is at least `floor_thr`: as many from each of `num_bins` intervals of
    equal length, which reach from `floor_thr` to the largest IoU of all candidates. What they leave
    of the limit is drawn from the negatives below `floor_thr`. Where an interval or these are too
    few, the rest is drawn from the others. Positives are drawn as by `RandomSampler`.

    With ground truth among the candidates the largest IoU is 1, and the intervals above the
    assigner's `neg_iou_thr` hold no negatives. mmdet with floor_thr=-1 spares the negatives with an
    IoU of 0 from its second call on; here each call is as its first.

    Args:
      floor_thr: The least IoU of the intervals, in [0, 1]: larger values draw more overlapping
        negatives. 0 has the negatives with an IoU of 0 below it; -1 has none below it, and the
        intervals from 0 on.
      floor_fraction: The part of the negatives that comes from those below `floor_thr`, in [0, 1].
      num_bins: The number of intervals, at least 1.

    Source: Pang et al. 2019, https://arxiv.org/abs/1904.02701; mmdet's `IoUBalancedNegSampler`.
    """

    floor_thr: Annotated[Number, Range(-1, 1)] = -1
    floor_fraction: Fraction = 0.0
    num_bins: Count = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if -1 < self.floor_thr < 0:
            raise self.value_error(f"floor_thr must be -1, or in [0, 1], got {self.floor_thr}")

    def pick_negatives(
        self, key: jax.Array | None, candidates: Candidates, count: jax.Array
    ) -> jax.Array:
        assert key is not None
        gt_inds, overlaps = candidates.gt_inds, candidates.overlaps
        if overlaps is None:
            raise self.value_error("goes by the overlaps of the assigner, got None")
        negative = gt_inds == 0
        if not gt_inds.size:
            return negative
        iou = jnp.asarray(overlaps).astype(compute_dtype(overlaps=overlaps))
        iou = jnp.where(gt_inds > DROPPED, iou, 0)  # Of padding nothing is read.
        low = max(float(self.floor_thr), 0.0)
        below = iou < low if low else iou == 0
        if self.floor_thr < 0:
            below = jnp.zeros_like(negative)
        high = negative & ~below
        keys, count = jax.random.split(key, 4), count.astype(jnp.int32)

        of_high = whole_part(1 - float(self.floor_fraction), count, self.num)

        drawn = jnp.zeros_like(high)
        if self.num_bins > 1:
            step = (iou.max() - low) / self.num_bins
            for number in range(self.num_bins):
                inside = (iou >= low + number * step) & (iou < low + (number + 1) * step)
                of_bin = jax.random.fold_in(keys[0], number)
                each = of_high // self.num_bins
                drawn |= pick_at_random(of_bin, high & inside, each, self.num, drawn)
        drawn = pick_at_random(keys[1], high, of_high, self.num, drawn)
        rest = count - drawn.sum(dtype=jnp.int32)
        drawn |= pick_at_random(keys[2], negative & below, rest, self.num, drawn)
        return pick_at_random(keys[3], negative, count, self.num, drawn)
