"""RTMDet's head as mmyolo has it."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax

from visdet_jax.core.hyperparameters import Finite
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.dynamic_soft_label import BatchDynamicSoftLabelAssigner
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.rtmdet import SoftLabelHead
from visdet_jax.detectors.priors import Grid
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import HeadTargets, Image, Rows


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLORTMDetHead(SoftLabelHead):
    """mmyolo's `RTMDetHead`, which differs from mmdet's in its unit, its padding and its assigner.

    q is the IoU of a positive's predicted box with its own (0 for the others), without a gradient,
    and A = max(Σ q, 1) over the whole batch. `loss_cls` gets (label, q) of all points and is
    divided by A; `loss_bbox` is Σ q · loss / A over the positives.

    `bbox_preds` are distances (B, H, W, 4) from the points to the sides (left, top, right, bottom),
    in strides. Points of cells beyond an image's `pad_shapes` take part as all others do.

    Args:
      assigner: Says which box each point learns, and how well its prediction does.
      pos_weight: A key without effect, as in mmyolo.

    Source: mmyolo's `RTMDetHead`
    """

    ranks_levels_together: ClassVar[bool] = True

    assigner: BatchDynamicSoftLabelAssigner = BatchDynamicSoftLabelAssigner()
    pos_weight: Finite = -1

    def decode_boxes(
        self, points: jax.Array, strides: jax.Array, distances: jax.Array, image_shapes: Any = None
    ) -> jax.Array:
        distances = distances.astype(strides.dtype) * strides[..., None]
        return self.bbox_coder.decode(points, distances, image_shapes)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        found = self.assigner.assign_predictions(*self.predictions(grid, image))
        boxes = pick(image.gt_boxes, found.gt_inds)
        return self.make_targets(found.gt_inds, found.labels, boxes, metrics=found.metrics)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        quality: Any = targets.metrics
        total = criterion.total(quality.sum())
        boxes = self.decode_boxes(rows.priors, rows.strides, rows.bbox_preds)
        labels = (targets.labels, quality)
        criterion.add("loss_cls", rows.cls_scores, labels, targets.label_weights, total)
        criterion.add("loss_bbox", boxes, targets.bbox_targets, quality, total)
