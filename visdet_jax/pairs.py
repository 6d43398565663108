"""Geometry of pairs of boxes (..., 4), given as x1, y1, x2, y2 in pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.numerics import clamp_min


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


Columns = tuple[jax.Array, ...]


def columns(boxes: jax.Array | Columns) -> Columns:
    """The four numbers of boxes (..., 4), each (...)."""
    return boxes if isinstance(boxes, tuple) else tuple(boxes[..., i] for i in range(4))


def pair_geometry(boxes1: jax.Array | Columns, boxes2: jax.Array | Columns) -> PairGeometry:
    """The geometry of boxes (..., 4), or of their columns, that broadcast against each other.

    An inverted box (x2 < x1) has a negative width, as in the reference.
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
        outer=(low(ax1, bx1), low(ay1, by1), high(ax2, bx2), high(ay2, by2)),
    )
