"""Ground truth by the largest IoU: Faster R-CNN, RetinaNet."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Fraction, Number
from visdet_jax.core.jitted import errors_named, jitted
from visdet_jax.detectors.assigners.assigner import (
    IGNORED,
    Assignment,
    IoUAssigner,
    Rules,
    assignment,
    iou_with_all,
    no_box_yet,
    prepare_inputs,
    visit_boxes,
)
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def max_iou_assign(
    priors: jax.Array,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    pos_iou_thr: Fraction = 0.5,
    neg_iou_thr: Fraction | tuple[Number, Number] = 0.4,
    min_pos_iou: Fraction = 0.0,
    gt_max_assign_all: bool = True,
    match_low_quality: bool = True,
) -> Assignment:
    """Each prior to the box of largest IoU, where that is large enough.

    A prior is background where its largest IoU is below `neg_iou_thr`, has the box where it is at
    least `pos_iou_thr` (the first of equal ones), and is ignored between the two. Then, with
    `match_low_quality`, each box in turn takes the priors of its own largest IoU, if that is at
    least `min_pos_iou`: whatever these priors had before, and the last box wins. So with
    `min_pos_iou=0` a box that overlaps no prior takes all priors, as in mmdet.

    That last rule compares for equality. A box inside several priors of one size has the same IoU
    with all of them, and rounding decides which are the largest: in float32 it is a matter of luck
    which of them boxes below 32 pixels get, in mmdet and here alike.

    Args:
      priors: (N, 4) as x1, y1, x2, y2, in pixels.
      gt_boxes: (G, 4) as the priors. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      pos_iou_thr: Least IoU of a positive, in [0, 1]. Larger values leave fewer positives.
      neg_iou_thr: IoU below which a prior is background, in [0, 1], or a pair: background is then
        what lies in [low, high), and what lies below is ignored. Larger values leave fewer priors
        ignored.
      min_pos_iou: Least IoU by which `match_low_quality` gives a box its best priors, in [0, 1].
        Larger values leave more boxes without a prior.
      gt_max_assign_all: Whether a box takes all priors of its largest IoU, or the first of them.
      match_low_quality: Whether boxes take the priors of their largest IoU, also below
        `pos_iou_thr`.

    Returns: for each prior its box, that box's label, and the prior's largest IoU: -1 for dropped
      priors, 0 where there is no box at all.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Ren et al. 2015, https://arxiv.org/abs/1506.01497; mmdet's `MaxIoUAssigner`.
    """
    priors, gt_boxes, gt_labels, valid = prepare_inputs(priors, gt_boxes, gt_labels, valid)
    any_box = (gt_labels >= 0).any()
    dtype = priors.dtype
    low, high = _background_interval(neg_iou_thr)
    low, high, positive, least = as_dtype(dtype, low, high, pos_iou_thr, min_pos_iou)

    def compute(box: jax.Array, exists: jax.Array, among: slice) -> jax.Array:
        return jnp.where(valid[among] & exists, iou_with_all(box, priors[among]), -1)

    def measure(numbers: Any) -> Any:
        iou = numbers(slice(None))
        return iou.max(), None if gt_max_assign_all else iou.argmax()

    def visit(state: Any, number: jax.Array, iou: jax.Array, found: Any) -> Any:
        (best, box_of_low_quality), (top, first) = state, found
        takes = iou == top if first is None else jnp.arange(len(iou)) == first
        takes &= (top >= 0) & (top >= least)
        return best.or_box(number, iou), jnp.where(takes, number, box_of_low_quality)

    start = no_box_yet(valid, gt_labels, dtype)
    rules = Rules(compute, measure, visit)
    state = visit_boxes(rules, (start, start.numbers), gt_boxes, gt_labels)
    (largest, box_of_largest), box_of_low_quality = state
    largest = jnp.where(any_box, largest, 0)
    gt_inds = jnp.where((largest >= low) & (largest < high), 0, IGNORED)
    gt_inds = jnp.where((largest >= positive) & any_box, box_of_largest, gt_inds)
    if match_low_quality:
        gt_inds = jnp.where(box_of_low_quality > 0, box_of_low_quality, gt_inds)
    gt_inds = jnp.where(any_box, gt_inds, 0)
    return assignment(gt_inds, largest, gt_labels, valid)


def _background_interval(neg_iou_thr: Any) -> tuple[Any, Any]:
    """The IoUs [low, high) of background; a ValueError for a tuple that is no pair."""
    if not isinstance(neg_iou_thr, tuple | list):
        return 0.0, neg_iou_thr
    if len(neg_iou_thr) != 2:
        raise ValueError(f"neg_iou_thr must be a number or a pair, got {len(neg_iou_thr)} numbers")
    low, high = neg_iou_thr
    return low, high


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class MaxIoUAssigner(IoUAssigner, function=max_iou_assign):
    """Ground truth by the largest IoU: `max_iou_assign` with its hyperparameters as fields.

    Args:
      ignore_wrt_candidates: Has no effect: it is for regions to ignore.
      gpu_assign_thr: Has no effect: the matrix of all IoUs, which it keeps off the GPU, is never
        made.
      perm_repeat_gt_cfg: Must be None. By it mmdet moves ground truths that stand there twice, at
        random, so that each of them gets priors; that is not here.
    """

    pos_iou_thr: float
    neg_iou_thr: float | tuple[float, ...]
    min_pos_iou: float = 0.0
    gt_max_assign_all: bool = True
    ignore_wrt_candidates: bool = True
    match_low_quality: bool = True
    gpu_assign_thr: float = -1
    perm_repeat_gt_cfg: None = None

    def __post_init__(self) -> None:
        if self.perm_repeat_gt_cfg is not None:
            raise self.value_error(
                "perm_repeat_gt_cfg must be None: equal ground truths are not moved apart at "
                f"random here, got {self.perm_repeat_gt_cfg}"
            )
        super().__post_init__()
        with errors_named(type(self).__name__):
            _background_interval(self.neg_iou_thr)

    def assign(
        self,
        priors: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *,
        level_sizes: tuple[int, ...],
    ) -> Assignment:
        return max_iou_assign(priors, gt_boxes, gt_labels, valid, **self.settings)
