"""The losses of pairs of boxes as mmyolo and ultralytics write them."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Unpack

import jax

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import clamp, clamp_min, divide
from visdet_jax.core.hyperparameters import NonNegative
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.losses.boxes.box_loss import BoxLoss, box_loss
from visdet_jax.losses.boxes.diou import aspect_difference, distance_term
from visdet_jax.losses.boxes.siou import distance_and_shape_costs
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES

YOLOIoUMode = Literal["iou", "giou", "ciou", "siou", "ultralytics_ciou"]


@box_loss
def yolo_iou_loss(
    pred: Columns,
    target: Columns,
    *,
    iou_mode: YOLOIoUMode = "ciou",
    bbox_format: Literal["xyxy", "xywh"] = "xywh",
    eps: NonNegative = 1e-7,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the overlap of each pair of boxes, as mmyolo's YOLO heads compute it.

    1 - clamp(IoU - penalty, -1, 1), IoU = intersection / (union + eps), where the penalty is

    - "iou": 0; `iou_loss(mode="linear")` floors the union in place of adding eps to it.
    - "giou": (|C| - |A ∪ B|) / |C|, with eps added to both areas; `giou_loss` floors both.
    - "ciou": d² / (c² + eps) + alpha v, alpha = v / (1 - IoU + v + eps) at every IoU, without a
      gradient, v with eps added to the heights. `ciou_loss` has alpha only where IoU > 0.5;
      `ciou_loss(gated=False)` adds no eps to the heights and does not clamp.
    - "siou": half of SIoU's distance and shape costs: `siou_loss(neg_gamma=True)` with this eps.
    - "ultralytics_ciou": as "ciou", but with eps added to the heights in the areas of the boxes
      too, and without the clamp: the CIoU of ultralytics.

    The gradient is 0 where the clamp acts. With reduction "none" and no weight, 1 - loss is the
    overlap that mmyolo's class gives beside its loss.

    Args:
      pred, target: Boxes (..., 4) as `bbox_format` says, in any one unit.
      weight: (...), or (..., 4), of which the mean of the four counts.
      iou_mode: "iou", "giou", "ciou", "siou" or "ultralytics_ciou".
      bbox_format: "xyxy" for x1, y1, x2, y2, or "xywh" for the centre x, y and the size w, h.
      eps: Added to what is divided by and to heights, in the boxes' unit or its square, at least 0.

    Returns: (...), from 0 (equal) to 2 (far apart), reduced as `weight_reduce_loss` says.
    Raises: ValueError for another mode or format, where the shapes differ or do not end in 4.
    Source: mmyolo's `IoULoss`; ultralytics' `bbox_iou`
    """
    if bbox_format == "xywh":
        pred, target = _corners(pred), _corners(target)
    pair = pair_geometry(pred, target)
    if iou_mode == "ultralytics_ciou":
        return 1 - _ciou(pair, pair.iou_with_eps_in_heights(eps), eps)
    overlap = iou = pair.iou_with_eps(eps)
    if iou_mode == "giou":
        enclosing = pair.enclosing_width * pair.enclosing_height + eps
        overlap = iou - divide(enclosing - (pair.union + eps), enclosing)
    elif iou_mode == "ciou":
        overlap = _ciou(pair, iou, eps)
    elif iou_mode == "siou":
        overlap = iou - 0.5 * distance_and_shape_costs(pair, eps, neg_gamma=True)
    return 1 - clamp(overlap, -1, 1)


def _ciou(pair: PairGeometry, iou: jax.Array, eps: Any) -> jax.Array:
    """The IoU minus CIoU's penalty."""
    v = aspect_difference(pair, eps)
    rest = clamp_min(1 - iou, 0) + v  # The IoU may be above 1, see `PairGeometry`.
    alpha = jax.lax.stop_gradient(divide(v, rest + eps))
    return iou - (distance_term(pair, eps) + alpha * v)


def _corners(box: Columns) -> Columns:
    """Columns x, y, w, h as x1, y1, x2, y2."""
    x, y, w, h = box
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOIoULoss(BoxLoss, function=yolo_iou_loss):
    """mmyolo's `IoULoss`: `yolo_iou_loss` with its hyperparameters as fields.

    A config of type mmyolo.IoULoss means this class, and one of type IoULoss with `iou_mode`,
    `bbox_format` or `return_iou`.

    Args:
      return_iou: A key of mmyolo without effect: the loss is one number. See `yolo_iou_loss` for
        the overlaps.
    """

    dialect_of: ClassVar[str] = "mmyolo.IoULoss"

    iou_mode: str = "ciou"
    bbox_format: str = "xywh"
    eps: float = 1e-7
    return_iou: bool = True

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        if self.bbox_format == "xyxy":
            return super().rules(pred, target, **extra)
        return [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]
