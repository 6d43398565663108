"""Which boxes the points of FCOS learn."""

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import Assignment, assignment, checked


@jitted
def fcos_assign(
    points: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    *,
    strides: jax.Array,
    regress_ranges: jax.Array,
    center_sampling: bool = False,
    center_sample_radius: float = 1.5,
) -> Assignment:
    """Each point to the smallest box that contains it and is of its level's size.

    A point is inside a box where left, top, right and bottom are above 0; with `center_sampling`,
    inside its intersection with the square of 2 · radius · stride around its centre. It is of the
    level's size where the largest of the four is in the level's range, both ends included. The
    smallest area wins, the first of equals; the rest is background.

    Args:
      points: (N, 2) as x, y, in pixels.
      gt_boxes, gt_labels: as in `max_iou_assign`.
      strides: (N,) of each point's level, in pixels.
      regress_ranges: (N, 2) of each point's level, in pixels.
      center_sample_radius: in strides.
    Returns: `max_overlaps` is 1 for positives, else 0.
    Raises: ValueError, TypeError for other shapes and types.
    Tian et al. 2019, https://arxiv.org/abs/1904.01355; mmdet's `FCOSHead`.
    """
    points, gt_boxes, gt_labels, valid = checked(points, gt_boxes, gt_labels, None, 2)
    exists = gt_labels >= 0
    dtype = points.dtype
    distances = bbox2distance(points[None], gt_boxes[:, None])  # (G, N, 4)
    if center_sampling:
        reach = (strides.astype(dtype) * as_dtype(dtype, center_sample_radius))[None]
        x, y, *_ = (column[:, None] for column in convert_boxes(gt_boxes).T)
        x1, y1, x2, y2 = (column[:, None] for column in gt_boxes.T)
        low, high = jnp.maximum, jnp.minimum
        middle = (low(x - reach, x1), low(y - reach, y1), high(x + reach, x2), high(y + reach, y2))
        region = bbox2distance(points[None], jnp.stack(middle, axis=-1))
    else:
        region = distances
    inside = region.min(-1) > 0
    ranges = regress_ranges.astype(dtype)[None]
    farthest = distances.max(-1)
    of_size = (ranges[..., 0] <= farthest) & (farthest <= ranges[..., 1])
    candidate = inside & of_size & exists[:, None]

    x1, y1, x2, y2 = gt_boxes.T
    areas = jnp.where(candidate, ((x2 - x1) * (y2 - y1))[:, None], jnp.inf)
    found = candidate.any(0)
    gt_inds = jnp.where(found, 1 + areas.argmin(0).astype(jnp.int32), 0)
    return assignment(gt_inds, found.astype(dtype), gt_labels, valid)
