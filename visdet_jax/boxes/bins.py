"""Boxes as D-FINE predicts them: each side as a distribution over bins, fine ones near 0.

A side has the bins 0 to `reg_max`. Bin n moves it by W(n) / `reg_scale` times the width or height
of a reference box, with W(n) from `bin_values`. `losses.boxes.fine_grained` has the loss that
learns the distributions, and `visdet_jax.dfine` has these functions by D-FINE's own names.

Source: Peng et al. 2024, https://arxiv.org/abs/2410.13842
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import absolute, clamp
from visdet_jax.core.hyperparameters import NonNegative, Number
from visdet_jax.core.jitted import jitted


@jitted(static=("reg_max",))
def bin_values(reg_max: int, up: Number, reg_scale: Number) -> jax.Array:
    """What each bin stands for: W(0) < ... < W(reg_max), which is 0 in the middle.

    ±(s^i - 1) at i bins from the middle, with s = (u + 1)^(2 / (reg_max - 2)) and
    u = |up reg_scale|. That is ±u at the last bins but one; the last bins have ±2 u.

    Args:
      reg_max: Number of bins less one, an even integer of at least 4.
      up: How far the last bin but one moves a side, in widths or heights of the reference box: a
        number, or an array () or (1,). Larger values make all bins wider. Its sign has no effect.
      reg_scale: The unit of W is the reference box's width or height divided by this number. Larger
        values make the bins near the middle finer against those at the ends. Its sign has no
        effect.

    Returns: (reg_max + 1,); float64 where up is, else float32.
    Raises: ValueError for another reg_max or shape of up.
    """
    dtype = jnp.float64 if jnp.asarray(up).dtype == jnp.float64 else jnp.float32
    return _bin_values(reg_max, up, reg_scale, dtype)


@jitted(static=("reg_max",))
def neighbouring_bins(
    gt: jax.Array, reg_max: int, reg_scale: Number, up: Number
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The bin below each distance, and how near the distance is to that bin and to the next.

    Args:
      gt: Distances (...), in the unit of W.
      reg_max, reg_scale, up: See `bin_values`.

    Returns: (bins, weight_right, weight_left), each (...): k with W(k) ≤ gt < W(k + 1), and two
      weights that add up to 1, with weight_left W(k) + weight_right W(k + 1) = gt. Below W(0) they
      are (0, 0, 1), and from W(reg_max) on (reg_max - 0.1, 1, 0). A NaN has the weights NaN, where
      D-FINE gives those of bin 0.
    Raises: ValueError for another reg_max or shape of up.
    """
    dtype = compute_dtype(gt=gt)
    gt = gt.astype(dtype)
    values = _bin_values(reg_max, up, reg_scale, dtype).reshape((1,) * gt.ndim + (-1,))
    below = values <= gt[..., None]
    k = below.sum(-1, dtype=dtype) - 1
    inside = (k >= 0) & (k < reg_max)
    # Keep the maximum and the minimum, which find W(k) and W(k + 1) since W grows. An explicitly
    # sharded array cannot be indexed with k.
    from_left = jnp.where(inside, gt - jnp.where(below, values, -jnp.inf).max(-1), 0)
    to_right = jnp.where(inside, jnp.where(below, jnp.inf, values).min(-1) - gt, 1)
    weight_right = jnp.where(k < reg_max, from_left / (from_left + to_right), 1)
    weight_right = jnp.where(jnp.isnan(gt), jnp.nan, weight_right)
    return clamp(k, 0, reg_max - 0.1), weight_right, 1 - weight_right


@jitted(static=("reg_max",))
def boxes_to_bins(
    points: jax.Array,
    boxes: jax.Array,
    reg_max: int,
    reg_scale: Number,
    up: Number,
    eps: NonNegative = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The targets of `fine_grained_localization_loss`: `neighbouring_bins` of each side.

    Args:
      points: Reference boxes (..., 4) as cx, cy, w, h.
      boxes: Boxes (..., 4) as x1, y1, x2, y2, in the same unit.
      reg_max, reg_scale, up: See `bin_values`.
      eps: Bins are at most reg_max - eps. At least 0.

    Returns: (bins, weight_right, weight_left), each (..., 4) for left, top, right, bottom; without
      gradient.
    Raises: ValueError for other shapes, another reg_max or shape of up.
    """
    dtype = compute_dtype(points=points, boxes=boxes)
    x, y, w, h = box_columns("points", points, dtype)
    x1, y1, x2, y2 = box_columns("boxes", boxes, dtype)
    scale = jnp.abs(as_dtype(dtype, reg_scale))
    # As in D-FINE 1e-16 is added, for reference boxes without area.
    w, h = w / scale + 1e-16, h / scale + 1e-16
    sides = jnp.stack([(x - x1) / w, (y - y1) / h, (x2 - x) / w, (y2 - y) / h], axis=-1)
    bins, right, left = neighbouring_bins(sides - 0.5 * scale, reg_max, reg_scale, up)
    bins = clamp(bins, 0, reg_max - as_dtype(dtype, eps))
    return jax.lax.stop_gradient((bins, right, left))


@jitted
def distances_to_boxes(points: jax.Array, distance: jax.Array, reg_scale: Number) -> jax.Array:
    """The boxes whose sides lie at these distances; the inverse of `boxes_to_bins`.

    Args:
      points: Reference boxes (..., 4) as cx, cy, w, h.
      distance: Distances (..., 4) of left, top, right, bottom, as `expected_distance` gives them.
      reg_scale: See `bin_values`.

    Returns: (..., 4) as cx, cy, w, h.
    Raises: ValueError for other shapes.
    """
    dtype = compute_dtype(points=points, distance=distance)
    x, y, w, h = box_columns("points", points, dtype)
    left, top, right, bottom = box_columns("distance", distance, dtype)
    scale = absolute(as_dtype(dtype, reg_scale))
    half, w, h = 0.5 * scale, w / scale, h / scale
    first_corner = [x - (half + left) * w, y - (half + top) * h]
    second_corner = [x + (half + right) * w, y + (half + bottom) * h]
    return convert_boxes(jnp.stack(first_corner + second_corner, axis=-1), "xyxy", "cxcywh")


@jitted(static=("reg_max",))
def expected_distance(pred: jax.Array, reg_max: int, reg_scale: Number, up: Number) -> jax.Array:
    """The mean of a distribution over the bins: Σ W(n) softmax(pred)_n.

    Args:
      pred: Logits of the bins (..., reg_max + 1).
      reg_max, reg_scale, up: See `bin_values`.

    Returns: (...), as `distances_to_boxes` takes it.
    Raises: ValueError for another number of bins, another reg_max or shape of up.
    """
    dtype = compute_dtype(pred=pred)
    if pred.shape[-1] != reg_max + 1:
        raise ValueError(f"pred must have shape (..., {reg_max + 1}), got {pred.shape}")
    values = _bin_values(reg_max, up, reg_scale, dtype).reshape((1,) * (pred.ndim - 1) + (-1,))
    # Keep this a sum. Accelerators round a product of matrices to bfloat16 or TF32.
    return (jax.nn.softmax(pred.astype(dtype), axis=-1) * values).sum(-1)


def _bin_values(reg_max: int, up: Number, reg_scale: Number, dtype: Any) -> jax.Array:
    if not isinstance(reg_max, int | np.integer) or reg_max < 4 or reg_max % 2:
        raise ValueError(f"reg_max must be an even int of at least 4, got {reg_max!r}")
    largest, scale = as_dtype(dtype, up, reg_scale)
    if largest.shape not in ((), (1,)):
        raise ValueError(f"up must be a number or an array of one, got shape {largest.shape}")
    largest = absolute(largest.reshape(())) * absolute(scale)
    # expm1 and log1p keep the digits of s^i - 1 where it is small.
    exponents = np.arange(1, reg_max // 2) / (reg_max // 2 - 1)
    inner = jnp.expm1(as_dtype(dtype, exponents) * jnp.log1p(largest))
    middle, end = jnp.zeros((1,), dtype), 2 * largest[None]
    return jnp.concatenate([-end, -inner[::-1], middle, inner, end])
