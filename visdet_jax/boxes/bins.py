"""D-FINE's boxes: sides as distributions over bins that are the finer the smaller the distance.

Of the 0 to `reg_max` bins of a side, bin n moves it by W(n) / `reg_scale` times the reference
box's width or height, with W the `weighting_function`. `losses.fine_grained` learns them.

Peng et al. 2024, https://arxiv.org/abs/2410.13842
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import absolute, clamp
from visdet_jax.core.jitted import jitted


def _jitted(function):
    return jitted(function, static=("reg_max",))


@_jitted
def weighting_function(reg_max: int, up: Any, reg_scale: Any) -> jax.Array:
    """What each bin stands for: W(0) < ... < W(reg_max), 0 in the middle.

    ±(s^i - 1) at i bins from the middle, s = (u + 1)^(2 / (reg_max - 2)), u = |up reg_scale|,
    which is u at the last but one; ±2 u at the ends.

    Args:
      reg_max: the number of bins less one, an even int of at least 4.
      up: the largest move but one, in widths or heights; a number, or an array () or (1,).
      reg_scale: the larger, the wider the bins near the middle.
    Returns: (reg_max + 1,); float64 where up is, else float32.
    Raises: ValueError for another reg_max or shape of up.
    """
    dtype = jnp.float64 if jnp.asarray(up).dtype == jnp.float64 else jnp.float32
    return _weights(reg_max, up, reg_scale, dtype)


@_jitted
def translate_gt(
    gt: jax.Array, reg_max: int, reg_scale: Any, up: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The bin below each distance, and how near it is to that and to the next.

    Args:
      gt: distances (...), as W(n) has them.
      reg_max, reg_scale, up: see `weighting_function`.
    Returns: (bins, weight_right, weight_left), each (...): k with W(k) ≤ gt < W(k + 1), and
      shares that add up to 1 and interpolate gt. Below W(0) they are (0, 0, 1), from W(reg_max)
      on (reg_max - 0.1, 1, 0). A NaN has NaN shares (the first implementation's are of bin 0).
    Raises: ValueError for another reg_max or shape of up.
    """
    dtype = compute_dtype(gt=gt)
    gt = gt.astype(dtype)
    marks = _weights(reg_max, up, reg_scale, dtype).reshape((1,) * gt.ndim + (-1,))
    below = marks <= gt[..., None]
    k = below.sum(-1, dtype=dtype) - 1
    inside = (k >= 0) & (k < reg_max)
    # W grows: its neighbours of gt are found without an index, which arrays that are sharded
    # explicitly do not take.
    from_left = jnp.where(inside, gt - jnp.where(below, marks, -jnp.inf).max(-1), 0)
    to_right = jnp.where(inside, jnp.where(below, jnp.inf, marks).min(-1) - gt, 1)
    share = jnp.where(k < reg_max, from_left / (from_left + to_right), 1)
    share = jnp.where(jnp.isnan(gt), jnp.nan, share)
    return clamp(k, 0, reg_max - 0.1), share, 1 - share


@_jitted
def bbox2distance(
    points: jax.Array,
    boxes: jax.Array,
    reg_max: int,
    reg_scale: Any,
    up: Any,
    eps: float = 0.1,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The targets of `fine_grained_localization_loss`: `translate_gt` of the sides' distances.

    Args:
      points: the reference boxes (..., 4) as cx, cy, w, h.
      boxes: (..., 4) as x1, y1, x2, y2, in the same unit.
      reg_max, reg_scale, up: see `weighting_function`.
      eps: bins are at most reg_max - eps.
    Returns: (bins, weight_right, weight_left), each (..., 4), left, top, right, bottom; without
      gradient.
    Raises: ValueError for other shapes, another reg_max or shape of up.
    """
    dtype = compute_dtype(points=points, boxes=boxes)
    (x, y, w, h), (x1, y1, x2, y2) = (
        _columns(name, b, dtype) for name, b in (("points", points), ("boxes", boxes))
    )
    scale = jnp.abs(as_dtype(dtype, reg_scale))
    w, h = w / scale + 1e-16, h / scale + 1e-16
    sides = jnp.stack([(x - x1) / w, (y - y1) / h, (x2 - x) / w, (y2 - y) / h], axis=-1)
    bins, right, left = translate_gt(sides - 0.5 * scale, reg_max, reg_scale, up)
    bins = clamp(bins, 0, reg_max - as_dtype(dtype, eps))
    return jax.lax.stop_gradient((bins, right, left))


@jitted
def distance2bbox(points: jax.Array, distance: jax.Array, reg_scale: Any) -> jax.Array:
    """The boxes whose sides lie at these distances: `bbox2distance`'s inverse.

    Args:
      points: the reference boxes (..., 4) as cx, cy, w, h.
      distance: (..., 4) as `integral` gives them: left, top, right, bottom.
      reg_scale: see `weighting_function`.
    Returns: (..., 4) as cx, cy, w, h.
    Raises: ValueError for other shapes.
    """
    dtype = compute_dtype(points=points, distance=distance)
    (x, y, w, h), (left, top, right, bottom) = (
        _columns(name, b, dtype) for name, b in (("points", points), ("distance", distance))
    )
    scale = absolute(as_dtype(dtype, reg_scale))
    half, w, h = 0.5 * scale, w / scale, h / scale
    upper = [x - (half + left) * w, y - (half + top) * h]
    lower = [x + (half + right) * w, y + (half + bottom) * h]
    return convert_boxes(jnp.stack(upper + lower, axis=-1), "xyxy", "cxcywh")


@_jitted
def integral(pred: jax.Array, reg_max: int, reg_scale: Any, up: Any) -> jax.Array:
    """The mean of a distribution over the bins: Σ W(n) softmax(pred)_n.

    Args:
      pred: logits of the bins (..., reg_max + 1).
      reg_max, reg_scale, up: see `weighting_function`.
    Returns: (...), as `distance2bbox` takes it.
    Raises: ValueError for another number of bins, another reg_max or shape of up.
    """
    dtype = compute_dtype(pred=pred)
    if pred.shape[-1] != reg_max + 1:
        raise ValueError(f"pred must have shape (..., {reg_max + 1}), got {pred.shape}")
    marks = _weights(reg_max, up, reg_scale, dtype).reshape((1,) * (pred.ndim - 1) + (-1,))
    # A sum and not a product of matrices, which accelerators round to bfloat16 or TF32.
    return (jax.nn.softmax(pred.astype(dtype), axis=-1) * marks).sum(-1)


def _weights(reg_max, up, reg_scale, dtype):
    if not isinstance(reg_max, int | np.integer) or reg_max < 4 or reg_max % 2:
        raise ValueError(f"reg_max must be an even int of at least 4, got {reg_max!r}")
    up, reg_scale = as_dtype(dtype, up, reg_scale)
    if up.shape not in ((), (1,)):
        raise ValueError(f"up must be a number or an array of one, got shape {up.shape}")
    most = absolute(up.reshape(())) * absolute(reg_scale)
    # s^i - 1 without losing digits where it is small.
    steps = np.arange(1, reg_max // 2) / (reg_max // 2 - 1)
    inner = jnp.expm1(as_dtype(dtype, steps) * jnp.log1p(most))
    middle, end = jnp.zeros((1,), dtype), 2 * most[None]
    return jnp.concatenate([-end, -inner[::-1], middle, inner, end])


def _columns(name: str, boxes: Any, dtype: Any) -> list[jax.Array]:
    check_array(name, boxes)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"{name} must have shape (..., 4), got {boxes.shape}")
    return [boxes[..., i].astype(dtype) for i in range(4)]
