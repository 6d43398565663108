"""Ground truth by the score and the IoU of predictions together: TOOD and the YOLOs after it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns, pair_geometry
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import Count, Exponent, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power
from visdet_jax.detectors.assigners.assigner import (
    Assignment,
    Best,
    Rules,
    iou_with_all,
    no_box_yet,
    pick,
    visit_boxes,
)
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D
from visdet_jax.detectors.assigners.predictions import (
    Inputs,
    Members,
    PredictionAssigner,
    Scores,
    largest_of_boxes,
    least_members,
    no_claims,
    prepare_predictions,
    result,
)
from visdet_jax.detectors.registry import TASK_UTILS


@jitted(static=("topk",))
def task_aligned_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    scores: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    topk: Count = 13,
    alpha: Exponent = 1.0,
    beta: Exponent = 6.0,
) -> Assignment:
    """Each box to the predictions whose class and place are best together: s^alpha · u^beta.

    s is a prediction's score of the box's class and u its IoU with the box. Of the `topk` largest
    metrics of a box among all priors those become positive that are above 0 and whose point is
    inside the box by more than 0.01 pixels. A prediction that several boxes take goes to the one of
    largest IoU among them, the first of equal ones. The metric is then scaled for each box: divided
    by its largest one + 1e-7, times the largest IoU, both of the box's positives.

    Args:
      points: (N, 2) x, y of the anchors' centres, in pixels.
      strides: (N,) Not used.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: Probabilities (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      topk: How many candidates a box has, at least 1. Larger values give more positives.
      alpha: Exponent of the score, at least 0. Larger values weigh the class more.
      beta: Exponent of the IoU, at least 0. Larger values weigh the place more.

    Returns: for each prior its box, that box's label, the IoU with it (-1e8 for background, 0
      where there is no box at all), and the scaled metric, 0 for background.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Feng et al. 2021, https://arxiv.org/abs/2108.07755; mmdet's `TaskAlignedAssigner`
    """
    given = prepare_predictions(points, strides, pred_boxes, scores, gt_boxes, gt_labels, valid)
    dtype = given.points.dtype
    index = jnp.arange(len(given.points), dtype=jnp.int32)

    def compute(truth: Any, exists: jax.Array, among: slice) -> Any:
        box, label = truth
        iou = iou_with_all(box, given.pred_boxes[among])
        metric = power(given.of_class(label)[among], alpha) * power(iou, beta)
        takes_part = exists & given.valid[among]
        inside = takes_part & (given.inside(box)[among] > as_dtype(dtype, 0.01))
        return jnp.where(takes_part, metric, 0), iou, inside

    def measure(numbers: Any) -> Members:
        return _largest_members(lambda *which: numbers(*which)[0], given, topk)

    def visit(state: Any, number: jax.Array, numbers: Any, members: Members) -> Any:
        best, best_metric = state
        metric, iou, inside = numbers
        takes = members.include(index) & inside & (metric > 0)
        iou = jnp.where(takes, iou, -1)
        return best.or_box(number, iou), jnp.where(iou > best.scores, metric, best_metric)

    start = no_box_yet(given.valid, given.gt_labels, dtype)
    rules = Rules(compute, measure, visit, keeps=True)
    state = (start, jnp.zeros_like(start.scores))
    truth = (given.gt_boxes, given.gt_labels)
    best, metric = visit_boxes(rules, state, truth, given.gt_labels)
    return _scaled(given, best.numbers, metric, best.scores, 1e-7)


@jitted(static=("topk",))
def batch_task_aligned_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    scores: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    topk: Count = 13,
    alpha: Exponent = 1.0,
    beta: Exponent = 6.0,
    eps: NonNegative = 1e-7,
    use_ciou: bool = False,
) -> Assignment:
    """mmyolo's form of `task_aligned_assign`.

    What differs: only priors inside the box by more than 1e-9 pixels are candidates; the overlap u
    may be the CIoU, 0 where it is negative; and a prediction that several boxes take goes to the
    one of largest overlap among all boxes, also those that did not take it or do not contain it.
    Predictions of metric 0 are never positive, of which mmyolo takes some in no certain order: they
    have no weight in any loss.

    Args:
      points: (N, 2) x, y of the cells' centres, in pixels.
      strides: (N,) Not used.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: Probabilities (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      topk: How many candidates a box has, at least 1. Larger values give more positives.
      alpha: Exponent of the score, at least 0. Larger values weigh the class more.
      beta: Exponent of the IoU, at least 0. Larger values weigh the place more.
      eps: Added to the largest metric of a box before it divides, at least 0.
      use_ciou: Whether the overlap is the CIoU instead of the IoU.

    Returns: as `task_aligned_assign`.
    Raises: as `task_aligned_assign`.
    Source: mmyolo's `BatchTaskAlignedAssigner`
    """
    given = prepare_predictions(points, strides, pred_boxes, scores, gt_boxes, gt_labels, valid)
    overlap = _overlap_of_mmyolo if use_ciou else _iou
    rivals = _Rivals(overlap, of_all_boxes=True, min_side=None)
    return _assign_aligned(given, rivals, topk, alpha, beta, eps, topk2=None)


@jitted(static=("topk", "topk2"))
def yolo_task_aligned_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    scores: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    topk: Count = 10,
    alpha: Exponent = 0.5,
    beta: Exponent = 6.0,
    eps: NonNegative = 1e-9,
    topk2: Count | None = None,
    min_side: NonNegative = 0.0,
) -> Assignment:
    """The form of `task_aligned_assign` by which YOLOv8 and its successors are trained.

    What differs: the overlap u is the CIoU, 0 where it is negative; only priors inside the box by
    more than 1e-9 pixels are candidates, where sides below `min_side` count as that long, about the
    same centre; a prediction that several boxes take goes to the one of largest overlap among those
    that contain its point; and each box may keep only its `topk2` best. Predictions of metric 0 are
    never positive: they would have no weight in any loss.

    Args:
      points: (N, 2) x, y of the cells' centres, in pixels.
      strides: (N,) Not used.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: Probabilities (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      topk: How many candidates a box has, at least 1. Larger values give more positives.
      alpha: Exponent of the score, at least 0. Larger values weigh the class more.
      beta: Exponent of the IoU, at least 0. Larger values weigh the place more.
      eps: Added to the largest metric of a box before it divides, at least 0.
      topk2: How many positives a box keeps after all, at least 1: of a one-to-one branch 1. None
        keeps them all.
      min_side: In pixels, at least 0. Larger values give small boxes more candidates.

    Returns: as `task_aligned_assign`.
    Raises: as `task_aligned_assign`.
    Source: the facts of ultralytics' `TaskAlignedAssigner` (8.4)
    """
    given = prepare_predictions(points, strides, pred_boxes, scores, gt_boxes, gt_labels, valid)
    rivals = _Rivals(_overlap_of_yolo, of_all_boxes=False, min_side=min_side)
    return _assign_aligned(given, rivals, topk, alpha, beta, eps, topk2)


class _Rivals(NamedTuple):
    """How boxes compete for a prediction in the forms of the YOLOs."""

    overlap: Callable[[jax.Array, jax.Array], jax.Array]
    of_all_boxes: bool  # Whether a contested prediction may go to a box that does not contain it.
    min_side: Number | None  # Shorter sides of a box count as that long; None for any.


def _assign_aligned(
    given: Inputs,
    rivals: _Rivals,
    topk: int,
    alpha: Number,
    beta: Number,
    eps: Number,
    topk2: int | None,
) -> Assignment:
    dtype = given.points.dtype
    index = jnp.arange(len(given.points), dtype=jnp.int32)

    def compute(truth: Any, exists: jax.Array, among: slice) -> Any:
        box, label = truth
        region = box if rivals.min_side is None else _enlarged(box, rivals.min_side)
        takes_part = exists & given.valid[among]
        inside = takes_part & (given.inside(region)[among] > as_dtype(dtype, 1e-9))
        overlap = rivals.overlap(box, given.pred_boxes[among])
        overlap = jnp.where(takes_part if rivals.of_all_boxes else inside, overlap, 0)
        metric = power(given.of_class(label)[among], alpha) * power(overlap, beta)
        return metric, overlap, inside

    def measure(numbers: Any) -> Members:
        def metric_inside(*which: Any) -> jax.Array:
            metric, _, inside = numbers(*which)
            return jnp.where(inside, metric, 0)

        return _largest_members(metric_inside, given, topk)

    def visit(state: Any, number: jax.Array, numbers: Any, members: Members) -> Any:
        claims, of_claiming, of_best = state
        metric, overlap, inside = numbers
        takes = members.include(index) & inside & (metric > 0)
        better = overlap > claims.best.scores
        of_claiming = tuple(
            jnp.where(takes, new, old)
            for new, old in zip((metric, overlap), of_claiming, strict=True)
        )
        return claims.after(number, takes, overlap), of_claiming, jnp.where(better, metric, of_best)

    start = no_claims(given)
    zeros = jnp.zeros_like(start.best.scores)
    rules = Rules(compute, measure, visit, keeps=True)
    state = (start, (zeros, zeros), zeros)
    truth = (given.gt_boxes, given.gt_labels)
    state = visit_boxes(rules, state, truth, given.gt_labels)
    (claims, (metric, overlap), metric_of_best) = state
    contested = claims.number < 0
    metric = jnp.where(contested, metric_of_best, metric)
    overlap = jnp.where(contested, claims.best.scores, overlap)
    gt_inds = claims.gt_inds()
    if topk2 is not None:
        gt_inds = _best_of_each(given, gt_inds, metric, topk2)
    return _scaled(given, gt_inds, metric, overlap, eps)


def _largest_members(metric: Callable[..., jax.Array], given: Inputs, topk: int) -> Members:
    """The priors of a box's largest metrics that are above 0."""
    negated, indices = least_members(lambda *which: -metric(*which), given, topk)
    return Members(indices, (negated < 0).sum())


def _best_of_each(given: Inputs, gt_inds: jax.Array, metric: jax.Array, count: int) -> jax.Array:
    """`gt_inds` of which each box keeps only as many priors, those of its largest metrics."""
    index = jnp.arange(len(gt_inds), dtype=jnp.int32)

    def compute(number: jax.Array, exists: jax.Array, among: slice) -> jax.Array:
        return jnp.where(exists & (gt_inds[among] == number), metric[among], 0)

    def measure(numbers: Any) -> Members:
        return _largest_members(numbers, given, count)

    def visit(kept: Best, number: jax.Array, numbers: Any, members: Members) -> Best:
        return kept.or_box(number, jnp.where(members.include(index), numbers, 0))

    start = no_box_yet(given.valid, given.gt_labels, metric.dtype, score=0)
    boxes = 1 + jnp.arange(len(given.gt_labels), dtype=gt_inds.dtype)
    rules = Rules(compute, measure, visit, keeps=True)
    return visit_boxes(rules, start, boxes, given.gt_labels).numbers


def _scaled(
    given: Inputs, gt_inds: jax.Array, metric: jax.Array, overlap: jax.Array, eps: Number
) -> Assignment:
    """The assignment, with metrics · the box's largest overlap / (its largest metric + eps)."""
    count, tiny = len(given.gt_labels), jnp.finfo(metric.dtype).tiny
    overlaps = largest_of_boxes(overlap, gt_inds, count)
    metrics = largest_of_boxes(metric, gt_inds, count) + as_dtype(metric.dtype, eps)
    scaled = metric * pick(overlaps, gt_inds) / jnp.maximum(pick(metrics, gt_inds), tiny)
    return result(given, gt_inds, overlap, scaled, -1e8, given.valid)


def _enlarged(box: jax.Array, min_side: Number) -> jax.Array:
    """The box with sides of at least `min_side`, about its centre."""
    low, high = box[:2], box[2:]
    side = jnp.maximum(high - low, as_dtype(box.dtype, min_side))
    center = (low + high) / 2
    enlarged = jnp.concatenate([center - side / 2, center + side / 2])
    # Sides that are long enough stay as they are, to the last digit.
    short = jnp.tile(high - low < as_dtype(box.dtype, min_side), 2)
    return jnp.where(short, enlarged, box)


def _iou(box: jax.Array, boxes: jax.Array) -> jax.Array:
    """The IoU with eps added to the union, as mmyolo's assigners have it."""
    return _pairs(box, boxes).iou_with_eps(as_dtype(box.dtype, 1e-9))


def _overlap_of_mmyolo(box: jax.Array, boxes: jax.Array) -> jax.Array:
    """The CIoU, eps added to the union and to the heights in the aspect ratio; 0 if negative."""
    pair, eps = _pairs(box, boxes), as_dtype(box.dtype, 1e-7)
    return _ciou(pair, pair.iou_with_eps(eps), eps)


def _overlap_of_yolo(box: jax.Array, boxes: jax.Array) -> jax.Array:
    """The CIoU, eps added to the heights, also in the areas, and to the union; 0 if negative."""
    pair, eps = _pairs(box, boxes), as_dtype(box.dtype, 1e-7)
    return _ciou(pair, pair.iou_with_eps_in_heights(eps), eps)


def _pairs(box: jax.Array, boxes: jax.Array) -> Any:
    return pair_geometry(boxes, tuple(side[None] for side in columns(box)))


def _ciou(pair: Any, iou: jax.Array, eps: jax.Array) -> jax.Array:
    distance = divide(pair.squared_distance, pair.squared_diagonal + eps)
    angle1 = jnp.arctan(divide(pair.width1, pair.height1 + eps))
    angle2 = jnp.arctan(divide(pair.width2, pair.height2 + eps))
    v = 4 / math.pi**2 * (angle2 - angle1) ** 2
    a = divide(v, v - iou + (1 + eps))
    return jnp.maximum(iou - distance - a * v, 0)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class TaskAlignedAssigner(PredictionAssigner, function=task_aligned_assign):
    """`task_aligned_assign` with its hyperparameters as fields.

    Args:
      iou_calculator: Which overlap is computed. There is one, the IoU.
    """

    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return task_aligned_assign(*arguments, **self.settings)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BatchTaskAlignedAssigner(PredictionAssigner, function=batch_task_aligned_assign):
    """`batch_task_aligned_assign` with its hyperparameters as fields.

    Args:
      num_classes: Has no effect: the scores say how many classes there are.
    """

    num_classes: Count | None = None
    topk: int = 13
    alpha: float = 1.0
    beta: float = 6.0
    eps: float = 1e-7
    use_ciou: bool = False

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return batch_task_aligned_assign(*arguments, **self.settings)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOTaskAlignedAssigner(PredictionAssigner, function=yolo_task_aligned_assign):
    """`yolo_task_aligned_assign` with its hyperparameters as fields."""

    topk: int = 10
    alpha: float = 0.5
    beta: float = 6.0
    eps: float = 1e-9
    topk2: int | None = None
    min_side: float = 0.0

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return yolo_task_aligned_assign(*arguments, **self.settings)
