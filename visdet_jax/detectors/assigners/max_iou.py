"""Ground truth by the largest IoU: Faster R-CNN, RetinaNet."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import (
    EPS,
    IGNORED,
    Assigner,
    Assignment,
    assignment,
    checked,
    raise_for_ignored_regions,
    unassigned,
    visit_boxes,
)
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D
from visdet_jax.detectors.registry import TASK_UTILS


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
    priors, gt_boxes, gt_labels, valid = checked(priors, gt_boxes, gt_labels, valid, 4)
    any_box = (gt_labels >= 0).any()
    dtype = priors.dtype
    low, high = neg_iou_thr if isinstance(neg_iou_thr, tuple | list) else (0.0, neg_iou_thr)
    low, high, positive, least = as_dtype(dtype, low, high, pos_iou_thr, min_pos_iou)

    def visit(state, number, box, exists):
        best, best_gt, of_its_best = state
        iou = jnp.where(valid & exists, overlaps(box[None], priors, "iou", EPS), -1)
        better = iou > best
        best, best_gt = jnp.where(better, iou, best), jnp.where(better, number, best_gt)
        top = iou.max()
        its_best = iou == top if gt_max_assign_all else jnp.arange(iou.size) == iou.argmax()
        its_best &= (top >= 0) & (top >= least)
        return best, best_gt, jnp.where(its_best, number, of_its_best)

    best, none = unassigned(valid, gt_labels, dtype)
    best, best_gt, of_its_best = visit_boxes(visit, (best, none, none), gt_boxes, gt_labels)
    best = jnp.where(any_box, best, 0)
    gt_inds = jnp.where((best >= low) & (best < high), 0, IGNORED)
    gt_inds = jnp.where((best >= positive) & any_box, best_gt, gt_inds)
    if match_low_quality:
        gt_inds = jnp.where(of_its_best > 0, of_its_best, gt_inds)
    gt_inds = jnp.where(any_box, gt_inds, 0)
    return assignment(gt_inds, best, gt_labels, valid)


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
            raise self.value_error(
                f"neg_iou_thr must be a number or a pair, got {self.neg_iou_thr}"
            )
        raise_for_ignored_regions(self)

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
