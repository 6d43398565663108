"""The head of YOLOv8 in mmyolo's form, and the base of the heads that learn as it does."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.core.one_hot import places_along
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.task_aligned import (
    BatchTaskAlignedAssigner,
    YOLOTaskAlignedAssigner,
)
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads._mmyolo import NUM_CLASSES, from_mmyolo, without_points
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.gfl import add_loss_of_bins, distances_of_maps
from visdet_jax.detectors.postprocessing import NMS, TestConfig
from visdet_jax.detectors.priors import Grid, MlvlPointGenerator, Sizes
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import HeadOutputs, HeadTargets, Image, Rows
from visdet_jax.losses.boxes.distribution_focal import DistributionFocalLoss
from visdet_jax.losses.boxes.yolo_iou import YOLOIoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import AVG_FACTOR_EPS
from visdet_jax.registry import as_dict, is_config


@dataclass(frozen=True, kw_only=True)
class TaskAlignedPointHead(DenseHead):
    """Base of YOLOv8's heads: points in the cells' centres, whose classes learn scores.

    The assigner looks at the predictions, without a gradient, and gives each positive a score s in
    [0, 1]. With S = max(Σ s over the batch, 1) and B the number of images, `loss_cls` gets s at
    the positives' class and 0 elsewhere, and is B · sum / S; `loss_bbox` is B · Σ s · loss / S, of
    boxes in strides; and the loss of the sides is weighted with s too. `image_shapes` and
    `pad_shapes` have no effect on the losses: points in an image's padding are negatives.

    `bbox_preds` are logits (B, H, W, 4 · reg_max), side by side (left, top, right, bottom).

    Args:
      strides: Strides of the levels, in pixels, at least 1.
      reg_max: The number of bins of a side, 0 to reg_max - 1, in strides. Larger values reach
        farther.
      assigner: Says which box each point learns, and its score.
      bbox_coder: Between boxes and distances from a point.
      loss_cls: Loss of the class logits (N, C), which gets the scores (N, C), with a sigmoid.
      loss_bbox: Loss of the boxes, which it gets as x1, y1, x2, y2 in strides.
      loss_dfl: Loss of the sides, which gets logits (B, H, W, 4, reg_max) and distances
        (B, H, W, 4) in bins.
    """

    ranks_levels_together: ClassVar[bool] = True

    strides: Annotated[tuple[int, ...], Range(1)] = (8, 16, 32)
    reg_max: Count = 16
    assigner: BatchTaskAlignedAssigner | YOLOTaskAlignedAssigner
    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()
    loss_cls: Loss = CrossEntropyLoss(use_sigmoid=True, loss_weight=0.5)
    loss_bbox: Loss = YOLOIoULoss(bbox_format="xyxy", loss_weight=7.5)
    loss_dfl: Loss
    test_cfg: TestConfig = TestConfig(
        score_thr=0.001, nms_pre=30000, nms=NMS(iou_threshold=0.7), max_per_img=300
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_unless_sigmoid()

    @property
    def box_channels(self) -> int:
        return 4 * self.reg_max

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        def floats(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *shape), "float32")

        examples = super().examples(rows)
        logits, _ = examples["loss_cls"]
        examples["loss_cls"] = (logits, logits)
        if self.reg_max > 1:
            examples["loss_dfl"] = (floats(1, 1, 4, self.reg_max), floats(1, 1, 4))
        return examples

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return MlvlPointGenerator(strides=self.strides).grid(sizes, dtype)

    def assign_all(self, outputs: HeadOutputs, images: Image) -> HeadTargets:
        # For the whole batch, by the maps: see `distances_of_maps`.
        bbox_preds: Any = outputs.bbox_preds
        _, distances = self.sides(jax.lax.stop_gradient(bbox_preds))
        images = images._replace(outputs=images.outputs | {"bbox_preds": [distances]})
        return super().assign_all(outputs, images)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        points, strides = jnp.asarray(grid.priors), jnp.asarray(grid.strides)
        (distances,) = image.outputs["bbox_preds"]
        found = self.assigner.assign_predictions(
            points,
            strides,
            self.bbox_coder.decode(points, distances * grid.strides[:, None]),
            [jax.nn.sigmoid(x.astype(points.dtype)) for x in image.outputs["cls_scores"]],
            image.gt_boxes,
            image.gt_labels,
        )
        boxes = pick(image.gt_boxes, found.gt_inds) / strides[:, None]
        return self.make_targets(found.gt_inds, found.labels, boxes, metrics=found.metrics)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        scores: Any = targets.metrics
        points = rows.priors / rows.strides[..., None]
        # Before two losses read them: half floats would add up two rounded gradients.
        logits, distances = self.sides([x.astype(points.dtype) for x in rows.bbox_maps])
        pred = self.bbox_coder.decode(points, distances)
        total = criterion.total(scores.sum())
        classes = places_along(self.num_classes, 3, 2, targets.labels.dtype)
        # Keep it level by level. As one array of all levels a TPU stores and slices it: the head
        # moves 1.3 times as much (v5e, jax 0.12.0.1).
        learnt = [
            jnp.where(targets.labels[:, x, None] + 1 == classes, scores[:, x, None], 0)
            for x in criterion.levels
        ]
        # Divided by S alone: the losses add the eps again.
        count = total - AVG_FACTOR_EPS
        criterion.add("loss_cls", rows.cls_scores, learnt, targets.label_weights, count)
        criterion.add("loss_bbox", pred, targets.bbox_targets, scores, count)
        self.add_loss_of_sides(criterion, rows, logits, distances, total)
        batch = criterion.total(jnp.asarray(scores.shape[0], scores.dtype))
        criterion.losses = {name: loss * batch for name, loss in criterion.losses.items()}

    def add_loss_of_sides(
        self,
        criterion: Criterion,
        rows: Rows,
        logits: list[jax.Array],
        distances: jax.Array,
        total: jax.Array,
    ) -> None:
        """Adds the loss of what `sides` gave, weighted with the scores, whose sum is `total`."""
        raise NotImplementedError(f"{type(self).__name__} must define add_loss_of_sides")

    def add_loss_of_bins(
        self, criterion: Criterion, rows: Rows, logits: list[jax.Array], avg_factor: jax.Array
    ) -> None:
        """Adds `loss_dfl` of all sides, with targets clipped to [0, reg_max - 1.01]."""
        targets = rows.targets
        scores: Any = targets.metrics
        points = rows.priors / rows.strides[..., None]
        bins = self.bbox_coder.encode(points, targets.bbox_targets, self.reg_max - 1, 0.01)
        add_loss_of_bins(criterion, logits, bins, scores, avg_factor)

    def sides(self, bbox_preds: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """Logits of each level, and the distances (B, N, 4) in strides; see `distances_of_maps`.

        Args:
          bbox_preds: What each level gave.
        """
        return distances_of_maps(bbox_preds, self.reg_max)

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        _, distances = self.sides([bbox_preds])
        distances *= grid.strides[None, :, None]
        return self.bbox_coder.decode(jnp.asarray(grid.priors[None]), distances, image_shapes)


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOv8Head(TaskAlignedPointHead):
    """YOLOv8 as mmyolo has it.

    `loss_dfl` is B · Σ s · (sum over the four sides) / S, with targets clipped to
    [0, reg_max - 1.01]. mmyolo takes a ground truth for padding where the sum of its coordinates is
    not above 0, so also a true box that reaches far beyond the corner; here padding is what has a
    negative label. On several devices mmyolo divides by each device's own S; here the mean of the
    devices' losses is the loss of the whole batch.

    Source: Jocher et al. 2023, https://github.com/ultralytics/ultralytics; mmyolo's `YOLOv8Head`
    """

    loss_dfl: Loss = DistributionFocalLoss(loss_weight=0.375)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reg_max < 2:
            raise self.value_error(f"reg_max must be at least 2, got {self.reg_max}")

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmyolo.

        `num_classes`, `reg_max` and the strides stand in its `head_module`. mmyolo's head reduces
        the losses itself, so their `reduction` becomes "mean", with which they can be divided.

        Raises: ValueError for a key that stands twice, and for points elsewhere than in the centres
          of the cells of these strides.
        """
        fields = NUM_CLASSES | {"reg_max": "reg_max", "featmap_strides": "strides"}
        settings = from_mmyolo(settings, train_cfg, fields)
        settings = without_points(YOLOv8Head, settings, 0.5)
        for name in ("loss_cls", "loss_bbox", "loss_dfl"):
            if is_config(settings.get(name)):
                settings[name] = as_dict(settings[name]) | {"reduction": "mean"}
        return settings

    def add_loss_of_sides(
        self,
        criterion: Criterion,
        rows: Rows,
        logits: list[jax.Array],
        distances: jax.Array,
        total: jax.Array,
    ) -> None:
        self.add_loss_of_bins(criterion, rows, logits, total)
