"""Ground truth by what stands out among the nearest priors: ATSS, GFL."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Count
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import (
    Among,
    Assignment,
    Best,
    IoUAssigner,
    Last,
    Rules,
    assignment,
    iou_with_all,
    k_least,
    no_box_yet,
    prepare_inputs,
    product,
    rows_among,
    visit_boxes,
)
from visdet_jax.detectors.registry import TASK_UTILS


@jitted(static=("level_sizes", "topk"))
def atss_assign(
    priors: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    level_sizes: tuple[int, ...],
    topk: Count = 9,
) -> Assignment:
    """Each box to priors near its centre whose IoU stands out among those near its centre.

    Candidates of a box are the `topk` priors of each level whose centres are nearest to its own
    (the first of equal ones). Those become positive whose IoU is at least the mean plus the
    standard deviation (unbiased) of the candidates' IoUs, and whose centre is inside the box by
    more than 0.01 pixels. Of several boxes the one of largest IoU wins (the first of equal ones).
    The rest is background, nothing is ignored.

    One candidate alone has no deviation and is not positive; of two candidates with different IoUs
    neither reaches the threshold.

    Args:
      priors: (N, 4) as x1, y1, x2, y2, in pixels, level after level.
      gt_boxes: (G, 4) as the priors. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      level_sizes: How many of the priors each level has.
      topk: How many candidates of each level a box has, at least 1. Larger values give more
        positives.

    Returns: for each prior its box, that box's label, and the IoU with that box: -1e8 for
      background, 0 where there is no box at all.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Zhang et al. 2020, https://arxiv.org/abs/1912.02424; mmdet's `ATSSAssigner`.
    """
    priors, gt_boxes, gt_labels, valid = prepare_inputs(priors, gt_boxes, gt_labels, valid)
    if sum(level_sizes) != len(priors):
        raise ValueError(f"level_sizes {level_sizes} do not add up to {len(priors)} priors")
    dtype = priors.dtype
    centers = _center(priors)
    margin = as_dtype(dtype, 0.01)
    ends = np.cumsum(level_sizes).tolist()
    levels = [slice(end - size, end) for end, size in zip(ends, level_sizes, strict=True) if size]

    def compute(box: jax.Array, exists: jax.Array, among: Among) -> Any:
        x, y, taking_part, own = (rows_among(x, among) for x in (*centers, valid, priors))
        dx, dy = (a - b[None] for a, b in zip((x, y), _center(box), strict=True))
        distance = jnp.sqrt(product(dx, dx) + product(dy, dy))
        distance = jnp.where(taking_part, distance, jnp.inf)
        x1, y1, x2, y2 = (side[None] for side in columns(box))
        sides = jnp.minimum(jnp.minimum(x - x1, y - y1), jnp.minimum(x2 - x, y2 - y))
        return distance, iou_with_all(box, own), exists & (sides > margin)

    def measure(numbers: Any) -> Any:
        nearest = k_least(lambda *which: numbers(*which)[:2], levels, topk)
        distance, iou = (jnp.concatenate(x) for x in list(zip(*nearest, strict=True))[:2])
        candidate = jnp.isfinite(distance)
        count = candidate.sum().astype(dtype)
        mean = jnp.where(candidate, iou, 0).sum() / jnp.maximum(count, 1)
        squares = jnp.where(candidate, (iou - mean) ** 2, 0).sum()
        deviation = jnp.sqrt(squares / jnp.maximum(count - 1, 1))
        return [x.last for x in nearest], jnp.where(count > 1, mean + deviation, jnp.inf)

    def visit(best: Best, number: jax.Array, x: Any, found: Any) -> Best:
        (distance, iou, inside), (lasts, threshold) = x, found
        index = jnp.arange(len(priors), dtype=jnp.int32)
        of_level = lasts[-1]
        for level, last in reversed(list(zip(levels[:-1], lasts[:-1], strict=True))):
            here = index < level.stop
            of_level = Last(*(jnp.where(here, *x) for x in zip(last, of_level, strict=True)))
        candidate = of_level.includes(distance, index) & jnp.isfinite(distance)
        positive = candidate & inside & (iou >= threshold)
        return best.or_box(number, jnp.where(positive, iou, -1))

    # Keep 10. With 20 the head's value and gradient are 137 kernels in place of 122 (H200, jax
    # 0.12.0.1).
    rules = Rules(compute, measure, visit, in_a_kernel=10)
    start = no_box_yet(valid, gt_labels, dtype)
    largest, gt_inds = visit_boxes(rules, start, gt_boxes, gt_labels)
    background = jnp.where((gt_labels >= 0).any(), as_dtype(dtype, -1e8), 0)
    return assignment(gt_inds, jnp.where(gt_inds > 0, largest, background), gt_labels, valid)


def _center(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x and y of the centres of boxes (..., 4), in columns: an array of both would be a kernel."""
    x1, y1, x2, y2 = columns(boxes)
    return (x1 + x2) / 2, (y1 + y2) / 2


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class ATSSAssigner(IoUAssigner, function=atss_assign):
    """Ground truth by what stands out: `atss_assign` with its hyperparameters as fields."""

    topk: int

    def assign(
        self,
        priors: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *,
        level_sizes: tuple[int, ...],
    ) -> Assignment:
        return atss_assign(
            priors, gt_boxes, gt_labels, valid, level_sizes=level_sizes, **self.settings
        )
