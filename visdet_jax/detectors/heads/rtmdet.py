"""RTMDet's heads: points whose predictions are matched to boxes by a soft label."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.hyperparameters import Count, Finite
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.dynamic_soft_label import DynamicSoftLabelAssigner
from visdet_jax.detectors.assigners.predictions import PredictionAssigner
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads._mmyolo import from_mmyolo
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.priors import Grid, MlvlPointGenerator, Sizes, valid_flags
from visdet_jax.detectors.registry import HEADS, with_training
from visdet_jax.detectors.samplers.pseudo import PseudoSampler
from visdet_jax.detectors.samplers.sampler import Sampler
from visdet_jax.detectors.structures import HeadTargets, Image, Rows
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality.quality_focal import QualityFocalLoss


@dataclass(frozen=True, kw_only=True)
class SoftLabelHead(DenseHead):
    """Base of RTMDet's heads in mmdet and in mmyolo, whose assigner looks at the predictions.

    Args:
      anchor_generator: Makes the points, and knows the strides.
      bbox_coder: Between boxes and distances from a point.
      loss_cls: Loss of the class logits, which gets (label, q): one of the quality losses.
      loss_bbox: Loss of the boxes, in pixels.
      assigner: Says which box each point learns, by the predictions.
      sampler: Only `PseudoSampler`: all points take part.
      allowed_border: A key without effect: points reach over no border.
    """

    num_classes: Count = 80
    anchor_generator: MlvlPointGenerator = MlvlPointGenerator(strides=(8, 16, 32), offset=0.0)
    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()
    loss_cls: Loss = QualityFocalLoss(beta=2.0)
    loss_bbox: Loss = GIoULoss(loss_weight=2.0)
    assigner: PredictionAssigner
    sampler: Sampler = PseudoSampler()
    allowed_border: Finite = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.sampler, PseudoSampler):
            raise self.value_error(f"sampler must be PseudoSampler, got {self.sampler!r}")
        self.raise_unless_sigmoid()

    @property
    def strides(self) -> tuple[int, ...]:
        return self.anchor_generator.strides

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        quality = jax.ShapeDtypeStruct((rows,), "float32")
        return examples | {"loss_cls": (logits, (labels, quality))}

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return self.anchor_generator.grid(sizes, dtype)

    def predictions(self, grid: Grid, image: Image) -> tuple[Any, ...]:
        """The first arguments of the assigner for one image: points to ground truth."""
        distances = jnp.concatenate(image.outputs["bbox_preds"]).astype(grid.priors.dtype)
        points, strides = jnp.asarray(grid.priors), jnp.asarray(grid.strides)
        boxes = self.decode_boxes(points, strides, distances)
        logits = image.outputs["cls_scores"]
        return points, strides, boxes, logits, image.gt_boxes, image.gt_labels

    def decode_boxes(
        self, points: jax.Array, strides: jax.Array, distances: jax.Array, image_shapes: Any = None
    ) -> jax.Array:
        """Boxes (..., N, 4) in pixels from what was predicted for points (..., N, 2)."""
        return self.bbox_coder.decode(points, distances, image_shapes)

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        points, strides = jnp.asarray(grid.priors[None]), jnp.asarray(grid.strides[None])
        return self.decode_boxes(points, strides, bbox_preds, image_shapes)


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RTMDetHead(SoftLabelHead):
    """RTMDet: class scores and boxes of points, both weighted by how well the boxes do.

    q is the IoU of a positive's predicted box with its own (0 for the others), without a gradient,
    and A = max(Σ q, 1) over the whole batch. `loss_cls` gets (label, q) of all points and is
    divided by A; `loss_bbox` is Σ q · loss / A over the positives.

    `bbox_preds` are distances (B, H, W, 4) from the points to the sides (left, top, right, bottom),
    in pixels: what mmdet's `loss_by_feat` gets. They may be negative. Boxes are not clipped for the
    losses.

    A config of mmyolo's class of this name, which has a `head_module`, is a `YOLORTMDetHead`.

    Args:
      assigner: Says which box each point learns, and how well its prediction does.
      pos_weight: Weight of positives in the class loss, above 0. Any other number means 1.

    Source: Lyu et al. 2022, https://arxiv.org/abs/2212.07784; mmdet's `RTMDetHead`. mmdet's
      `allowed_border` of 0 or more drops the levels whose stride is above an image's sides.
    """

    assigner: DynamicSoftLabelAssigner = DynamicSoftLabelAssigner()
    pos_weight: Finite = -1

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet, or of mmyolo's head of this name.

        Raises: ValueError for a key that stands twice.
        """
        if "head_module" not in settings:
            return with_training(settings, train_cfg)
        settings = from_mmyolo(settings, train_cfg) | {"type": "YOLORTMDetHead"}
        settings.pop("_scope_", None)
        if "prior_generator" in settings:
            settings["anchor_generator"] = settings.pop("prior_generator")
        return settings

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        valid = valid_flags(grid, image.pad_shape)
        predictions = self.predictions(grid, image)
        found = self.assigner.assign_predictions(*predictions, valid, image.gt_centers)
        return self.make_targets(
            found.gt_inds,
            found.labels,
            pick(image.gt_boxes, found.gt_inds),
            pos_weight=self.pos_weight,
            metrics=found.metrics,
        )

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        quality: Any = targets.metrics
        boxes = self.decode_boxes(rows.priors, rows.strides, rows.bbox_preds)
        labels = (targets.labels, quality)
        criterion.add("loss_cls", rows.cls_scores, labels, targets.label_weights, 1.0)
        criterion.add("loss_bbox", boxes, targets.bbox_targets, quality, 1.0)
        # As mmdet: divided by 1 + eps, and then by the sum, so that the digits are the same.
        total = criterion.total(quality.sum())
        for name in ("loss_cls", "loss_bbox"):
            criterion.losses[name] /= total


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RTMDetSepBNHead(RTMDetHead):
    """`RTMDetHead` with normalisation layers of each level, which the losses do not see.

    Source: mmdet's `RTMDetSepBNHead`
    """
