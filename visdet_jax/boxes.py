"""Geometry of boxes (..., 4) given as x1, y1, x2, y2 in pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.function import as_dtype, compute_dtype, jitted
from visdet_jax.numerics import clamp_min, divide

OVERLAP_MODES = ("iou", "iof", "giou")


class PairGeometry(NamedTuple):
    """What losses ask of pairs of boxes (A, B), in pixels; each is of the pairs' shape."""

    width1: jax.Array
    height1: jax.Array
    width2: jax.Array
    height2: jax.Array
    # From A's centre to B's.
    dx: jax.Array
    dy: jax.Array
    # x1, y1, x2, y2 of A ∩ B, inverted where they do not overlap, and of the smallest box around
    # both. Columns rather than slices (..., 2): three times faster on a CPU.
    inner: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    outer: tuple[jax.Array, jax.Array, jax.Array, jax.Array]

    @property
    def area1(self) -> jax.Array:
        return self.width1 * self.height1

    @property
    def area2(self) -> jax.Array:
        return self.width2 * self.height2

    @property
    def overlap(self) -> jax.Array:
        x1, y1, x2, y2 = self.inner
        return clamp_min(x2 - x1, 0) * clamp_min(y2 - y1, 0)

    @property
    def union(self) -> jax.Array:
        return self.area1 + self.area2 - self.overlap

    @property
    def hull_width(self) -> jax.Array:
        return clamp_min(self.outer[2] - self.outer[0], 0)

    @property
    def hull_height(self) -> jax.Array:
        return clamp_min(self.outer[3] - self.outer[1], 0)


def pair_geometry(boxes1: jax.Array, boxes2: jax.Array) -> PairGeometry:
    """The geometry of boxes (..., 4) that broadcast against each other.

    An inverted box (x2 < x1) has a negative width, as in the reference.
    """
    ax1, ay1, ax2, ay2 = (boxes1[..., i] for i in range(4))
    bx1, by1, bx2, by2 = (boxes2[..., i] for i in range(4))
    low, high = jnp.minimum, jnp.maximum
    return PairGeometry(
        width1=ax2 - ax1,
        height1=ay2 - ay1,
        width2=bx2 - bx1,
        height2=by2 - by1,
        dx=((bx1 + bx2) - (ax1 + ax2)) / 2,
        dy=((by1 + by2) - (ay1 + ay2)) / 2,
        inner=(high(ax1, bx1), high(ay1, by1), low(ax2, bx2), low(ay2, by2)),
        outer=(low(ax1, bx1), low(ay1, by1), high(ax2, bx2), high(ay2, by2)),
    )


def overlaps(boxes1: jax.Array, boxes2: jax.Array, mode: str, eps: jax.Array | float) -> jax.Array:
    """IoU, IoF or GIoU of boxes (..., 4) that broadcast; see `bbox_overlaps`."""
    pair = pair_geometry(boxes1, boxes2)
    union = jnp.maximum(pair.area1 if mode == "iof" else pair.union, eps)
    iou = divide(pair.overlap, union)
    if mode != "giou":
        return iou
    hull = jnp.maximum(pair.hull_width * pair.hull_height, eps)
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
