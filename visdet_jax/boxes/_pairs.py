"""Geometry of pairs of boxes (..., 4), given as x1, y1, x2, y2 in pixels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.elementary import clamp_min, divide


class PairGeometry(NamedTuple):
    """What losses need of pairs of boxes (A, B), in pixels; every array has the pairs' shape."""

    width1: jax.Array
    height1: jax.Array
    width2: jax.Array
    height2: jax.Array
    # From A's centre to B's.
    dx: jax.Array
    dy: jax.Array
    # x1, y1, x2, y2 of A ∩ B, inverted where they do not overlap, and of the enclosing box: the
    # smallest one around both. Columns, because slices (..., 2) take three times as long on a CPU.
    inner: tuple[jax.Array, jax.Array, jax.Array, jax.Array]
    enclosing: tuple[jax.Array, jax.Array, jax.Array, jax.Array]

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
    def enclosing_width(self) -> jax.Array:
        return clamp_min(self.enclosing[2] - self.enclosing[0], 0)

    @property
    def enclosing_height(self) -> jax.Array:
        return clamp_min(self.enclosing[3] - self.enclosing[1], 0)

    def iou(self, least: jax.Array | float) -> jax.Array:
        """IoU with a floor: overlap / max(union, least)."""
        return divide(self.overlap, jnp.maximum(self.union, least))

    def iou_plus(self, eps: jax.Array | float) -> jax.Array:
        """IoU with eps added: overlap / (union + eps)."""
        return divide(self.overlap, self.union + eps)

    def iou_of_taller(self, eps: jax.Array | float) -> jax.Array:
        """IoU with eps added to the union, and to the heights in both areas."""
        areas = self.width1 * (self.height1 + eps) + self.width2 * (self.height2 + eps)
        return divide(self.overlap, areas - self.overlap + eps)


Columns = tuple[jax.Array, ...]


def columns(boxes: jax.Array | Columns) -> Columns:
    """The numbers of boxes (..., 4) or (..., 5), each (...); columns as they are."""
    if isinstance(boxes, tuple):
        return boxes
    return tuple(boxes[..., i] for i in range(boxes.shape[-1]))


def pair_geometry(boxes1: jax.Array | Columns, boxes2: jax.Array | Columns) -> PairGeometry:
    """The geometry of boxes (..., 4), or of their columns, that broadcast against each other.

    An inverted box (x2 < x1) has a negative width, as in mmdet.
    """
    ax1, ay1, ax2, ay2 = columns(boxes1)
    bx1, by1, bx2, by2 = columns(boxes2)
    low, high = jnp.minimum, jnp.maximum
    return PairGeometry(
        width1=ax2 - ax1,
        height1=ay2 - ay1,
        width2=bx2 - bx1,
        height2=by2 - by1,
        dx=((bx1 + bx2) - (ax1 + ax2)) / 2,
        dy=((by1 + by2) - (ay1 + ay2)) / 2,
        inner=(high(ax1, bx1), high(ay1, by1), low(ax2, bx2), low(ay2, by2)),
        enclosing=(low(ax1, bx1), low(ay1, by1), high(ax2, bx2), high(ay2, by2)),
    )


def box_columns(name: str, x: jax.Array, dtype: Any, count: int = 4) -> list[jax.Array]:
    """The columns of (..., count): three times faster on a CPU than slices of several."""
    if x.ndim == 0 or x.shape[-1] != count:
        raise ValueError(f"{name} must have shape (..., {count}), got {x.shape}")
    return [x[..., i].astype(dtype) for i in range(count)]
