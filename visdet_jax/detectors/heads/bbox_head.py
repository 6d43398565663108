"""The box branch of a second stage: classes and boxes of regions."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes.nms import KeptDetections, multiclass_nms
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.hyperparameters import Count
from visdet_jax.detectors.coders import BoxCoder, DeltaXYWHBBoxCoder
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import Head
from visdet_jax.detectors.postprocessing import TestConfig
from visdet_jax.detectors.registry import BRANCHES
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    Losses,
    Proposals,
    RoIOutputs,
    Samples,
    States,
)
from visdet_jax.losses.classification.accuracy import masked_accuracy
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.classification.eqlv2 import EQLV2Loss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import SmoothL1Loss
from visdet_jax.reduction import AVG_FACTOR_EPS


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class BBoxHead(Head):
    """The classes and boxes of regions.

    With n the number of sampled regions of the whole batch, `loss_cls` is the sum over them divided
    by n, and `loss_bbox` the sum over the positives, of all four coordinates, divided by n too.
    Background is the class C, also of losses with a sigmoid for each class. A loss with a
    classifier of its own (`SeesawLoss`, `CrossEntropyCustomLoss`) says how many channels there are.

    Args:
      bbox_coder: Between boxes and what the network predicts for a region.
      reg_class_agnostic: Whether there is one box for all classes, or one for each.
      reg_decoded_bbox: Whether `loss_bbox` gets boxes in pixels, as losses of the IoU family need,
        or what the network predicts for them.

    Source: Girshick 2015, https://arxiv.org/abs/1504.08083; mmdet's `BBoxHead`
    """

    num_classes: Count = 80
    bbox_coder: BoxCoder = DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    reg_class_agnostic: bool = False
    reg_decoded_bbox: bool = False
    loss_cls: Loss = CrossEntropyLoss()
    loss_bbox: Loss = SmoothL1Loss()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_for_losses_of_boxes(self.reg_decoded_bbox)

    # What a RoI head calls.

    def update(
        self, state: States, outputs: RoIOutputs, samples: Samples, *, axis_name: AxisName = None
    ) -> tuple[Losses, States]:
        """(losses, next state) of the outputs for `samples`."""
        self.check_state(state)
        self.check_outputs(outputs, samples.boxes)
        targets = samples.targets
        criterion = Criterion(self, state, (samples.boxes.shape[1],), axis_name)
        sampled = (targets.gt_inds >= 0).astype(targets.bbox_targets.dtype)
        count = reduce_sum(sampled.sum(), axis_name)
        weights, count_of_classes = targets.label_weights, jnp.maximum(count, 1)
        if isinstance(self.loss_cls, EQLV2Loss):
            # In mmdet it divides by the number of regions itself, without the epsilon that
            # `avg_factor` gets, and reads no weights.
            weights, count_of_classes = sampled, count_of_classes - AVG_FACTOR_EPS
        criterion.add("loss_cls", outputs.cls_scores, targets.labels, weights, count_of_classes)
        pred = self._of_labels(outputs.bbox_preds, targets.labels)
        if self.reg_decoded_bbox:
            pred = self.bbox_coder.decode(samples.boxes, pred.astype(samples.boxes.dtype))
        weight = jnp.broadcast_to(targets.bbox_weights[..., None], pred.shape)
        criterion.add("loss_bbox", pred, targets.bbox_targets, weight, count)
        return criterion.losses, criterion.state

    def accuracy(self, outputs: RoIOutputs, samples: Samples) -> dict[str, jax.Array]:
        """The part of the sampled regions whose class is right, in percent, by name."""
        labels = samples.targets.labels.reshape(-1)
        sampled = (samples.targets.gt_inds >= 0).reshape(-1)
        logits = outputs.cls_scores.reshape(labels.shape[0], -1)
        if getattr(self.loss_cls, "custom_accuracy", False):
            return self.loss_cls.get_accuracy(logits, labels, sampled)  # type: ignore[attr-defined]
        return {"acc": masked_accuracy(logits, labels, sampled)}

    def decode(self, outputs: RoIOutputs, boxes: jax.Array, image_shapes: Any = None) -> Detections:
        """The boxes (B, S, C, 4), or (B, S, 4) for all classes, and scores (B, S, C) of regions."""
        self.check_outputs(outputs, boxes)
        dtype = boxes.dtype
        deltas = outputs.bbox_preds.astype(dtype)
        if image_shapes is not None:
            image_shapes = jnp.asarray(image_shapes)
        if not self.reg_class_agnostic:
            batch, slots = deltas.shape[:2]
            deltas = deltas.reshape(batch, slots * self.num_classes, 4)
            boxes = jnp.repeat(boxes, self.num_classes, axis=1)
        decoded = self.bbox_coder.decode(boxes, deltas, image_shapes)
        if not self.reg_class_agnostic:
            decoded = decoded.reshape(batch, slots, self.num_classes, 4)
        return Detections(decoded, self.scores(outputs.cls_scores.astype(dtype)))

    def detect(self, found: Detections, exists: jax.Array, config: TestConfig) -> KeptDetections:
        """The detections (B, S, ...) without duplicates, as `config` says, of what was decoded."""
        suppression = config.suppression()
        suppress = jax.vmap(
            lambda boxes, scores, exists: multiclass_nms(
                boxes,
                scores,
                config.score_thr,
                suppression.iou_threshold,
                exists,
                max_per_img=config.max_per_img,
                class_agnostic=suppression.class_agnostic,
            )
        )
        kept: KeptDetections = suppress(found.boxes, found.scores, exists)
        return kept

    def refine(
        self,
        outputs: RoIOutputs,
        proposals: Proposals,
        labels: jax.Array | None,
        image_shapes: jax.Array,
    ) -> Proposals:
        """The boxes that the outputs mean: of the classes (B, S), or where negative of the best."""
        self.check_outputs(outputs, proposals.boxes)
        best = outputs.cls_scores[..., : self.num_classes].argmax(axis=-1)
        if labels is not None:
            best = jnp.where(labels >= 0, labels, best.astype(labels.dtype))
        deltas = self._of_labels(outputs.bbox_preds, best).astype(proposals.boxes.dtype)
        boxes = self.bbox_coder.decode(proposals.boxes, deltas, image_shapes)
        exists = proposals.exists
        refined = Proposals(jnp.where(exists[..., None], boxes, 0), exists)
        return jax.lax.stop_gradient(refined)

    # What it is made of.

    @property
    def channels(self) -> dict[str, int]:
        """How many channels each of the outputs has for a region."""
        own = getattr(self.loss_cls, "get_cls_channels", lambda classes: classes + 1)
        boxes = 1 if self.reg_class_agnostic else self.num_classes
        return {"cls_scores": own(self.num_classes), "bbox_preds": 4 * boxes}

    def scores(self, logits: jax.Array) -> jax.Array:
        """The probabilities (..., C): of the loss's own classifier, or a softmax.

        As in mmdet it is a softmax even where the loss has a sigmoid for each class.
        """
        if getattr(self.loss_cls, "custom_activation", False):
            activation = self.loss_cls.get_activation  # type: ignore[attr-defined]
            scores = activation(logits.reshape(-1, logits.shape[-1]))[:, : self.num_classes]
            return scores.reshape(*logits.shape[:-1], self.num_classes)
        return jax.nn.softmax(logits, axis=-1)[..., : self.num_classes]

    def check_outputs(self, outputs: RoIOutputs, boxes: jax.Array) -> None:
        """Raises unless the outputs are what this branch takes for boxes (B, S, 4)."""
        if not isinstance(outputs, RoIOutputs):
            raise TypeError(f"outputs must be RoIOutputs, got {type(outputs).__name__}")
        for name, size in self.channels.items():
            x, shape = getattr(outputs, name), (*boxes.shape[:2], size)
            check_array(name, x)
            if x.shape != shape:
                raise ValueError(
                    f"{name} must have shape {shape}, that is {size} channels for each of the "
                    f"boxes {boxes.shape}, got {x.shape}"
                )

    def _of_labels(self, bbox_preds: jax.Array, labels: jax.Array) -> jax.Array:
        """What is predicted (B, S, 4) for the class of each region; 0 where that is background.

        Keep this masked sum, whose gradient is a masked copy. A gather of four numbers a region is
        a loop over the regions on a TPU, and so is the gradient's scatter.
        """
        if self.reg_class_agnostic:
            return jnp.where((labels < self.num_classes)[..., None], bbox_preds, 0)
        by_class = bbox_preds.reshape(*labels.shape, self.num_classes, 4)
        classes = jnp.arange(self.num_classes, dtype=labels.dtype)
        own = labels[..., None] == classes[None, None]
        return jnp.where(own[..., None], by_class, 0).sum(axis=-2)


# What these networks have between the regions and the outputs makes no difference to the losses.


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class ConvFCBBoxHead(BBoxHead):
    """`BBoxHead` on convolutions and fully connected layers: mmdet's `ConvFCBBoxHead`."""


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class Shared2FCBBoxHead(BBoxHead):
    """`BBoxHead` on two fully connected layers: mmdet's `Shared2FCBBoxHead`."""


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class Shared4Conv1FCBBoxHead(BBoxHead):
    """`BBoxHead` on four convolutions and a fully connected layer: `Shared4Conv1FCBBoxHead`."""


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class DoubleConvFCBBoxHead(BBoxHead):
    """`BBoxHead` with convolutions for the boxes and fully connected layers for the classes.

    mmdet's `DoubleConvFCBBoxHead`.
    """
