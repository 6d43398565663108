"""What the assigners on priors share: which ground truth each prior of one image learns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D

IGNORED, DROPPED = -1, -2
EPS = 1e-6  # the least area that an IoU is divided by, in pixels squared


class Assignment(NamedTuple):
    """The ground truth of each of N priors, or of N predictions."""

    gt_inds: jax.Array  # (N,) 1 for the first box; 0 background, -1 ignored, -2 dropped prior
    labels: jax.Array  # (N,) of that box; -1 where there is none
    max_overlaps: jax.Array | None = None  # (N,) the IoU by which it was assigned, if any was


def pick(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
    """The rows of `values` (G, ...) that `gt_inds` (N,) point to, as (N, ...).

    Where an index points to no box (0 or negative) the row is the first one, whose values mean
    nothing there.
    """
    index = jnp.maximum(gt_inds - 1, 0)
    return jnp.take_along_axis(values, index.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def without_padding(gt_boxes: Any, gt_labels: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Boxes (..., G, 4) with zeros in place of padding, and labels (..., G) as int32 or int64.

    Where G is 0 both get one row of padding, so that a row can be read.
    """
    gt_labels = as_labels("gt_labels", gt_labels)
    if not gt_labels.shape[-1]:
        gt_labels = jnp.full((*gt_labels.shape[:-1], 1), -1, gt_labels.dtype)
        gt_boxes = jnp.zeros((*gt_labels.shape, 4), dtype)
    return jnp.where(gt_labels[..., None] >= 0, jnp.asarray(gt_boxes), 0).astype(dtype), gt_labels


def prepare_inputs(
    priors: Any, gt_boxes: Any, gt_labels: Any, valid: Any = None, *, name: str = "priors"
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The arguments of an assigner for one image, checked, in one type and without padding.

    Args:
      priors: (N, 4), or (N, 2) where `name` is "points".
      gt_boxes, gt_labels, valid: See `max_iou_assign`.
      name: What the assigner calls its priors.

    Returns: the priors and the boxes in the type that is computed in, the boxes with zeros in
      place of padding, the labels as int32 or int64, and which priors are valid.
    Raises: ValueError for other shapes, TypeError for what is no array and for labels that are no
      integers.
    """
    dtype = compute_dtype(**{name: priors, "gt_boxes": gt_boxes})
    size = 2 if name == "points" else 4
    if priors.ndim != 2 or priors.shape[1] != size:
        raise ValueError(f"{name} must have shape (N, {size}), got {priors.shape}")
    if gt_boxes.ndim != 2 or gt_boxes.shape[1] != 4:
        raise ValueError(f"gt_boxes must have shape (G, 4), got {gt_boxes.shape}")
    gt_labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:1])
    if valid is None:
        valid = jnp.ones_like(priors[:, 0], bool)
    check_array("valid", valid)
    if valid.shape != priors.shape[:1]:
        raise ValueError(f"valid must have shape {priors.shape[:1]}, got {valid.shape}")
    gt_boxes, gt_labels = without_padding(gt_boxes, gt_labels, dtype)
    return jnp.asarray(priors).astype(dtype), gt_boxes, gt_labels, jnp.asarray(valid).astype(bool)


def visit_boxes(
    visit: Callable[..., Any], state: Any, gt_boxes: jax.Array, gt_labels: jax.Array
) -> Any:
    """The state after `state = visit(state, number, box, exists)` for each box, numbers from 1.

    Keep this loop over the boxes. The matrix of all IoUs (G, N) would be the largest array of a
    detector's loss: 100 boxes and 200 000 anchors are 80 MB an image.
    """
    if not jax.tree.leaves(state)[0].size:
        return state  # Without priors there is nothing to assign, nor a largest IoU.
    numbers = 1 + jnp.arange(len(gt_labels), dtype=jnp.int32)
    boxes = (numbers, gt_boxes, gt_labels >= 0)
    return jax.lax.scan(lambda state, box: (visit(state, *box), None), state, boxes)[0]


def unassigned(valid: jax.Array, gt_labels: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The state before the first box: each prior's largest IoU (N,), -1, and its box (N,), 0.

    Keep these two `where` whose sides are equal; they cost nothing. Inside `shard_map` the state
    of a loop has to vary over the devices from its start on if it does so in its end, and only
    arrays that are computed from the devices' own data vary. Constants would be a TypeError.
    """
    data = valid & (gt_labels >= 0).any()
    minus_one, zero = -jnp.ones(valid.shape, dtype), jnp.zeros(valid.shape, jnp.int32)
    return jnp.where(data, minus_one, -1), jnp.where(data, zero, 0)


def assignment(
    gt_inds: jax.Array, max_overlaps: jax.Array, gt_labels: jax.Array, valid: jax.Array
) -> Assignment:
    """The result, with dropped priors marked and the labels of the boxes."""
    gt_inds = jnp.where(valid, gt_inds, DROPPED)
    labels = jnp.where(gt_inds > 0, pick(gt_labels, gt_inds), -1)
    return Assignment(gt_inds, labels, max_overlaps)


@dataclass(frozen=True, kw_only=True)
class Assigner(FrozenModule):
    """Base of the assigners on priors: a subclass is its fields and `assign`."""

    def assign(
        self,
        priors: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *,
        level_sizes: tuple[int, ...],
    ) -> Assignment:
        """The ground truth of each prior of one image; `vmap` for a batch.

        Args:
          priors: (N, 4) as x1, y1, x2, y2, in pixels, level after level.
          gt_boxes: (G, 4) as the priors. Rows of padding are not read.
          gt_labels: (G,) Class indices, integers of any width; negative for padding.
          valid: (N,) False for priors to drop. None drops none.
          level_sizes: How many of the priors each level has.
        """
        raise NotImplementedError(f"{type(self).__name__} must define assign")


@dataclass(frozen=True, kw_only=True)
class IoUAssigner(Assigner):
    """Base of the assigners that go by the IoU: what mmdet's configs of all of them may hold.

    Args:
      ignore_iof_thr: Must be at most 0, which switches it off: the heads take no regions to
        ignore.
      iou_calculator: Which overlap is computed. There is one, the IoU.
    """

    ignore_iof_thr: float = -1
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_iof_thr > 0:
            raise self.value_error(
                f"ignore_iof_thr must be at most 0, got {self.ignore_iof_thr!r}: the heads take no "
                "regions to ignore"
            )
