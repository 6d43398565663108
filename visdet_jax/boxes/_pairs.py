"""Geometry of pairs of boxes (..., 4), given as x1, y1, x2, y2 in pixels."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.elementary import clamp_min, divide

Columns = tuple[jax.Array, ...]
Division = Callable[[jax.Array, jax.Array], jax.Array]


class PairGeometry(NamedTuple):
    """What losses need of pairs of boxes (A, B), in pixels; every array has the pairs' shape."""

    width1: jax.Array
    height1: jax.Array
    width2: jax.Array
    height2: jax.Array
    # From A's centre to B's.
    dx: jax.Array
    dy: jax.Array
    # x1, y1, x2, y2 of A ∩ B, inverted where the boxes do not overlap.
    intersection: Columns
    # x1, y1, x2, y2 of the smallest box around both.
    enclosing: Columns

    @property
    def area1(self) -> jax.Array:
        return self.width1 * self.height1

    @property
    def area2(self) -> jax.Array:
        return self.width2 * self.height2

    @property
    def overlap(self) -> jax.Array:
        """The area of A ∩ B."""
        x1, y1, x2, y2 = self.intersection
        return clamp_min(x2 - x1, 0) * clamp_min(y2 - y1, 0)

    @property
    def union(self) -> jax.Array:
        """The area of A ∪ B."""
        return self.area1 + self.area2 - self.overlap

    @property
    def enclosing_width(self) -> jax.Array:
        return clamp_min(self.enclosing[2] - self.enclosing[0], 0)

    @property
    def enclosing_height(self) -> jax.Array:
        return clamp_min(self.enclosing[3] - self.enclosing[1], 0)

    @property
    def squared_distance(self) -> jax.Array:
        """The squared distance of the centres."""
        return self.dx**2 + self.dy**2

    @property
    def squared_diagonal(self) -> jax.Array:
        """The squared diagonal of the enclosing box."""
        return self.enclosing_width**2 + self.enclosing_height**2

    # Each loss has the IoU of its first implementation: they differ in where eps stands. None is
    # below 0, for inverted boxes either. On accelerators, whose division need not be exact, each
    # may be a little above 1. `by` is the division: `divide_once` for short formulas.

    def iou(self, least: jax.Array | float, by: Division = divide) -> jax.Array:
        """overlap / max(union, least)."""
        return by(self.overlap, jnp.maximum(self.union, least))

    def iou_with_eps(self, eps: jax.Array | float, by: Division = divide) -> jax.Array:
        """overlap / (union + eps)."""
        return by(self.overlap, self.union + eps)

    def iou_with_eps_in_heights(self, eps: jax.Array | float, by: Division = divide) -> jax.Array:
        """overlap / `union_with_eps_in_heights`."""
        return by(self.overlap, self.union_with_eps_in_heights(eps))

    def union_with_eps_in_heights(self, eps: jax.Array | float) -> jax.Array:
        """The union, with eps added to it and to the heights in both areas."""
        area1 = self.width1 * (self.height1 + eps)
        area2 = self.width2 * (self.height2 + eps)
        return area1 + area2 - self.overlap + eps


def columns(boxes: jax.Array | Columns) -> Columns:
    """The numbers of boxes (..., 4) or (..., 5), each (...); columns as they are.

    Keep the geometry of boxes in columns. With slices (..., 2) the value of GIoU takes 1.3 times
    as long on a CPU, and its gradient 2.3 times and twice the memory (jax 0.10.2).
    """
    if isinstance(boxes, tuple):
        return boxes
    return tuple(boxes[..., i] for i in range(boxes.shape[-1]))


# How the columns of a large array are taken apart and put together is chosen here, and nowhere
# else, by the platform that a program is compiled for. A TPU keeps boxes (N, 4) as rows of 128
# numbers of one column. To a slice of them it gives that layout too, which fills an eighth of its
# registers in all that follows; to a sum over the four it does not. Stacking is four padded copies
# there. In the other form the gradient of CIoU takes half of the time that its compiler estimates,
# and moves half of the bytes (libtpu 0.0.52). A CPU would take twice as long in that form.


def split_columns(boxes: jax.Array) -> Columns:
    """`columns` of the boxes of a loss, of which there are many."""
    return jax.lax.platform_dependent(boxes, tpu=_split_by_sums, default=columns)


def join_columns(parts: Columns) -> jax.Array:
    """The array (..., n) of n columns (...)."""
    return jax.lax.platform_dependent(*parts, tpu=_join_by_selects, default=_join_by_stack)


def _split_by_sums(boxes: jax.Array) -> Columns:
    column = _column_numbers(boxes.ndim, boxes.shape[-1])
    return tuple(jnp.where(column == i, boxes, 0).sum(-1) for i in range(boxes.shape[-1]))


def _join_by_selects(*parts: jax.Array) -> jax.Array:
    shape = (*parts[0].shape, len(parts))
    return one_of_each_lane(tuple(jnp.broadcast_to(part[..., None], shape) for part in parts))


def _join_by_stack(*parts: jax.Array) -> jax.Array:
    # Keep the barrier, for rotated boxes. Without it a GPU computes the columns in the loop that
    # stacks them, from up to nine arrays that the loop of the value stores for it, and moves 1.3
    # times the bytes for KLD, 1.5 times for ProbIoU (H200, jax 0.12). On a CPU it makes no
    # difference.
    return jnp.stack(jax.lax.optimization_barrier(parts), axis=-1)


# A GPU gets a third form of the losses of four columns: all is computed in arrays (N, 4) whose four
# columns are the same, and at last the gradient takes each of its columns from another array. So
# the value and the gradient are one loop of one shape, which stores neither columns nor what the
# two have in common. In value and gradient an H200 moves 1.2 times the least bytes for each loss,
# in place of 1.8 for GIoU, 2.8 for Efficient IoU and 3.5 for SIoU, and starts one kernel less. A
# thread has the four entries of one box, so that it need not compute all four times: it executes
# 0.85 times the instructions for GIoU, 0.75 for Efficient IoU, 1.4 for CIoU and 1.6 for SIoU, whose
# arctangents and exponentials the compiler does not share (jax 0.12).


def in_lanes(function: Callable[..., Any], *boxes: jax.Array, **options: Any) -> Any:
    """What a function gives of the columns (...) of boxes (..., 4), but each result (..., 4).

    All four entries of a result's row are the same.
    """
    lanes = jax.vmap(functools.partial(function, **options), in_axes=-1, out_axes=-1)
    return lanes(*map(_lanes_of_columns, boxes))


def _lanes_of_columns(boxes: jax.Array) -> Columns:
    column = _column_numbers(boxes.ndim, boxes.shape[-1])
    # Keep the select, which changes no number. XLA undoes a broadcast alone: it computes with
    # columns and stores up to 15 of them, and an H200 moves 3 times the least for GIoU (jax 0.12).
    return tuple(
        jnp.where(column == i, boxes, jnp.broadcast_to(boxes[..., i : i + 1], boxes.shape))
        for i in range(boxes.shape[-1])
    )


def one_of_each_lane(parts: Columns) -> jax.Array:
    """The array (..., n) whose column i is that of the i-th of n arrays (..., n)."""
    column = _column_numbers(parts[0].ndim, len(parts))
    joined = parts[-1]
    for i, part in enumerate(parts[:-1]):
        joined = jnp.where(column == i, part, joined)
    return joined


def join_lanes(lanes: jax.Array) -> jax.Array:
    """The column (...) of an array (..., 4) of four such columns, in a form for GPUs only.

    Keep the bytes. A loop of XLA's may have several results if their shapes are the same, whatever
    the types. So the loop that writes the gradient (..., 4) writes the i-th byte of the values in
    the column i, and four bytes in a row are a float again without an instruction. As a column of
    the lanes the values would be a loop of their own, which reads the boxes again: an H200 moves
    1.6 to 1.8 times the least bytes, in place of 1.2 (jax 0.12).
    """
    bits = 8 * lanes.dtype.itemsize // 4
    whole, part = (jnp.dtype(f"uint{n}") for n in (4 * bits, bits))
    column = _column_numbers(lanes.ndim, 4).astype(whole)
    pieces = (jax.lax.bitcast_convert_type(lanes, whole) >> (bits * column)).astype(part)
    return jax.lax.bitcast_convert_type(pieces, lanes.dtype)


def _column_numbers(ndim: int, count: int) -> jax.Array:
    """0, 1, ... count - 1 along the last of so many axes."""
    return jax.lax.broadcasted_iota(jnp.int32, (1,) * (ndim - 1) + (count,), ndim - 1)


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
        intersection=(high(ax1, bx1), high(ay1, by1), low(ax2, bx2), low(ay2, by2)),
        enclosing=(low(ax1, bx1), low(ay1, by1), high(ax2, bx2), high(ay2, by2)),
    )


def box_columns(name: str, x: jax.Array, dtype: Any, count: int = 4) -> list[jax.Array]:
    """The columns of an array (..., count) in the type that is computed in; see `columns`.

    Raises: ValueError for another shape.
    """
    if x.ndim == 0 or x.shape[-1] != count:
        raise ValueError(f"{name} must have shape (..., {count}), got {x.shape}")
    return [column.astype(dtype) for column in columns(x)]
