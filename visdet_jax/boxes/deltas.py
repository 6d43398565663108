"""Boxes as deltas of a prior: what R-CNN, RetinaNet and most others predict."""

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp, clamp_min, divide
from visdet_jax.core.jitted import jitted

# The least ratio of a box's side to its prior's side of which a logarithm is taken.
MIN_SIDE_RATIO = 1e-6


@jitted
def bbox2delta(
    priors: jax.Array,
    boxes: jax.Array,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """What a prior has to learn to become its box: `delta2bbox`'s inverse.

    ((gx - px) / pw, (gy - py) / ph, log(gw / pw), log(gh / ph)), less `means`, over `stds`, with
    p the prior's centre and size and g the box's.

    Args:
      priors, boxes: (..., 4) that broadcast, in pixels.
    Returns: (..., 4), finite for boxes without area too: a side counts as 1e-6 of the prior's.
    Raises: ValueError for other shapes.
    Girshick et al. 2014, https://arxiv.org/abs/1311.2524
    """
    dtype = compute_dtype(priors=priors, boxes=boxes)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    gx, gy, gw, gh = box_columns("boxes", convert_boxes(boxes), dtype)
    deltas = (
        divide(gx - px, pw),
        divide(gy - py, ph),
        jnp.log(clamp_min(divide(gw, pw), MIN_SIDE_RATIO)),
        jnp.log(clamp_min(divide(gh, ph), MIN_SIDE_RATIO)),
    )
    scaled = [
        (delta - as_dtype(dtype, mean)) / as_dtype(dtype, std)
        for delta, mean, std in zip(deltas, means, stds, strict=True)
    ]
    return jnp.stack(scaled, axis=-1)


@jitted
def delta2bbox(
    priors: jax.Array,
    deltas: jax.Array,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_shape: jax.Array | None = None,
    wh_ratio_clip: float = 16 / 1000,
    add_ctr_clamp: bool = False,
    ctr_clamp: float = 32.0,
) -> jax.Array:
    """Priors moved and scaled by what was predicted for them: `bbox2delta`'s inverse.

    Args:
      priors, deltas: (..., 4) that broadcast; priors in pixels.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4), to which the boxes are clipped.
      wh_ratio_clip: a side changes at most by this factor or its inverse.
      add_ctr_clamp: centres move by at most `ctr_clamp` pixels, and sides may shrink at will.
    Returns: (..., 4) in pixels.
    Raises: ValueError for other shapes.
    Girshick et al. 2014, https://arxiv.org/abs/1311.2524; mmdet's `delta2bbox`.
    """
    dtype = compute_dtype(priors=priors, deltas=deltas)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    dx, dy, dw, dh = (
        delta * as_dtype(dtype, std) + as_dtype(dtype, mean)
        for delta, std, mean in zip(box_columns("deltas", deltas, dtype), stds, means, strict=True)
    )
    dx, dy = dx * pw, dy * ph
    top = jnp.abs(jnp.log(as_dtype(dtype, wh_ratio_clip)))
    low = -top
    if add_ctr_clamp:
        reach = as_dtype(dtype, ctr_clamp)
        dx, dy = clamp(dx, -reach, reach), clamp(dy, -reach, reach)
        low = as_dtype(dtype, -jnp.inf)
    x, y = px + dx, py + dy
    w, h = pw * jnp.exp(clamp(dw, low, top)), ph * jnp.exp(clamp(dh, low, top))
    return clip_to_image(
        jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1), max_shape
    )
