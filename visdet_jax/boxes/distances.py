"""Boxes as the distances from a point to their four sides: what FCOS, ATSS and GFL predict."""

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.boxes.formats import clip_to_image
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp, divide
from visdet_jax.core.hyperparameters import NonNegative, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.softmax import exponentials, softmax


@jitted
def bbox2distance(
    points: jax.Array,
    boxes: jax.Array,
    max_dis: Positive | None = None,
    eps: NonNegative = 0.1,
) -> jax.Array:
    """Distances from points to the sides of their boxes: left, top, right, bottom.

    Args:
      points: Points (..., 2) as x, y.
      boxes: Boxes (..., 4) as x1, y1, x2, y2 in the points' unit, which broadcast against the
        points.
      max_dis: Clips the distances to [0, max_dis - eps], for targets of a distribution over the
        bins 0 to max_dis. Above 0. None clips nothing.
      eps: How far below `max_dis` the distances stay, in the points' unit, at least 0.

    Returns: (..., 4), without `max_dis` negative where a point is outside its box.
    Raises: ValueError for other shapes.
    """
    dtype = compute_dtype(points=points, boxes=boxes)
    x, y = box_columns("points", points, dtype, 2)
    x1, y1, x2, y2 = box_columns("boxes", boxes, dtype)
    distances = jnp.stack([x - x1, y - y1, x2 - x, y2 - y], axis=-1)
    if max_dis is None:
        return distances
    return clamp(distances, 0, as_dtype(dtype, max_dis) - as_dtype(dtype, eps))


@jitted
def distance2bbox(
    points: jax.Array, distances: jax.Array, max_shape: jax.Array | None = None
) -> jax.Array:
    """Boxes around points by the distances to their sides: `bbox2distance`'s inverse.

    Args:
      points: Points (..., 2) as x, y.
      distances: Distances (..., 4) to the left, top, right and bottom side in the points' unit,
        which broadcast against the points.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4), to which the boxes are clipped.
        None clips nothing.

    Returns: (..., 4) as x1, y1, x2, y2 in the points' unit.
    Raises: ValueError for other shapes.
    """
    dtype = compute_dtype(points=points, distances=distances)
    x, y = box_columns("points", points, dtype, 2)
    left, top, right, bottom = box_columns("distances", distances, dtype)
    return clip_to_image(jnp.stack([x - left, y - top, x + right, y + bottom], axis=-1), max_shape)


@jitted
def integral(pred: jax.Array) -> jax.Array:
    """The mean of a distribution over the bins 0 to n: Σ k softmax(pred)_k.

    Args:
      pred: Logits of the bins (..., n + 1).

    Returns: (...), in bins.
    Source: Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    mean: jax.Array = _integral(None, pred.astype(compute_dtype(pred=pred)))
    return mean


def _mean_of_bins(pred: jax.Array) -> jax.Array:
    # Keep this a sum. Accelerators round a product of matrices to bfloat16 or TF32.
    _, e, total = exponentials(pred, -1)
    return (e * _bins(pred)).sum(-1) / total.squeeze(-1)


def _mean_of_bins_derivative(pred: jax.Array) -> jax.Array:
    return softmax(pred, -1) * (_bins(pred) - _mean_of_bins(pred)[..., None])


def _bins(pred: jax.Array) -> jax.Array:
    return jax.lax.broadcasted_iota(pred.dtype, pred.shape, pred.ndim - 1)


_integral = closed_form(_mean_of_bins, _mean_of_bins_derivative, axis=-1)


@jitted
def centerness_target(distances: jax.Array) -> jax.Array:
    """How central a point lies in its box: √(min(l, r) / max(l, r) · min(t, b) / max(t, b)).

    Args:
      distances: Distances (..., 4) to the left, top, right and bottom side, in any unit.

    Returns: (...), 1 in the centre, 0 on the border and outside.
    Raises: ValueError for other shapes.
    Source: Tian et al. 2019, https://arxiv.org/abs/1904.01355
    """
    dtype = compute_dtype(distances=distances)
    left, top, right, bottom = box_columns("distances", distances, dtype)
    low, high = jnp.minimum, jnp.maximum
    inside = low(low(left, right), low(top, bottom)) > 0
    ratio = divide(low(left, right), high(left, right)) * divide(
        low(top, bottom), high(top, bottom)
    )
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, ratio, 1)), 0)
