"""Assigners: which ground truth each prior of one image learns. A batch is a `vmap`."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes import bbox2distance, convert_boxes, overlaps
from visdet_jax.detectors.registry import TASK_UTILS
from visdet_jax.function import as_dtype, check_labels, compute_dtype, jitted
from visdet_jax.module import Config

IGNORED, DROPPED = -1, -2
EPS = 1e-6  # floor of the areas that an IoU is divided by, in pixels squared


class Assignment(NamedTuple):
    """The ground truth of each of N priors."""

    gt_inds: jax.Array  # (N,) 1 for the first box; 0 background, -1 ignored, -2 dropped prior
    labels: jax.Array  # (N,) of that box; -1 where there is none
    max_overlaps: jax.Array  # (N,) the IoU by which it was assigned


@jitted
def max_iou_assign(
    priors: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    pos_iou_thr: float = 0.5,
    neg_iou_thr: float | tuple[float, float] = 0.4,
    min_pos_iou: float = 0.0,
    gt_max_assign_all: bool = True,
    match_low_quality: bool = True,
) -> Assignment:
    """Each prior to the box of largest IoU, where that is large enough.

    Background where the largest IoU is below `neg_iou_thr` (or in [low, high) of a pair), the box
    where it is at least `pos_iou_thr` (the first of equals), ignored between. Then, with
    `match_low_quality`, each box in turn takes the priors of its own largest IoU, if that is at
    least `min_pos_iou`: whatever they were, the last box wins. So with 0 a box that overlaps no
    prior takes all that it does not overlap, as in mmdet.

    That last rule compares for equality. A box inside several priors of one size has the same IoU
    with all of them, and rounding decides which are the largest: in float32 it is a matter of luck
    which of them boxes below 32 pixels get, in the reference and here alike.

    Args:
      priors: (N, 4), in pixels.
      gt_boxes: (G, 4), in pixels. Of padding nothing is read.
      gt_labels: (G,), negative for padding.
      valid: (N,), False for priors to drop.
      gt_max_assign_all: whether a box takes all priors of its largest IoU, or the first of them.
    Raises: ValueError, TypeError for other shapes and types.
    Ren et al. 2015, https://arxiv.org/abs/1506.01497; mmdet's `MaxIoUAssigner`.
    """
    priors, gt_boxes, gt_labels, valid = _checked(priors, gt_boxes, gt_labels, valid, 4)
    exists = gt_labels >= 0
    dtype = priors.dtype
    low, high = neg_iou_thr if isinstance(neg_iou_thr, tuple | list) else (0.0, neg_iou_thr)
    low, high, positive, least = as_dtype(dtype, low, high, pos_iou_thr, min_pos_iou)

    # Box by box, because the matrix of all IoUs is the largest array of a detector's loss.
    def visit(state, box):
        best, best_gt, of_its_best = state
        index, box, exists = box
        iou = jnp.where(valid & exists, overlaps(box[None], priors, "iou", EPS), -1)
        better = iou > best
        best, best_gt = jnp.where(better, iou, best), jnp.where(better, index, best_gt)
        top = iou.max()
        if gt_max_assign_all:
            its_best = iou == top
        else:
            its_best = jnp.arange(iou.size) == iou.argmax()
        its_best &= (top >= 0) & (top >= least)
        return (best, best_gt, jnp.where(its_best, index, of_its_best)), None

    best, none = _unassigned(valid & exists.any(), dtype)
    start = (best, none, none)
    boxes = (_numbers(gt_labels), gt_boxes, exists)
    (best, best_gt, of_its_best), _ = jax.lax.scan(visit, start, boxes)
    best = jnp.where(exists.any(), best, 0)
    gt_inds = jnp.where((best >= low) & (best < high), 0, IGNORED)
    gt_inds = jnp.where((best >= positive) & exists.any(), best_gt, gt_inds)
    if match_low_quality:
        gt_inds = jnp.where(of_its_best > 0, of_its_best, gt_inds)
    gt_inds = jnp.where(exists.any(), gt_inds, 0)
    return _assignment(gt_inds, best, gt_labels, valid)


@functools.partial(jitted, static=("level_sizes", "topk"))
def atss_assign(
    priors: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    level_sizes: tuple[int, ...],
    topk: int = 9,
) -> Assignment:
    """Each box to priors near its centre whose IoU stands out among those near its centre.

    Candidates of a box are the `topk` priors of each level whose centres are nearest to its own
    (the first of equals). Those become positive whose IoU is at least mean + standard deviation
    (unbiased) of the candidates' and whose centre is inside the box by more than 0.01 pixels; of
    several boxes the one of largest IoU wins (the first of equals). The rest is background. One
    candidate has no deviation, and two never reach the threshold.

    Args:
      priors, gt_boxes, gt_labels, valid: as in `max_iou_assign`.
      level_sizes: how many of the priors each level has.
    Raises: ValueError, TypeError for other shapes and types.
    Zhang et al. 2020, https://arxiv.org/abs/1912.02424; mmdet's `ATSSAssigner`.
    """
    priors, gt_boxes, gt_labels, valid = _checked(priors, gt_boxes, gt_labels, valid, 4)
    exists = gt_labels >= 0
    if sum(level_sizes) != len(priors):
        raise ValueError(f"level_sizes {level_sizes} do not add up to {len(priors)} priors")
    dtype = priors.dtype
    centers = convert_boxes(priors)[:, :2]
    margin = as_dtype(dtype, 0.01)

    # Box by box: XLA on the CPU then finds the nearest by selection, and sorts a batch of matrices.
    def visit(state, box):
        best, best_gt = state
        index, box, exists = box
        iou = overlaps(box[None], priors, "iou", EPS)
        x, y = (centers - convert_boxes(box)[None, :2]).T
        distance = jnp.where(valid, jnp.sqrt(x**2 + y**2), jnp.inf)
        candidate = _nearest(distance, level_sizes, topk)
        count = candidate.sum().astype(dtype)
        mean = jnp.where(candidate, iou, 0).sum() / jnp.maximum(count, 1)
        square = jnp.where(candidate, (iou - mean) ** 2, 0).sum()
        deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
        inside = bbox2distance(centers, box[None]).min(-1) > margin
        positive = candidate & (iou >= mean + deviation) & (count > 1) & inside & exists
        better = positive & (iou > best)
        return (jnp.where(better, iou, best), jnp.where(better, index, best_gt)), None

    start = _unassigned(valid & exists.any(), dtype)
    (best, best_gt), _ = jax.lax.scan(visit, start, (_numbers(gt_labels), gt_boxes, exists))
    unassigned = jnp.where(exists.any(), as_dtype(dtype, -1e8), 0)
    return _assignment(best_gt, jnp.where(best_gt > 0, best, unassigned), gt_labels, valid)


@jitted
def fcos_assign(
    points: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    *,
    strides: jax.Array,
    regress_ranges: jax.Array,
    center_sampling: bool = False,
    center_sample_radius: float = 1.5,
) -> Assignment:
    """Each point to the smallest box that contains it and is of its level's size.

    A point is inside a box where left, top, right and bottom are above 0; with `center_sampling`,
    inside its intersection with the square of 2 · radius · stride around its centre. It is of the
    level's size where the largest of the four is in the level's range, both ends included. The
    smallest area wins, the first of equals; the rest is background.

    Args:
      points: (N, 2) as x, y, in pixels.
      gt_boxes, gt_labels: as in `max_iou_assign`.
      strides: (N,) of each point's level, in pixels.
      regress_ranges: (N, 2) of each point's level, in pixels.
      center_sample_radius: in strides.
    Returns: `max_overlaps` is 1 for positives, else 0.
    Raises: ValueError, TypeError for other shapes and types.
    Tian et al. 2019, https://arxiv.org/abs/1904.01355; mmdet's `FCOSHead`.
    """
    points, gt_boxes, gt_labels, valid = _checked(points, gt_boxes, gt_labels, None, 2)
    exists = gt_labels >= 0
    dtype = points.dtype
    distances = bbox2distance(points[None], gt_boxes[:, None])  # (G, N, 4)
    if center_sampling:
        reach = (strides.astype(dtype) * as_dtype(dtype, center_sample_radius))[None]
        x, y, width, height = (column[:, None] for column in convert_boxes(gt_boxes).T)
        x1, y1, x2, y2 = (column[:, None] for column in gt_boxes.T)
        low, high = jnp.maximum, jnp.minimum
        middle = (low(x - reach, x1), low(y - reach, y1), high(x + reach, x2), high(y + reach, y2))
        region = bbox2distance(points[None], jnp.stack(middle, axis=-1))
    else:
        region = distances
    inside = region.min(-1) > 0
    ranges = regress_ranges.astype(dtype)[None]
    farthest = distances.max(-1)
    of_size = (ranges[..., 0] <= farthest) & (farthest <= ranges[..., 1])
    candidate = inside & of_size & exists[:, None]

    x1, y1, x2, y2 = gt_boxes.T
    areas = jnp.where(candidate, ((x2 - x1) * (y2 - y1))[:, None], jnp.inf)
    found = candidate.any(0)
    gt_inds = jnp.where(found, 1 + areas.argmin(0).astype(jnp.int32), 0)
    return _assignment(gt_inds, found.astype(dtype), gt_labels, valid)


def pick(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
    """`values` (G, ...) of the boxes that `gt_inds` (N,) name; of the first where they name none."""
    index = jnp.maximum(gt_inds - 1, 0)
    return jnp.take_along_axis(values, index.reshape(-1, *[1] * (values.ndim - 1)), axis=0)


def without_padding(gt_boxes: Any, gt_labels: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Boxes (..., G, 4) of `dtype` with zeros for padding, and labels (..., G); at least one row."""
    gt_boxes, gt_labels = jnp.asarray(gt_boxes), jnp.asarray(gt_labels)
    if not gt_labels.shape[-1]:
        gt_labels = jnp.full((*gt_labels.shape[:-1], 1), -1, gt_labels.dtype)
        gt_boxes = jnp.zeros((*gt_labels.shape, 4), dtype)
    return jnp.where(gt_labels[..., None] >= 0, gt_boxes, 0).astype(dtype), gt_labels


def _checked(
    priors: Any, gt_boxes: Any, gt_labels: Any, valid: Any, size: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Priors, boxes and their labels without padding, and which priors count."""
    dtype = compute_dtype(priors=priors, gt_boxes=gt_boxes)
    if priors.ndim != 2 or priors.shape[1] != size:
        raise ValueError(f"priors must have shape (N, {size}), got {priors.shape}")
    if gt_boxes.ndim != 2 or gt_boxes.shape[1] != 4:
        raise ValueError(f"gt_boxes must have shape (G, 4), got {gt_boxes.shape}")
    check_labels("gt_labels", gt_labels, gt_boxes.shape[:1])
    if valid is None:
        valid = jnp.ones_like(priors[:, 0], bool)
    elif valid.shape != priors.shape[:1]:
        raise ValueError(f"valid must have shape {priors.shape[:1]}, got {valid.shape}")
    return jnp.asarray(priors).astype(dtype), *without_padding(gt_boxes, gt_labels, dtype), valid


def _numbers(gt_labels: jax.Array) -> jax.Array:
    """By which `gt_inds` call the boxes: from 1."""
    return 1 + jnp.arange(len(gt_labels), dtype=jnp.int32)


def _unassigned(data: jax.Array, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Before the first box: the largest IoU of each prior, -1, and the box, 0.

    Made of data, so that inside `shard_map` they vary over the devices as what they become.
    """
    zeros = jnp.zeros(data.shape, jnp.int32)
    return jnp.where(data, -1, -jnp.ones(data.shape, dtype)), jnp.where(data, 0, zeros)


def _nearest(distance: jax.Array, level_sizes: tuple[int, ...], topk: int) -> jax.Array:
    """Which priors (N,) are among the `topk` of their level at the least, finite distance."""
    nearest, start = [], 0
    for size in level_sizes:
        level, start = distance[start : start + size], start + size
        if size:
            least, index = jax.lax.top_k(-level, min(topk, size))
            # top_k takes the first of equals: those at the last distance up to the last index.
            # Not least[-1]: XLA makes a sort of a top_k of which only that is used, 80 times slower.
            last = -least.min()
            last_index = jnp.where(least == -last, index, -1).max()
            number = jnp.arange(size, dtype=index.dtype)
            nearest.append((level < last) | ((level == last) & (number <= last_index)))
    return jnp.concatenate(nearest) & jnp.isfinite(distance)


def _assignment(
    gt_inds: jax.Array, max_overlaps: jax.Array, gt_labels: jax.Array, valid: jax.Array
) -> Assignment:
    gt_inds = jnp.where(valid, gt_inds, DROPPED)
    labels = jnp.where(gt_inds > 0, pick(gt_labels, gt_inds), -1)
    return Assignment(gt_inds, labels, max_overlaps)


class Assigner(Config):
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


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BboxOverlaps2D(Config):
    """The IoU of boxes, as configs of assigners name it. There is no other."""


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class MaxIoUAssigner(Assigner):
    """Flax shim of `max_iou_assign`.

    `ignore_iof_thr` and `ignore_wrt_candidates` are for regions to ignore, which the heads do not
    take, so that only a negative threshold is accepted. `gpu_assign_thr` has no effect: the matrix
    of all IoUs that it keeps from the GPU is never made.
    """

    pos_iou_thr: float
    neg_iou_thr: float | tuple[float, ...]
    min_pos_iou: float = 0.0
    gt_max_assign_all: bool = True
    ignore_iof_thr: float = -1
    ignore_wrt_candidates: bool = True
    match_low_quality: bool = True
    gpu_assign_thr: float = -1
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.neg_iou_thr, tuple) and len(self.neg_iou_thr) != 2:
            self.refuse(f"neg_iou_thr must be a number or a pair, got {self.neg_iou_thr}")
        refuse_ignored_regions(self)

    def assign(self, priors, gt_boxes, gt_labels, valid=None, *, level_sizes):
        return max_iou_assign(
            priors,
            gt_boxes,
            gt_labels,
            valid,
            pos_iou_thr=self.pos_iou_thr,
            neg_iou_thr=self.neg_iou_thr,
            min_pos_iou=self.min_pos_iou,
            gt_max_assign_all=self.gt_max_assign_all,
            match_low_quality=self.match_low_quality,
        )


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class ATSSAssigner(Assigner):
    """Flax shim of `atss_assign`; for `ignore_iof_thr` see `MaxIoUAssigner`."""

    topk: int
    ignore_iof_thr: float = -1
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def __post_init__(self):
        super().__post_init__()
        self.refuse_unless_positive("topk")
        refuse_ignored_regions(self)

    def assign(self, priors, gt_boxes, gt_labels, valid=None, *, level_sizes):
        return atss_assign(
            priors, gt_boxes, gt_labels, valid, level_sizes=level_sizes, topk=self.topk
        )


def refuse_ignored_regions(assigner: Any) -> None:
    """Raises a ValueError for a threshold that asks for regions to ignore."""
    if assigner.ignore_iof_thr > 0:
        assigner.refuse(
            f"ignore_iof_thr must be negative, got {assigner.ignore_iof_thr}: there are no ignored "
            "regions here"
        )
