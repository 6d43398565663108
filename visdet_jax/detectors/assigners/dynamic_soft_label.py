"""Ground truth by cost, as many priors as the predictions deserve: RTMDet."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Count, NonNegative
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import (
    Assignment,
    Rules,
    iou_with_all,
    visit_boxes,
)
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D
from visdet_jax.detectors.assigners.predictions import (
    Claims,
    Inputs,
    PredictionAssigner,
    Scores,
    by_iou,
    dynamic_k,
    no_claims,
    prepare_predictions,
    result,
)
from visdet_jax.detectors.registry import TASK_UTILS


@jitted(static=("topk",))
def dynamic_soft_label_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    logits: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    gt_centers: jax.Array | None = None,
    *,
    topk: Count = 13,
    soft_center_radius: NonNegative = 3.0,
    iou_weight: NonNegative = 3.0,
) -> Assignment:
    """Each box to the predictions of least cost, as many as the sum of its largest IoUs.

    Priors take part that are inside one box at least, by more than 0. With p = sigmoid(x), the IoU
    u of a prediction and a box, and d from the prior to the box's centre, in strides:

      cost = Σ over classes BCE(x, y) |y - p|² - iou_weight · log(u + 1e-7) + 10^(d - radius)

    where y is u at the box's class and 0 elsewhere. A box takes the k predictions of least cost
    among all that take part, k the sum of its `topk` largest IoUs, cut to a whole number and at
    least 1. A prediction that several boxes take goes to the box of least cost among all boxes.
    Of equal costs the first counts.

    Args:
      points: (N, 2) x, y of the priors, in pixels.
      strides: (N,) of their levels, in pixels.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      logits: (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      gt_centers: (G, 2) x, y that distances are measured to. Unless given, the boxes' centres.
      topk: How many IoUs are summed up, at least 1. Larger values give more positives.
      soft_center_radius: Distance at which the last term is 1, in strides, at least 0. Larger
        values let priors farther from the centre in.
      iou_weight: Weight of the IoU in the cost, at least 0.

    Returns: for each prior its box, that box's label, the IoU with it (-1e8 for background, 0
      where no prior takes part), and the same IoU as the metric, 0 for background.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Lyu et al. 2022, https://arxiv.org/abs/2212.07784; mmdet's `DynamicSoftLabelAssigner`
    """
    given = prepare_predictions(points, strides, pred_boxes, logits, gt_boxes, gt_labels, valid)
    takes_part = given.any_box(lambda box: given.inside(box) > 0)
    of_all_classes = given.sum_of_classes(_cost_of_background)

    def cost_of_classes(x: jax.Array, iou: jax.Array, among: slice) -> jax.Array:
        return of_all_classes[among] - _cost_of_background(x) + _cost_of_class(x, iou)

    settings = (topk, soft_center_radius, iou_weight)
    return _assign(given, gt_centers, takes_part, takes_part, cost_of_classes, *settings)


@jitted(static=("topk",))
def batch_dynamic_soft_label_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    logits: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    gt_centers: jax.Array | None = None,
    *,
    topk: Count = 13,
    soft_center_radius: NonNegative = 3.0,
    iou_weight: NonNegative = 3.0,
) -> Assignment:
    """mmyolo's form of `dynamic_soft_label_assign`.

    Of the classes only the box's own is in the cost, and the IoUs of all predictions count for k,
    also of those that take no part. An image none of whose priors takes part has no positives,
    where mmyolo takes some by the order in which equal numbers are sorted.

    Args:
      points: (N, 2) x, y of the priors, in pixels.
      strides: (N,) of their levels, in pixels.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      logits: (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      gt_centers: (G, 2) x, y that distances are measured to. Unless given, the boxes' centres.
      topk: How many IoUs are summed up, at least 1. Larger values give more positives.
      soft_center_radius: Distance at which the cost's last term is 1, in strides, at least 0.
        Larger values let priors farther from the centre in.
      iou_weight: Weight of the IoU in the cost, at least 0.

    Returns: as `dynamic_soft_label_assign`.
    Raises: as `dynamic_soft_label_assign`.
    Source: mmyolo's `BatchDynamicSoftLabelAssigner`
    """
    given = prepare_predictions(points, strides, pred_boxes, logits, gt_boxes, gt_labels, valid)
    takes_part = given.any_box(lambda box: given.inside(box) > 0)
    settings = (topk, soft_center_radius, iou_weight)
    return _assign(
        given,
        gt_centers,
        takes_part,
        given.valid,
        lambda x, iou, _: _cost_of_class(x, iou),
        *settings,
    )


def _assign(
    given: Inputs,
    gt_centers: jax.Array | None,
    takes_part: jax.Array,
    counts_for_k: jax.Array,
    cost_of_classes: Any,
    topk: int,
    soft_center_radius: Any,
    iou_weight: Any,
) -> Assignment:
    dtype = given.points.dtype
    x, y = columns(given.points)
    radius, weight = as_dtype(dtype, soft_center_radius, iou_weight)
    # 10 to a power overflows beyond 41 strides in float32, and what is infinite takes no part.
    highest = np.log10(np.finfo(dtype).max) - 1
    if gt_centers is None:
        gt_centers = (given.gt_boxes[:, :2] + given.gt_boxes[:, 2:]) / 2
    centers = jnp.where((given.gt_labels >= 0)[:, None], jnp.asarray(gt_centers).astype(dtype), 0)
    index = jnp.arange(len(given.points), dtype=jnp.int32)

    def compute(truth: Any, exists: jax.Array, among: slice) -> Any:
        box, label, center = truth
        iou = iou_with_all(box, given.pred_boxes[among])
        classes = cost_of_classes(given.of_class(label)[among], iou, among)
        dx, dy = x[among] - center[0], y[among] - center[1]
        distance = jnp.sqrt(dx * dx + dy * dy) / given.strides[among]
        far = 10 ** jnp.minimum(distance - radius, as_dtype(dtype, highest))
        cost = classes - weight * jnp.log(iou + as_dtype(dtype, 1e-7)) + far
        cost = jnp.where(exists & takes_part[among], cost, jnp.inf)
        return cost, jnp.where(counts_for_k[among], iou, 0)

    def measure(numbers: Any) -> Any:
        return dynamic_k(
            lambda *which: numbers(*which)[1], lambda *which: numbers(*which)[0], given, topk
        )

    def visit(claims: Claims, number: jax.Array, numbers: Any, members: Any) -> Claims:
        return claims.after(number, members.include(index), -numbers[0])

    rules = Rules(compute, measure, visit, keeps=True)
    truth = (given.gt_boxes, given.gt_labels, centers)
    gt_inds = visit_boxes(rules, no_claims(given), truth, given.gt_labels).gt_inds()
    iou = by_iou(given, gt_inds)
    return result(given, gt_inds, iou, iou, -1e8, takes_part)


def _cost_of_background(x: jax.Array) -> jax.Array:
    """BCE(x, 0) sigmoid(x)²."""
    return jax.nn.softplus(x) * jax.nn.sigmoid(x) ** 2


def _cost_of_class(x: jax.Array, target: jax.Array) -> jax.Array:
    """BCE(x, target) |target - sigmoid(x)|²."""
    return (jax.nn.softplus(x) - x * target) * (target - jax.nn.sigmoid(x)) ** 2


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DynamicSoftLabelAssigner(PredictionAssigner, function=dynamic_soft_label_assign):
    """`dynamic_soft_label_assign` with its hyperparameters as fields.

    Args:
      iou_calculator: Which overlap is computed. There is one, the IoU.
    """

    topk: int = 13
    soft_center_radius: float = 3.0
    iou_weight: float = 3.0
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return dynamic_soft_label_assign(*arguments, **self.settings)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BatchDynamicSoftLabelAssigner(PredictionAssigner, function=batch_dynamic_soft_label_assign):
    """`batch_dynamic_soft_label_assign` with its hyperparameters as fields.

    Args:
      num_classes: Has no effect: the logits say how many classes there are.
      iou_calculator: Which overlap is computed. There is one, the IoU.
      batch_iou: Has no effect: it is how mmyolo computes the IoU.
    """

    num_classes: Count | None = None
    topk: int = 13
    soft_center_radius: float = 3.0
    iou_weight: float = 3.0
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()
    batch_iou: bool = True

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return batch_dynamic_soft_label_assign(*arguments, **self.settings)
