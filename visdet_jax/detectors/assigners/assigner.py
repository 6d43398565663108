"""What assigners share: which ground truth each prior of one image learns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.frozen import FrozenModule

IGNORED, DROPPED = -1, -2
EPS = 1e-6  # floor of the areas that an IoU is divided by, in pixels squared


class Assignment(NamedTuple):
    """The ground truth of each of N priors, or predictions."""

    gt_inds: jax.Array  # (N,) 1 for the first box; 0 background, -1 ignored, -2 dropped prior
    labels: jax.Array  # (N,) of that box; -1 where there is none
    max_overlaps: jax.Array | None = None  # (N,) the IoU by which it was assigned, if any was


def pick(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
    """Values (G, ...) of the boxes that `gt_inds` (N,) call; the first's where they call none."""
    index = jnp.maximum(gt_inds - 1, 0)
    return jnp.take_along_axis(values, index.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def without_padding(gt_boxes: Any, gt_labels: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Boxes (..., G, 4) with zeros for padding and labels (..., G), of at least one row."""
    gt_boxes, gt_labels = jnp.asarray(gt_boxes), jnp.asarray(gt_labels)
    if not gt_labels.shape[-1]:
        gt_labels = jnp.full((*gt_labels.shape[:-1], 1), -1, gt_labels.dtype)
        gt_boxes = jnp.zeros((*gt_labels.shape, 4), dtype)
    return jnp.where(gt_labels[..., None] >= 0, gt_boxes, 0).astype(dtype), gt_labels


def checked(
    priors: Any, gt_boxes: Any, gt_labels: Any, valid: Any, size: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Priors, boxes and their labels without padding, and which priors count."""
    dtype = compute_dtype(priors=priors, gt_boxes=gt_boxes)
    if priors.ndim != 2 or priors.shape[1] != size:
        raise ValueError(f"priors must have shape (N, {size}), got {priors.shape}")
    if gt_boxes.ndim != 2 or gt_boxes.shape[1] != 4:
        raise ValueError(f"gt_boxes must have shape (G, 4), got {gt_boxes.shape}")
    gt_labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:1])
    if valid is None:
        valid = jnp.ones_like(priors[:, 0], bool)
    elif valid.shape != priors.shape[:1]:
        raise ValueError(f"valid must have shape {priors.shape[:1]}, got {valid.shape}")
    return jnp.asarray(priors).astype(dtype), *without_padding(gt_boxes, gt_labels, dtype), valid


def visit_boxes(
    visit: Callable[..., Any], state: Any, gt_boxes: jax.Array, gt_labels: jax.Array
) -> Any:
    """The state after `state = visit(state, number, box, exists)` for each box, numbers from 1.

    Box by box, because the matrix of all IoUs is the largest array of a detector's loss.
    """
    numbers = 1 + jnp.arange(len(gt_labels), dtype=jnp.int32)
    boxes = (numbers, gt_boxes, gt_labels >= 0)
    return jax.lax.scan(lambda state, box: (visit(state, *box), None), state, boxes)[0]


def unassigned(valid: jax.Array, gt_labels: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Before the first box: the largest IoU of each prior (N,), -1, and its box, 0.

    Made of data, so that inside `shard_map` they vary over the devices as what they become.
    """
    data, zeros = valid & (gt_labels >= 0).any(), jnp.zeros(valid.shape, jnp.int32)
    return jnp.where(data, -1, -jnp.ones(valid.shape, dtype)), jnp.where(data, 0, zeros)


def assignment(
    gt_inds: jax.Array, max_overlaps: jax.Array, gt_labels: jax.Array, valid: jax.Array
) -> Assignment:
    """The result, with dropped priors marked and the labels of the boxes."""
    gt_inds = jnp.where(valid, gt_inds, DROPPED)
    labels = jnp.where(gt_inds > 0, pick(gt_labels, gt_inds), -1)
    return Assignment(gt_inds, labels, max_overlaps)


class Assigner(FrozenModule):
    """Base of the assigners: a subclass is its fields and `assign`."""

    def assign(
        self,
        priors: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *,
        level_sizes: tuple[int, ...],
    ) -> Assignment:
        """The ground truth of each prior of an image; see `max_iou_assign` for the arguments."""
        raise NotImplementedError(f"{type(self).__name__} must define assign")


def raise_for_ignored_regions(assigner: Any) -> None:
    """Raises a ValueError for a threshold that asks for regions to ignore."""
    if assigner.ignore_iof_thr > 0:
        raise assigner.value_error(
            f"ignore_iof_thr must be negative, got {assigner.ignore_iof_thr}: there are no ignored "
            "regions here"
        )
