"""Masks of boxes: cropped from bitmaps of whole images, and pasted into them."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.boxes.roi_align import Size, as_pair, bin_weights
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.hyperparameters import Count, Fraction
from visdet_jax.core.jitted import jitted


@jitted(static=("output_size", "chunk"))
def crop_masks(
    gt_masks: jax.Array,
    boxes: jax.Array,
    gt_inds: jax.Array,
    threshold: Fraction | None = 0.5,
    *,
    output_size: Size,
    chunk: Count = 8,
) -> jax.Array:
    """What the bitmaps hold in boxes, at one size: what a mask head learns.

    A box is clipped to the bitmap, and its bitmap is averaged in h × w bins, as `roi_align` does
    with `aligned=True` and `sampling_ratio=0`. A bin is 1 where that is at least `threshold`. A box
    that has no area after it was clipped is 0 everywhere.

    Memory: the bitmaps of `chunk` boxes as floats, chunk · H · W, beside the arguments and the
    result. No gradient flows through it. `vmap` for a batch.

    Args:
      gt_masks: (G, H, W) bitmaps of one image: 0 and 1, of any type, or anything between. H and W
        may be those of the padded image.
      boxes: (R, 4) as x1, y1, x2, y2, in pixels.
      gt_inds: (R,) the bitmap of each box, 1 for the first one, integers of any width. Where it is
        0 or negative nothing is read, and the result is 0.
      threshold: The least mean of a bin that is 1, in [0, 1]. Larger values make masks smaller.
        None gives the means themselves.
      output_size: The number of bins (h, w), or one number for both, at least 1.
      chunk: How many boxes are computed together, at least 1. Larger numbers take more memory, and
        less time on an accelerator.

    Returns: (R, h, w) of 0 and 1, or means; float32, and float64 for float64 boxes.
    Raises: ValueError for shapes that do not fit, TypeError for `gt_inds` that are no integers.
    Source: mmdet's `BitmapMasks.crop_and_resize` and `mask_target`.
    """
    check_array("gt_masks", gt_masks)
    if gt_masks.ndim != 3:
        raise ValueError(f"gt_masks must have shape (G, H, W), got {gt_masks.shape}")
    dtype = compute_dtype(boxes=boxes)
    _check_boxes(boxes)
    gt_inds = replicated(as_labels("gt_inds", gt_inds, boxes.shape[:1]))
    gt_masks, boxes = replicated(jax.lax.stop_gradient(gt_masks)), replicated(boxes)
    boxes = jax.lax.stop_gradient(boxes).astype(dtype)
    count, height, width = gt_masks.shape
    rows, cols = as_pair(output_size)
    if not (len(boxes) and gt_masks.size):
        return jnp.zeros((len(boxes), rows, cols), dtype)
    exists = (gt_inds > 0) & (gt_inds <= count) & jnp.isfinite(boxes).all(1)
    x1, y1, x2, y2 = columns(jnp.where(exists[:, None], boxes, 0))
    x1, x2 = clamp(x1, 0, width), clamp(x2, 0, width)
    y1, y2 = clamp(y1, 0, height), clamp(y2, 0, height)

    def crop(box: tuple[jax.Array, ...]) -> jax.Array:
        x1, y1, x2, y2, index, exists = box
        along_y = bin_weights(y1, y2, height, rows, sampling_ratio=0, aligned=True)
        along_x = bin_weights(x1, x2, width, cols, sampling_ratio=0, aligned=True)
        mask = gt_masks[index].astype(dtype)
        # In full precision: a mean of exactly half must stay one.
        found = jnp.matmul(along_y, mask, precision="highest")
        found = jnp.matmul(found, along_x.T, precision="highest")
        if threshold is not None:
            found = (found >= as_dtype(dtype, threshold)).astype(dtype)
        return jnp.where(exists, found, 0)

    regions = x1, y1, x2, y2, jnp.where(exists, gt_inds - 1, 0), exists
    return jax.lax.map(crop, regions, batch_size=min(chunk, len(boxes)))


@jitted(static=("image_shape", "chunk"))
def paste_masks(
    masks: jax.Array,
    boxes: jax.Array,
    valid: jax.Array | None = None,
    threshold: Fraction | None = 0.5,
    *,
    image_shape: tuple[Count, Count],
    chunk: Count = 8,
) -> jax.Array:
    """Masks of boxes as bitmaps of the whole image: what a mask head found, for evaluation.

    A pixel's centre is looked up in its box's mask by bilinear interpolation, with 0 outside of the
    mask, and is in the bitmap where that is at least `threshold`. A box without area has an empty
    bitmap.

    Memory: chunk · H · W floats, beside the arguments and the result, R · H · W bytes.

    Args:
      masks: (R, h, w) probabilities, in [0, 1].
      boxes: (R, 4) as x1, y1, x2, y2, in pixels of the image; they may reach over it.
      valid: (R,) False for padding, of which nothing is read and whose bitmap is empty. None pads
        none.
      threshold: The least probability of a pixel in the bitmap, in [0, 1]. Larger values make
        bitmaps smaller. None gives the probabilities themselves.
      image_shape: (H, W), height and width of the bitmaps in pixels, two Python integers.
      chunk: How many bitmaps are computed together, at least 1. Larger numbers take more memory,
        and less time on an accelerator.

    Returns: (R, H, W) bool, or probabilities: float32, and float64 for float64 masks.
    Raises: ValueError for shapes that do not fit.
    Source: mmdet's `_do_paste_mask`.
    """
    dtype = compute_dtype(masks=masks, boxes=boxes)
    if masks.ndim != 3:
        raise ValueError(f"masks must have shape (R, h, w), got {masks.shape}")
    _check_boxes(boxes)
    if len(masks) != len(boxes):
        raise ValueError(f"masks and boxes must be as many, got {masks.shape} and {boxes.shape}")
    if len(image_shape) != 2:
        raise ValueError(f"image_shape must be (height, width), got {image_shape}")
    if valid is None:
        valid = jnp.ones(len(boxes), bool)
    check_array("valid", valid)
    if valid.shape != boxes.shape[:1]:
        raise ValueError(f"valid must have shape {boxes.shape[:1]}, got {valid.shape}")
    height, width = image_shape
    of_pixels = bool if threshold is not None else dtype
    if not (len(masks) and masks.size):
        return jnp.zeros((len(boxes), height, width), of_pixels)
    masks, boxes = replicated(masks).astype(dtype), replicated(boxes).astype(dtype)
    exists = replicated(valid).astype(bool) & jnp.isfinite(boxes).all(1)
    x1, y1, x2, y2 = columns(jnp.where(exists[:, None], boxes, 0))
    exists &= (x2 > x1) & (y2 > y1)
    masks = jnp.where(exists[:, None, None], masks, 0)

    def paste(one: tuple[jax.Array, ...]) -> jax.Array:
        mask, x1, y1, x2, y2, exists = one
        along_y = _pixel_weights(y1, y2, height, mask.shape[0])
        along_x = _pixel_weights(x1, x2, width, mask.shape[1])
        found = jnp.matmul(along_y, mask, precision="highest")
        found = jnp.matmul(found, along_x.T, precision="highest")
        if threshold is None:
            return found
        return (found >= as_dtype(dtype, threshold)) & exists

    return jax.lax.map(paste, (masks, x1, y1, x2, y2, exists), batch_size=min(chunk, len(boxes)))


def _pixel_weights(low: jax.Array, high: jax.Array, pixels: int, size: int) -> jax.Array:
    """The weights (pixels, size) by which the cells of a mask from `low` to `high` make pixels."""
    dtype = low.dtype
    length = jnp.where(high > low, high - low, 1)
    at = ((jnp.arange(pixels).astype(dtype) + as_dtype(dtype, 0.5)) - low) / length
    at = at * size - as_dtype(dtype, 0.5)
    distance = jnp.abs(at[:, None] - jnp.arange(size).astype(dtype)[None])
    return jnp.maximum(1 - distance, 0)


def _check_boxes(boxes: Any) -> None:
    """Raises a ValueError unless boxes are (R, 4)."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (R, 4), got {boxes.shape}")
