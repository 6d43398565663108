"""Geometry of boxes (..., 4) given as x1, y1, x2, y2 in pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.function import as_dtype, compute_dtype, jitted
from visdet_jax.numerics import clamp_min, divide

OVERLAP_MODES = ("iou", "iof", "giou")


class PairGeometry(NamedTuple):
    """Areas of pairs of boxes: of the first, the second, their overlap and their hull."""

    area1: jax.Array
    area2: jax.Array
    overlap: jax.Array
    hull: jax.Array


def pair_geometry(boxes1: jax.Array, boxes2: jax.Array) -> PairGeometry:
    """The areas of boxes (..., 4) that broadcast against each other, in pixels squared.

    An inverted box (x2 < x1) has a negative width here, as in the reference. The hull is the
    smallest box around both. Columns rather than slices (..., 2): three times faster on a CPU.
    """
    ax1, ay1, ax2, ay2 = (boxes1[..., i] for i in range(4))
    bx1, by1, bx2, by2 = (boxes2[..., i] for i in range(4))
    width = clamp_min(jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1), 0)
    height = clamp_min(jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1), 0)
    hull_width = clamp_min(jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1), 0)
    hull_height = clamp_min(jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1), 0)
    return PairGeometry(
        area1=(ax2 - ax1) * (ay2 - ay1),
        area2=(bx2 - bx1) * (by2 - by1),
        overlap=width * height,
        hull=hull_width * hull_height,
    )


def overlaps(boxes1: jax.Array, boxes2: jax.Array, mode: str, eps: jax.Array | float) -> jax.Array:
    """IoU, IoF or GIoU of boxes (..., 4) that broadcast; see `bbox_overlaps`."""
    area1, area2, overlap, hull = pair_geometry(boxes1, boxes2)
    union = jnp.maximum(area1 if mode == "iof" else area1 + area2 - overlap, eps)
    iou = divide(overlap, union)
    if mode != "giou":
        return iou
    hull = jnp.maximum(hull, eps)
    return iou - divide(hull - union, hull)


@jitted
def bbox_overlaps(
    bboxes1: jax.Array,
    bboxes2: jax.Array,
    mode: str = "iou",
    is_aligned: bool = False,
    eps: float = 1e-6,
) -> jax.Array:
    """Overlap of boxes, of each pair or of each with each.

    iou: |A ∩ B| / |A ∪ B|; iof: |A ∩ B| / |A|; giou: iou - (|C| - |A ∪ B|) / |C| with C the
    smallest box around both.

    Args:
      bboxes1: (..., m, 4) as x1, y1, x2, y2 in pixels.
      bboxes2: (..., n, 4), with the same leading axes; the same shape where aligned.
      mode: "iou", "iof" or "giou".
      is_aligned: the i-th against the i-th, instead of each against each.
      eps: floor of the areas that are divided by, in pixels squared.
    Returns: (..., m, n), or (..., m) where aligned; float32, float64 for float64 boxes.
    Raises: ValueError for another mode and for shapes that do not fit.
    Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630; mmdet's `bbox_overlaps`.
    """
    if mode not in OVERLAP_MODES:
        raise ValueError(f"mode must be one of {', '.join(OVERLAP_MODES)}; got {mode!r}")
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
