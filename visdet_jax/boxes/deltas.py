"""Boxes as deltas of a prior: what R-CNN, RetinaNet and most others predict."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp, clamp_min, divide
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.core.jitted import jitted

# The least ratio of a box's side to its prior's side of which a logarithm is taken.
MIN_SIDE_RATIO = 1e-6


@jitted
def bbox2delta(
    priors: jax.Array,
    boxes: jax.Array,
    means: Sequence[Number] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[Number] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """What a prior has to learn to become its box: `delta2bbox`'s inverse.

    ((gx - px) / pw, (gy - py) / ph, log(gw / pw), log(gh / ph)), less `means`, over `stds`, with
    p the prior's centre and size and g the box's.

    Args:
      priors, boxes: Boxes (..., 4) as x1, y1, x2, y2 in pixels, which broadcast.
      means: Four numbers that are subtracted from the deltas.
      stds: Four numbers above 0 that the deltas are then divided by. Smaller numbers make larger
        deltas.

    Returns: (..., 4), finite for boxes without area too: a side counts as at least 1e-6 of the
      prior's.
    Raises: ValueError for other shapes.
    Source: Girshick et al. 2014, https://arxiv.org/abs/1311.2524
    """
    return _encode(priors, boxes, means, stds, 0)


@jitted
def delta2bbox(
    priors: jax.Array,
    deltas: jax.Array,
    means: Sequence[Number] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[Number] = (1.0, 1.0, 1.0, 1.0),
    max_shape: jax.Array | None = None,
    wh_ratio_clip: Positive = 16 / 1000,
    add_ctr_clamp: bool = False,
    ctr_clamp: NonNegative = 32.0,
) -> jax.Array:
    """Priors moved and scaled by what was predicted for them: `bbox2delta`'s inverse.

    Args:
      priors: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      deltas: What was predicted, (..., 4), which broadcasts against the priors.
      means, stds: Four numbers each: the deltas are multiplied by `stds`, and then `means` is
        added.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4), to which the boxes are clipped.
        None clips nothing.
      wh_ratio_clip: The most that a side shrinks or grows: by this factor or its inverse. Above 0;
        numbers nearer to 1 allow less.
      add_ctr_clamp: Bounds the move of the centre by `ctr_clamp`, and lets sides shrink by any
        factor.
      ctr_clamp: The most pixels that a centre moves along x and along y where `add_ctr_clamp`, at
        least 0.

    Returns: (..., 4) as x1, y1, x2, y2 in pixels.
    Raises: ValueError for other shapes.
    Source: Girshick et al. 2014, https://arxiv.org/abs/1311.2524; mmdet's `delta2bbox`.
    """
    reach = ctr_clamp if add_ctr_clamp else None
    boxes = _decode(priors, deltas, means, stds, wh_ratio_clip, reach, 0)
    return clip_to_image(boxes, max_shape)


@jitted
def legacy_bbox2delta(
    priors: jax.Array,
    boxes: jax.Array,
    means: Sequence[Number] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[Number] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """`bbox2delta` of boxes whose corners are pixels that belong to them, as in mmdet 1.

    From x1 to x2 there are then x2 - x1 + 1 pixels, and so are the widths and heights here, of
    priors and boxes alike.

    Args:
      priors, boxes, means, stds: See `bbox2delta`.

    Returns: (..., 4), finite for every box: a side counts as at least 1e-6 of the prior's.
    Raises: ValueError for other shapes.
    Source: mmdet's `legacy_bbox2delta`.
    """
    return _encode(priors, boxes, means, stds, 1)


@jitted
def legacy_delta2bbox(
    priors: jax.Array,
    deltas: jax.Array,
    means: Sequence[Number] = (0.0, 0.0, 0.0, 0.0),
    stds: Sequence[Number] = (1.0, 1.0, 1.0, 1.0),
    max_shape: jax.Array | None = None,
    wh_ratio_clip: Positive = 16 / 1000,
) -> jax.Array:
    """`delta2bbox` of priors whose corners are pixels that belong to them, as mmdet has it.

    The widths and heights of the priors are x2 - x1 + 1, while the corners that come out lie half
    a width from the centre: it is not quite `legacy_bbox2delta`'s inverse, and mmdet keeps it so
    because it detects better.

    Args:
      priors, deltas, means, stds, wh_ratio_clip: See `delta2bbox`.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4): the boxes are clipped to its last
        pixel, which is one less. None clips nothing.

    Returns: (..., 4) as x1, y1, x2, y2 in pixels.
    Raises: ValueError for other shapes.
    Source: mmdet's `legacy_delta2bbox`.
    """
    boxes = _decode(priors, deltas, means, stds, wh_ratio_clip, None, 1)
    return clip_to_image(boxes, None if max_shape is None else jnp.asarray(max_shape) - 1)


def _encode(
    priors: jax.Array,
    boxes: jax.Array,
    means: Sequence[Number],
    stds: Sequence[Number],
    last_pixel: int,
) -> jax.Array:
    """See `bbox2delta`; `last_pixel` is what a side has beyond the distance of its corners."""
    dtype = compute_dtype(priors=priors, boxes=boxes)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    gx, gy, gw, gh = box_columns("boxes", convert_boxes(boxes), dtype)
    if last_pixel:
        pw, ph, gw, gh = (side + last_pixel for side in (pw, ph, gw, gh))
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


def _decode(
    priors: jax.Array,
    deltas: jax.Array,
    means: Sequence[Number],
    stds: Sequence[Number],
    wh_ratio_clip: Number,
    ctr_clamp: Number | None,
    last_pixel: int,
) -> jax.Array:
    """See `delta2bbox`; `last_pixel` is what a side has beyond the distance of its corners."""
    dtype = compute_dtype(priors=priors, deltas=deltas)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    if last_pixel:
        pw, ph = pw + last_pixel, ph + last_pixel
    dx, dy, dw, dh = (
        delta * as_dtype(dtype, std) + as_dtype(dtype, mean)
        for delta, std, mean in zip(box_columns("deltas", deltas, dtype), stds, means, strict=True)
    )
    dx, dy = dx * pw, dy * ph
    most = jnp.abs(jnp.log(as_dtype(dtype, wh_ratio_clip)))
    least = -most
    if ctr_clamp is not None:
        reach = as_dtype(dtype, ctr_clamp)
        dx, dy = clamp(dx, -reach, reach), clamp(dy, -reach, reach)
        least = as_dtype(dtype, -jnp.inf)
    x, y = px + dx, py + dy
    w, h = pw * jnp.exp(clamp(dw, least, most)), ph * jnp.exp(clamp(dh, least, most))
    return jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1)
