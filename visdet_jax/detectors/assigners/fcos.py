"""Ground truth by the smallest box around a point: FCOS."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import Assignment, assignment, prepare_inputs


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
    exists = gt_labels >= 0
    count, dtype = len(points), points.dtype
    strides = _of_each_point("strides", strides, (count,), dtype)
    ranges = _of_each_point("regress_ranges", regress_ranges, (count, 2), dtype)
    distances = bbox2distance(points[None], gt_boxes[:, None])  # (G, N, 4)
    if center_sampling:
        reach = (strides * as_dtype(dtype, center_sample_radius))[None]
        x, y, *_ = (column[:, None] for column in convert_boxes(gt_boxes).T)
        x1, y1, x2, y2 = (column[:, None] for column in gt_boxes.T)
        low, high = jnp.maximum, jnp.minimum
        middle = (low(x - reach, x1), low(y - reach, y1), high(x + reach, x2), high(y + reach, y2))
        distances_to_region = bbox2distance(points[None], jnp.stack(middle, axis=-1))
    else:
        distances_to_region = distances
    inside = distances_to_region.min(-1) > 0
    farthest = distances.max(-1)
    of_size = (ranges[None, :, 0] <= farthest) & (farthest <= ranges[None, :, 1])
    candidate = inside & of_size & exists[:, None]

    x1, y1, x2, y2 = gt_boxes.T
    areas = jnp.where(candidate, ((x2 - x1) * (y2 - y1))[:, None], jnp.inf)
    found = candidate.any(0)
    gt_inds = jnp.where(found, 1 + areas.argmin(0).astype(jnp.int32), 0)
    return assignment(gt_inds, found.astype(dtype), gt_labels, valid)


def _of_each_point(name: str, x: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    check_array(name, x)
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    return jnp.asarray(x).astype(dtype)
