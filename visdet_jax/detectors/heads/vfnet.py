"""VarifocalNet's head."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Range
from visdet_jax.detectors.assigners.assigner import Assigner, pick
from visdet_jax.detectors.assigners.atss import ATSSAssigner
from visdet_jax.detectors.assigners.fcos import fcos_assign
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads.anchor_head import AnchorHead
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.fcos import INF, assign_points, raise_unless_a_range_each
from visdet_jax.detectors.heads.head import iou_of_positives
from visdet_jax.detectors.priors import AnchorGenerator, Grid, MlvlPointGenerator, Sizes
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import HeadTargets, Image, Rows
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality.varifocal import VarifocalLoss

# The least IoU by which a positive counts, as in mmdet.
LEAST_IOU = 1e-6


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class VFNetHead(AnchorHead, function=fcos_assign):
    """VarifocalNet: boxes that are refined once, and classes that learn the refined boxes' IoU.

    With n = max(positives of the batch, 1), q the IoU of a positive's box and q' that of its
    refined box, both at least 1e-6 and without a gradient: `loss_cls` gets (label, q') and is
    divided by n, `loss_bbox` is Σ q · loss / max(Σ q, 1), and `loss_bbox_rf`
    Σ q' · loss / max(Σ q', 1). Priors that are dropped are negatives of `loss_cls`, as in mmdet;
    those of `loss_cls_fl` count nothing.

    `bbox_preds` and `bbox_preds_refine` are distances (left, top, right, bottom) in pixels, from
    the anchors' centres. The refined ones are the detections.

    Args:
      strides: Strides of the levels, in pixels: those of `anchor_generator`.
      regress_ranges: (low, high) of each level, in pixels, without `use_atss`; see `FCOSHead`.
      use_atss: Whether the assigner gives the anchors their boxes. If not, a point in the middle of
        every cell has the box that `fcos_assign` gives it, and all points take part.
      anchor_generator: Makes the anchors, one in a cell.
      bbox_coder: Between boxes and distances from a point.
      reg_decoded_bbox: Must be True: `loss_bbox` gets boxes, in pixels.
      use_vfl: Whether the class loss is `loss_cls`, or `loss_cls_fl`.
      loss_cls: Loss of the class logits, which gets (label, q'): one of the quality losses.
      loss_cls_fl: Loss of the class logits without `use_vfl`, which gets labels.
      loss_bbox: Loss of the boxes.
      loss_bbox_refine: Loss of the refined boxes.
      sync_num_pos: Has no effect: the count is always that of the whole batch.

    Source: Zhang et al. 2021, https://arxiv.org/abs/2008.13367; mmdet's `VFNetHead`
    """

    detected_boxes: ClassVar[str] = "bbox_preds_refine"

    strides: Annotated[tuple[int, ...], Range(1)] = (8, 16, 32, 64, 128)
    regress_ranges: tuple[tuple[float, ...], ...] = (
        (-1, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, INF),
    )
    center_sampling: bool = False
    center_sample_radius: float = 1.5
    sync_num_pos: bool = True
    use_atss: bool = True
    use_vfl: bool = True
    anchor_generator: AnchorGenerator = AnchorGenerator(
        ratios=(1.0,), octave_base_scale=8, scales_per_octave=1, strides=(8, 16, 32, 64, 128)
    )
    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()
    reg_decoded_bbox: bool = True
    loss_cls: Loss = VarifocalLoss()
    loss_cls_fl: Loss = FocalLoss()
    loss_bbox: Loss = GIoULoss(loss_weight=1.5)
    loss_bbox_refine: Loss = GIoULoss(loss_weight=2.0)
    assigner: Assigner = ATSSAssigner(topk=9)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_unless_decoded()
        self._raise_unless_one_anchor()
        if self.strides != self.anchor_generator.strides:
            raise self.value_error(
                f"strides must be the anchors', {self.anchor_generator.strides}, got {self.strides}"
            )
        if not self.use_atss:
            raise_unless_a_range_each(self)

    @property
    def use_sigmoid(self) -> bool:
        return True

    @property
    def channels(self) -> dict[str, int]:
        return super().channels | {"bbox_preds_refine": 4}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        quality = jax.ShapeDtypeStruct((rows,), "float32")
        return examples | {
            "loss_cls": (logits, (labels, quality)),
            "loss_cls_fl": (logits, labels),
            "loss_bbox_refine": examples["loss_bbox"],
        }

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        if self.use_atss:
            return super().grid(sizes, dtype)
        return MlvlPointGenerator(strides=self.strides).grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        points = _points(grid.priors)
        if self.use_atss:
            found = self.assign_by(self.assigner, grid, image)
        else:
            found = assign_points(self, points, grid, image)
        distances = self.bbox_coder.encode(points, pick(image.gt_boxes, found.gt_inds))
        return self.make_targets(found.gt_inds, found.labels, distances, pos_weight=self.pos_weight)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets, points = rows.targets, _points(rows.priors)
        refined: Any = rows.bbox_preds_refine
        target = self.bbox_coder.decode(points, targets.bbox_targets)
        quality = targets.bbox_weights  # After the loop that of the refined boxes: see loss_cls.
        for name, distances in (("loss_bbox", rows.bbox_preds), ("loss_bbox_refine", refined)):
            boxes = self.bbox_coder.decode(points, distances)
            iou = iou_of_positives(boxes, target, targets.bbox_weights)
            quality = jnp.where(targets.bbox_weights > 0, clamp_min(iou, LEAST_IOU), 0)
            criterion.add(name, boxes, target, quality, criterion.total(quality.sum()))
        criterion.losses["loss_bbox_rf"] = criterion.losses.pop("loss_bbox_refine")
        count = criterion.total(targets.bbox_weights.sum())
        if self.use_vfl:
            labels = targets.labels, quality
            criterion.add("loss_cls", rows.cls_scores, labels, None, count)
        else:
            weight = targets.label_weights
            criterion.add("loss_cls_fl", rows.cls_scores, targets.labels, weight, count)
            criterion.losses["loss_cls"] = criterion.losses.pop("loss_cls_fl")

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        return self.bbox_coder.decode(_points(grid.priors[None]), bbox_preds, image_shapes)


def _points(priors: Any) -> jax.Array:
    """The points (..., 2) of anchors (..., 4), which are their centres, or of points."""
    priors = jnp.asarray(priors)
    return priors if priors.shape[-1] == 2 else convert_boxes(priors)[..., :2]
