"""Overlaps of boxes (..., 4), given as x1, y1, x2, y2 in pixels."""

from typing import Literal

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, pair_geometry
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import NonNegative, Number
from visdet_jax.core.jitted import jitted

OverlapMode = Literal["iou", "iof", "giou"]


def overlaps(
    boxes1: jax.Array | Columns, boxes2: jax.Array | Columns, mode: OverlapMode, eps: Number
) -> jax.Array:
    """IoU, IoF or GIoU of boxes (..., 4) that broadcast; see `bbox_overlaps`."""
    pair = pair_geometry(boxes1, boxes2)
    union = jnp.maximum(pair.area1 if mode == "iof" else pair.union, eps)
    iou = divide(pair.overlap, union)
    if mode != "giou":
        return iou
    enclosing = jnp.maximum(pair.enclosing_width * pair.enclosing_height, eps)
    return iou - divide(enclosing - union, enclosing)


@jitted
def bbox_overlaps(
    bboxes1: jax.Array,
    bboxes2: jax.Array,
    mode: OverlapMode = "iou",
    is_aligned: bool = False,
    eps: NonNegative = 1e-6,
) -> jax.Array:
    """Overlap of boxes, of each pair or of each with each.

    iou: |A ∩ B| / |A ∪ B|; iof: |A ∩ B| / |A|; giou: iou - (|C| - |A ∪ B|) / |C| with C the
    smallest box around both.

    Args:
      bboxes1: Boxes (..., m, 4) as x1, y1, x2, y2 in pixels.
      bboxes2: Boxes (..., n, 4) with the same leading axes, and of the same shape where aligned.
      mode: The overlap: "iou", "iof" or "giou".
      is_aligned: Compares the i-th with the i-th, instead of each with each.
      eps: Least area that is divided by, in pixels squared, at least 0. With 0 too the overlap of
        boxes without area is finite.

    Returns: (..., m, n), or (..., m) where aligned; float32, and float64 for float64 boxes.
    Raises: ValueError for another mode and for shapes that do not fit.
    Source: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630; mmdet's `bbox_overlaps`.
    """
    dtype = compute_dtype(bboxes1=bboxes1, bboxes2=bboxes2)
    shapes = f"got {bboxes1.shape} and {bboxes2.shape}"
    for boxes in (bboxes1, bboxes2):
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise ValueError(f"boxes must have shape (..., n, 4), {shapes}")
    if is_aligned and bboxes1.shape != bboxes2.shape:
        raise ValueError(f"aligned boxes must have the same shape, {shapes}")
    if bboxes1.shape[:-2] != bboxes2.shape[:-2]:
        raise ValueError(f"boxes must have the same leading axes, {shapes}")
    bboxes1, bboxes2 = bboxes1.astype(dtype), bboxes2.astype(dtype)
    if not is_aligned:
        bboxes1, bboxes2 = bboxes1[..., :, None, :], bboxes2[..., None, :, :]
    return overlaps(bboxes1, bboxes2, mode, as_dtype(dtype, eps))
