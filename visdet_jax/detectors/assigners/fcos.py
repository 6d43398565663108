"""Ground truth by the smallest box around a point: FCOS."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import (
    Assignment,
    Best,
    Rules,
    assignment,
    no_box_yet,
    prepare_inputs,
    product,
    visit_boxes,
)


@jitted
def fcos_assign(
    points: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    *,
    strides: jax.Array,
    regress_ranges: jax.Array,
    center_sampling: bool = False,
    center_sample_radius: Positive = 1.5,
) -> Assignment:
    """Each point to the smallest box that contains it and is of its level's size.

    A point is inside a box where its distances to the left, top, right and bottom side are above
    0. With `center_sampling` it has to be inside the intersection of the box with a square around
    the box's centre, whose sides are 2 · center_sample_radius · stride. A box is of the level's
    size where the largest of the four distances is in the level's range, both ends included. Of
    several boxes the one of smallest area wins, the first of equal ones; points without any are
    background.

    Args:
      points: (N, 2) as x, y, in pixels.
      gt_boxes: (G, 4) as x1, y1, x2, y2, in pixels. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      strides: (N,) of each point's level, in pixels.
      regress_ranges: (N, 2) of each point's level, in pixels: the least and the largest distance
        from the point to the farthest side of its box.
      center_sampling: Whether only points near a box's centre are its positives.
      center_sample_radius: How near, in strides, above 0. Larger values give more positives.

    Returns: for each point its box, that box's label, and as `max_overlaps` 1 for positives and 0
      for background.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Tian et al. 2019, https://arxiv.org/abs/1904.01355; mmdet's `FCOSHead`.
    """
    points, gt_boxes, gt_labels, valid = prepare_inputs(points, gt_boxes, gt_labels, name="points")
    count, dtype = len(points), points.dtype
    strides = _of_each_point("strides", strides, (count,), dtype)
    low, high = columns(_of_each_point("regress_ranges", regress_ranges, (count, 2), dtype))
    reach = strides * as_dtype(dtype, center_sample_radius)
    x, y = columns(points)
    least, largest = jnp.minimum, jnp.maximum

    def compute(truth: Any, exists: jax.Array, _: Any) -> jax.Array:
        """Minus the area of the box, minus infinity for points that it is not for."""
        box, area = truth
        x1, y1, x2, y2 = (side[None] for side in columns(box))
        left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
        farthest = largest(largest(left, right), largest(top, bottom))
        if center_sampling:
            center_x, center_y = (side[None] for side in columns(convert_boxes(box))[:2])
            left, top = x - largest(center_x - reach, x1), y - largest(center_y - reach, y1)
            right, bottom = least(center_x + reach, x2) - x, least(center_y + reach, y2) - y
        inside = least(least(left, right), least(top, bottom)) > 0
        candidate = inside & (low <= farthest) & (farthest <= high) & exists
        return jnp.where(candidate, -area[None], -jnp.inf)

    def visit(best: Best, number: jax.Array, score: jax.Array, _: None) -> Best:
        return best.or_box(number, score)

    start = no_box_yet(valid, gt_labels, dtype, score=-jnp.inf)
    rules = Rules(compute, lambda _: None, visit)
    x1, y1, x2, y2 = columns(gt_boxes)
    # Keep the areas out of the loop. In it they are a kernel of each trip on a GPU, ten in all.
    truth = gt_boxes, product(x2 - x1, y2 - y1)
    _, gt_inds = visit_boxes(rules, start, truth, gt_labels)
    return assignment(gt_inds, (gt_inds > 0).astype(dtype), gt_labels, valid)


def _of_each_point(name: str, x: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    check_array(name, x)
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    return jnp.asarray(x).astype(dtype)
