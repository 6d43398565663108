"""Ground truth by what stands out among the nearest: ATSS, GFL."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import (
    EPS,
    Assigner,
    Assignment,
    assignment,
    checked,
    raise_for_ignored_regions,
    unassigned,
    visit_boxes,
)
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D
from visdet_jax.detectors.registry import TASK_UTILS


@jitted(static=("level_sizes", "topk"))
def atss_assign(
    priors: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    level_sizes: tuple[int, ...],
    topk: int = 9,
) -> Assignment:
    """Each box to priors near its centre whose IoU stands out among those near its centre.

    Candidates of a box are the `topk` priors of each level whose centres are nearest to its own
    (the first of equals). Those become positive whose IoU is at least mean + standard deviation
    (unbiased) of the candidates' and whose centre is inside the box by more than 0.01 pixels; of
    several boxes the one of largest IoU wins (the first of equals). The rest is background. One
    candidate alone has no deviation and is none; of two different ones none reaches the threshold.

    Args:
      priors, gt_boxes, gt_labels, valid: as in `max_iou_assign`.
      level_sizes: how many of the priors each level has.
    Raises: ValueError, TypeError for other shapes and types.
    Zhang et al. 2020, https://arxiv.org/abs/1912.02424; mmdet's `ATSSAssigner`.
    """
    priors, gt_boxes, gt_labels, valid = checked(priors, gt_boxes, gt_labels, valid, 4)
    if sum(level_sizes) != len(priors):
        raise ValueError(f"level_sizes {level_sizes} do not add up to {len(priors)} priors")
    dtype = priors.dtype
    centers = convert_boxes(priors)[:, :2]
    margin = as_dtype(dtype, 0.01)

    def visit(state, number, box, exists):
        best, best_gt = state
        iou = overlaps(box[None], priors, "iou", EPS)
        x, y = (centers - convert_boxes(box)[None, :2]).T
        distance = jnp.where(valid, jnp.sqrt(x**2 + y**2), jnp.inf)
        candidate = _nearest(distance, level_sizes, topk)
        count = candidate.sum().astype(dtype)
        mean = jnp.where(candidate, iou, 0).sum() / jnp.maximum(count, 1)
        square = jnp.where(candidate, (iou - mean) ** 2, 0).sum()
        deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
        inside = bbox2distance(centers, box[None]).min(-1) > margin
        positive = candidate & (iou >= mean + deviation) & (count > 1) & inside & exists
        better = positive & (iou > best)
        return jnp.where(better, iou, best), jnp.where(better, number, best_gt)

    start = unassigned(valid, gt_labels, dtype)
    best, best_gt = visit_boxes(visit, start, gt_boxes, gt_labels)
    nothing = jnp.where((gt_labels >= 0).any(), as_dtype(dtype, -1e8), 0)
    return assignment(best_gt, jnp.where(best_gt > 0, best, nothing), gt_labels, valid)


def _nearest(distance: jax.Array, level_sizes: tuple[int, ...], topk: int) -> jax.Array:
    """Which priors (N,) are among the `topk` of their level at the least, finite distance."""
    nearest, start = [], 0
    for size in level_sizes:
        level, start = distance[start : start + size], start + size
        if size:
            least, index = jax.lax.top_k(-level, min(topk, size))
            # top_k takes the first of equals: those at the last distance up to the last index.
            # Not least[-1]: of a top_k so used XLA makes a sort, 80 times slower.
            last = -least.min()
            last_index = jnp.where(least == -last, index, -1).max()
            number = jnp.arange(size, dtype=index.dtype)
            nearest.append((level < last) | ((level == last) & (number <= last_index)))
    return jnp.concatenate(nearest) & jnp.isfinite(distance)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class ATSSAssigner(Assigner):
    """Flax shim of `atss_assign`; for `ignore_iof_thr` see `MaxIoUAssigner`."""

    topk: int
    ignore_iof_thr: float = -1
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("topk")
        raise_for_ignored_regions(self)

    def assign(self, priors, gt_boxes, gt_labels, valid=None, *, level_sizes):
        return atss_assign(
            priors, gt_boxes, gt_labels, valid, level_sizes=level_sizes, topk=self.topk
        )
