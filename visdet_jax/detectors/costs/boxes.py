"""Match costs of boxes: their distance and their overlap."""

from dataclasses import dataclass

from visdet_jax.boxes.formats import convert_boxes, normalize_boxes
from visdet_jax.boxes.overlap import OVERLAP_MODES, bbox_overlaps
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import absolute
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.costs.match_cost import MatchCost
from visdet_jax.detectors.registry import TASK_UTILS

BOX_FORMATS = ("xyxy", "xywh")


@jitted(static=("box_format",))
def bbox_l1_cost(pred, target, image_shape, *, box_format="xyxy"):
    """Distance of boxes, in fractions of the image: Σ |pred - target| over their four numbers.

    Args:
      pred: (Q, 4), target: (G, 4), both as x1, y1, x2, y2 in pixels.
      image_shape: (height, width) in pixels.
      box_format: "xyxy" compares corners; "xywh", as mmdet calls it, centres and sizes.
    Returns: (Q, G).
    Raises: ValueError for another format and for shapes that do not fit.
    Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `BBoxL1Cost`.
    """
    if box_format not in BOX_FORMATS:
        raise ValueError(f"box_format must be xyxy or xywh; got {box_format!r}")
    dtype = compute_dtype(pred=pred, target=target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if box_format == "xywh":
        pred, target = convert_boxes(pred), convert_boxes(target)
    # The difference first: of two fractions, a fused multiplication may leave a rest of equals.
    distance = absolute(pred[:, None] - target[None])
    return normalize_boxes(distance, image_shape).sum(-1)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BBoxL1Cost(MatchCost):
    """Flax shim of `bbox_l1_cost`."""

    box_format: str = "xyxy"

    def __post_init__(self):
        super().__post_init__()
        if self.box_format not in BOX_FORMATS:
            raise self.value_error(f"box_format must be xyxy or xywh; got {self.box_format!r}")

    def compute(self, pred, gt, image_shape):
        parts = self.parts(pred_bboxes=pred.bboxes, gt_bboxes=gt.bboxes, image_shape=image_shape)
        return bbox_l1_cost(*parts, box_format=self.box_format)


def iou_cost(pred, target, *, iou_mode="giou"):
    """Minus the overlap of boxes.

    Args:
      pred: (Q, 4), target: (G, 4), both as x1, y1, x2, y2 in one unit.
      iou_mode: "iou", "iof" or "giou"; see `bbox_overlaps`.
    Returns: (Q, G), from -1 (equal) to 0, or 1 for giou.
    Raises: ValueError for another mode and for shapes that do not fit.
    Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630; mmdet's `IoUCost`.
    """
    return -bbox_overlaps(pred, target, iou_mode)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class IoUCost(MatchCost):
    """Flax shim of `iou_cost`."""

    iou_mode: str = "giou"

    def __post_init__(self):
        super().__post_init__()
        if self.iou_mode not in OVERLAP_MODES:
            raise self.value_error(
                f"iou_mode must be one of {OVERLAP_MODES}; got {self.iou_mode!r}"
            )

    def compute(self, pred, gt, image_shape):
        parts = self.parts(pred_bboxes=pred.bboxes, gt_bboxes=gt.bboxes)
        return iou_cost(*parts, iou_mode=self.iou_mode)
