"""Boxes as the distances from a prior's centre to their sides, in the prior's sizes: FSAF's."""

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import Number, Positive
from visdet_jax.core.jitted import jitted

# One number for all four sides, or one for each of top, bottom, left and right.
Normalizer = Positive | tuple[Number, ...]


@jitted
def bboxes2tblr(
    priors: jax.Array,
    boxes: jax.Array,
    normalizer: Normalizer = 4.0,
    normalize_by_wh: bool = True,
) -> jax.Array:
    """How far a box reaches from its prior's centre: to the top, bottom, left and right.

    ((py - y1) / ph, (y2 - py) / ph, (px - x1) / pw, (x2 - px) / pw) / `normalizer`, with p the
    prior's centre and size.

    Args:
      priors, boxes: Boxes (..., 4) as x1, y1, x2, y2 in pixels, which broadcast.
      normalizer: The distances are divided by it: a number above 0, or four for the top, bottom,
        left and right. Larger numbers make what the network learns smaller.
      normalize_by_wh: Whether they are first divided by the prior's height and width.

    Returns: (..., 4), without area of the prior 0.
    Raises: ValueError for other shapes, and for another number of normalizers.
    Source: Zhu et al. 2019, https://arxiv.org/abs/1903.00621; mmdet's `bboxes2tblr`
    """
    dtype = compute_dtype(priors=priors, boxes=boxes)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    x1, y1, x2, y2 = box_columns("boxes", boxes, dtype)
    distances = [py - y1, y2 - py, px - x1, x2 - px]
    if normalize_by_wh:
        distances = [divide(x, side) for x, side in zip(distances, (ph, ph, pw, pw), strict=True)]
    units = as_dtype(dtype, *for_each_side(normalizer))
    return jnp.stack([x / unit for x, unit in zip(distances, units, strict=True)], axis=-1)


@jitted
def tblr2bboxes(
    priors: jax.Array,
    tblr: jax.Array,
    normalizer: Normalizer = 4.0,
    normalize_by_wh: bool = True,
    max_shape: jax.Array | None = None,
) -> jax.Array:
    """The boxes that reach so far from their priors' centres: `bboxes2tblr`'s inverse.

    Args:
      priors: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      tblr: What was predicted, (..., 4), which broadcasts against the priors.
      normalizer: See `bboxes2tblr`; what was predicted is multiplied by it.
      normalize_by_wh: See `bboxes2tblr`; whether it is then multiplied by the prior's sides.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4), to which the boxes are clipped.
        None clips nothing.

    Returns: (..., 4) as x1, y1, x2, y2 in pixels.
    Raises: ValueError for other shapes, and for another number of normalizers.
    Source: Zhu et al. 2019, https://arxiv.org/abs/1903.00621; mmdet's `tblr2bboxes`
    """
    dtype = compute_dtype(priors=priors, tblr=tblr)
    px, py, pw, ph = box_columns("priors", convert_boxes(priors), dtype)
    units = as_dtype(dtype, *for_each_side(normalizer))
    distances = [x * unit for x, unit in zip(box_columns("tblr", tblr, dtype), units, strict=True)]
    if normalize_by_wh:
        distances = [x * side for x, side in zip(distances, (ph, ph, pw, pw), strict=True)]
    top, bottom, left, right = distances
    boxes = jnp.stack([px - left, py - top, px + right, py + bottom], axis=-1)
    return clip_to_image(boxes, max_shape)


def for_each_side(normalizer: Normalizer) -> tuple[Number, ...]:
    """One number for each of the four distances; a ValueError for another number of them."""
    if not isinstance(normalizer, tuple | list):
        return (normalizer,) * 4
    if len(normalizer) != 4:
        raise ValueError(f"normalizer must be one number or four, got {len(normalizer)}")
    return tuple(normalizer)
