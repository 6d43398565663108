"""Match costs of boxes: their distance and their overlap."""

from dataclasses import dataclass
from typing import Any, Literal

import jax

from visdet_jax.boxes.formats import convert_boxes, normalize_boxes
from visdet_jax.boxes.overlap import OverlapMode, bbox_overlaps
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import absolute
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.costs.match_cost import Instances, MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def bbox_l1_cost(
    pred: jax.Array,
    target: jax.Array,
    image_shape: jax.Array,
    *,
    box_format: Literal["xyxy", "xywh"] = "xyxy",
) -> jax.Array:
    """Distance of boxes, in fractions of the image: Σ |pred - target| over their four numbers.

    Args:
      pred: Boxes (Q, 4) as x1, y1, x2, y2, in pixels.
      target: Boxes (G, 4), likewise.
      image_shape: (height, width) in pixels.
      box_format: What is compared: "xyxy" the corners, "xywh" the centres and sizes. The latter is
        mmdet's word for what is called "cxcywh" everywhere else in this package.

    Returns: (Q, G).
    Raises: ValueError for shapes that do not fit.
    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `BBoxL1Cost`.
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if box_format == "xywh":
        pred, target = (convert_boxes(boxes, "xyxy", "cxcywh") for boxes in (pred, target))
    distances = absolute(pred[:, None] - target[None])
    return normalize_boxes(distances, image_shape).sum(-1)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BBoxL1Cost(MatchCost, function=bbox_l1_cost):
    """Distance of boxes: `bbox_l1_cost` with its hyperparameters as fields."""

    box_format: str = "xyxy"

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        parts = self.parts(pred_bboxes=pred.bboxes, gt_bboxes=gt.bboxes, image_shape=image_shape)
        return bbox_l1_cost(*parts, **self.settings)


@jitted
def iou_cost(pred: jax.Array, target: jax.Array, *, iou_mode: OverlapMode = "giou") -> jax.Array:
    """Minus the overlap of boxes; see `bbox_overlaps`.

    Args:
      pred: Boxes (Q, 4) as x1, y1, x2, y2.
      target: Boxes (G, 4), likewise and in the same unit.
      iou_mode: "iou"; "iof", of which pred's area is the denominator; or "giou", the generalized
        IoU.

    Returns: (Q, G), from -1 (equal boxes) to 0, or to 1 for giou (far apart).
    Raises: ValueError for shapes that do not fit.
    Source: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630; mmdet's `IoUCost`.
    """
    return -bbox_overlaps(pred, target, iou_mode)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class IoUCost(MatchCost, function=iou_cost):
    """Minus the overlap of boxes: `iou_cost` with its hyperparameters as fields."""

    iou_mode: str = "giou"

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        return iou_cost(*self.parts(pred_bboxes=pred.bboxes, gt_bboxes=gt.bboxes), **self.settings)
