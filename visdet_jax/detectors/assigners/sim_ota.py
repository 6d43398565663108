"""Ground truth by cost, as many priors as the predictions deserve: YOLOX."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Count, NonNegative, Positive
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
    PredictionAssigner,
    Scores,
    by_iou,
    dynamic_k,
    no_claims,
    prepare_predictions,
    result,
)
from visdet_jax.detectors.registry import TASK_UTILS


@jitted(static=("candidate_topk",))
def sim_ota_assign(
    points: jax.Array,
    strides: jax.Array,
    pred_boxes: jax.Array,
    scores: Scores,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    valid: jax.Array | None = None,
    *,
    center_radius: Positive = 2.5,
    candidate_topk: Count = 10,
    iou_weight: NonNegative = 3.0,
    cls_weight: NonNegative = 1.0,
) -> Assignment:
    """Each box to the predictions of least cost, as many as the sum of its largest IoUs.

    A prior is near a box where both |dx| and |dy| to the box's centre are below `center_radius`
    strides. Priors take part that are inside or near one box at least. With the IoU u of a
    prediction and a box:

      cost = cls_weight · Σ over classes bce(s, y) - iou_weight · log(u + 1e-7) + 1e5 · r

    where y is 1 at the box's class and 0 elsewhere, and r is 0 for priors both inside and near the
    box and 1 for others. A box takes the k predictions of least cost among all that take part, k
    the sum of its `candidate_topk` largest IoUs, cut to a whole number and at least 1. A prediction
    that several boxes take goes to the box of least cost among all boxes. Of equal costs the first
    counts.

    Args:
      points: (N, 2) x, y of the cells' centres, in pixels.
      strides: (N,) of their levels, in pixels.
      pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: Probabilities (N, C), or one array (n, C) of each level.
      gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
      gt_labels: (G,) Class indices, integers of any width; negative for padding.
      valid: (N,) False for priors to drop. None drops none.
      center_radius: In strides, above 0. Larger values give boxes more candidates.
      candidate_topk: How many IoUs are summed up, at least 1. Larger values give more positives.
      iou_weight: Weight of the IoU in the cost, at least 0.
      cls_weight: Weight of the classes in the cost, at least 0.

    Returns: for each prior its box, that box's label, the IoU with it (-1e5 for background, 0
      where no prior takes part), and the same IoU as the metric, 0 for background.
    Raises: ValueError for shapes that do not fit, TypeError for labels that are no integers.
    Source: Ge et al. 2021, https://arxiv.org/abs/2107.08430; mmdet's `SimOTAAssigner`
    """
    given = prepare_predictions(points, strides, pred_boxes, scores, gt_boxes, gt_labels, valid)
    dtype = given.points.dtype
    x, y = columns(given.points)
    radius, of_iou, of_classes = as_dtype(dtype, center_radius, iou_weight, cls_weight)
    index = jnp.arange(len(given.points), dtype=jnp.int32)

    def is_near(box: jax.Array) -> jax.Array:
        x1, y1, x2, y2 = columns(box)
        cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * given.strides
        # As mmdet, so that the edges are the same: the sides of the region, less the point.
        low = jnp.minimum(x - (cx - reach), y - (cy - reach))
        return jnp.minimum(low, jnp.minimum((cx + reach) - x, (cy + reach) - y)) > 0

    takes_part = given.any_box(lambda box: (given.inside(box) > 0) | is_near(box))
    of_background = given.sum_of_classes(lambda s: -_clamped_log(1 - s))

    def compute(truth: Any, exists: jax.Array, among: slice) -> Any:
        box, label = truth
        iou = iou_with_all(box, given.pred_boxes[among])
        s = given.of_class(label)[among]
        classes = of_background[among] + _clamped_log(1 - s) - _clamped_log(s)
        good = ((given.inside(box) > 0) & is_near(box))[among]
        cost = of_classes * classes - of_iou * jnp.log(iou + as_dtype(dtype, 1e-7))
        cost += jnp.where(good, 0, as_dtype(dtype, 1e5))
        takes = takes_part[among]
        return jnp.where(exists & takes, cost, jnp.inf), jnp.where(takes, iou, 0)

    def measure(numbers: Any) -> Any:
        return dynamic_k(
            lambda *which: numbers(*which)[1],
            lambda *which: numbers(*which)[0],
            given,
            candidate_topk,
        )

    def visit(claims: Claims, number: jax.Array, numbers: Any, members: Any) -> Claims:
        return claims.after(number, members.include(index), -numbers[0])

    rules = Rules(compute, measure, visit, keeps=True)
    truth = (given.gt_boxes, given.gt_labels)
    gt_inds = visit_boxes(rules, no_claims(given), truth, given.gt_labels).gt_inds()
    iou = by_iou(given, gt_inds)
    return result(given, gt_inds, iou, iou, -1e5, takes_part)


def _clamped_log(x: jax.Array) -> jax.Array:
    """log(x), at least -100, as in torch's binary cross entropy of probabilities."""
    return jnp.maximum(jnp.log(x), -100)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class SimOTAAssigner(PredictionAssigner, function=sim_ota_assign):
    """`sim_ota_assign` with its hyperparameters as fields.

    Args:
      iou_calculator: Which overlap is computed. There is one, the IoU.
    """

    center_radius: float = 2.5
    candidate_topk: int = 10
    iou_weight: float = 3.0
    cls_weight: float = 1.0
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def assign_predictions(self, *arguments: Any) -> Assignment:
        return sim_ota_assign(*arguments, **self.settings)
