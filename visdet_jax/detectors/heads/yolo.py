"""The heads of ultralytics' detectors from YOLOv8 on: one branch, and an end-to-end pair."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.rules import Expected
from visdet_jax.detectors.assigners.task_aligned import (
    BatchTaskAlignedAssigner,
    YOLOTaskAlignedAssigner,
)
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import WithLosses, compiled, without_state
from visdet_jax.detectors.heads.yolov8 import TaskAlignedPointHead
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    HeadOutputs,
    HeadTargets,
    Losses,
    Rows,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.distribution_focal import DistributionFocalLoss
from visdet_jax.losses.boxes.yolo_iou import YOLOIoULoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import L1Loss
from visdet_jax.reduction import AVG_FACTOR_EPS


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOHead(TaskAlignedPointHead):
    """YOLOv8, YOLO11 and their successors as ultralytics trains them.

    `loss_dfl` is B · Σ s · (mean over the four sides) / S, with targets clipped to
    [0, reg_max - 1.01]. With `reg_max=1` there are no bins: `bbox_preds` are plain distances in
    strides, which may be negative, and in place of `loss_dfl` there is `loss_l1`, which gets
    distances in fractions of what the finest feature map covers, in width and height, and is
    B · Σ s · (mean over the four sides) / S too. ultralytics calls the losses box_loss, cls_loss,
    dfl_loss or l1_loss, and its gains are the losses' weights here. It takes a ground truth for
    padding where the sum of its coordinates is not above 0; here padding is what has a negative
    label.

    Args:
      assigner: Says which box each point learns, and its score. ultralytics sets `min_side` to the
        second stride; a one-to-one branch has `topk=7, topk2=1`.
      reg_max: The number of bins of a side, 0 to reg_max - 1, in strides; 1 for plain distances.
      loss_l1: Loss of plain distances (N, 4), with `reg_max=1`.

    Source: the facts of ultralytics' `v8DetectionLoss` (8.4)
    """

    assigner: BatchTaskAlignedAssigner | YOLOTaskAlignedAssigner = YOLOTaskAlignedAssigner(
        min_side=16.0
    )
    loss_bbox: Loss = YOLOIoULoss(iou_mode="ultralytics_ciou", bbox_format="xyxy", loss_weight=7.5)
    loss_dfl: Loss = DistributionFocalLoss(loss_weight=1.5)
    loss_l1: Loss = L1Loss(loss_weight=1.5)

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        if self.reg_max == 1:
            examples["loss_l1"] = examples["loss_bbox"]
        return examples

    def sides(self, bbox_preds: Sequence[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        if self.reg_max == 1:
            rows = [x.reshape(x.shape[0], math.prod(x.shape[1:-1]), 4) for x in bbox_preds]
            return [], jnp.concatenate(rows, axis=1)
        return super().sides(bbox_preds)

    def add_loss_of_sides(
        self,
        criterion: Criterion,
        rows: Rows,
        logits: list[jax.Array],
        distances: jax.Array,
        total: jax.Array,
    ) -> None:
        count = 4 * total - AVG_FACTOR_EPS  # The loss adds it again.
        if self.reg_max > 1:
            self.add_loss_of_bins(criterion, rows, logits, count)
            return
        finest = next((x for x in criterion.levels if x.stop > x.start), slice(0))
        strides = rows.strides[..., None]
        size = (rows.priors + strides / 2)[:, finest].max(axis=1, keepdims=True, initial=1)
        unit = strides / jnp.tile(size, 2)
        learnt = self.bbox_coder.encode(rows.priors / strides, rows.targets.bbox_targets)
        weight: Any = rows.targets.metrics
        weight = jnp.broadcast_to(weight[..., None], distances.shape)
        criterion.add("loss_l1", distances * unit, learnt * unit, weight, count)


# Its config holds the configs of its branches.
HEADS.parts = {YOLOHead: HEADS, **HEADS.parts}

BRANCHES = ("one_to_many", "one_to_one")
Pair = tuple[HeadOutputs, HeadOutputs]


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class EndToEndHead(WithLosses):
    """Two branches, of which one learns many predictions for a box and one a single one.

    The losses are those of both branches, named `one_to_many.loss_cls` and so on, times the
    branches' weights. Detections are the second branch's and need no suppression: give it a
    `test_cfg` with `nms=None`. In YOLO26 `reg_max` is 1 and the weights follow
    `end_to_end_weights`; in YOLOv10 both are 1, and the branches' assigners have topk 10 and 1.

    Args:
      one_to_many: The branch that is trained with many positives for a box.
      one_to_one: The branch that detects, trained with one positive for a box.

    Source: Wang et al. 2024 (YOLOv10), https://arxiv.org/abs/2405.14458; the facts of ultralytics'
      `E2ELoss` (8.4)
    """

    one_to_many: YOLOHead
    one_to_one: YOLOHead

    @described_by(DenseHead.update)
    @compiled
    def update(
        self,
        state: States,
        outputs: Pair,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        weights: Sequence[Number] | jax.Array = (0.8, 0.2),
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, and for all weights.

        Args:
          outputs: What the network gave, of the branch with many positives and of the other one.
          weights: Factors of the two branches' losses. Larger values make a branch count more.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        self._raise_unless_pairs(outputs, weights)
        losses: Losses = {}
        next_state = dict(state)
        for number, name in enumerate(BRANCHES):
            found, next_state[name] = getattr(self, name).update(
                state[name],
                outputs[number],
                gt_boxes,
                gt_labels,
                image_shapes,
                pad_shapes,
                axis_name=axis_name,
            )
            losses |= {f"{name}.{key}": weights[number] * x for key, x in found.items()}
        return losses, next_state

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(
        self,
        outputs: Pair,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
    ) -> tuple[HeadTargets, HeadTargets]:
        """What each point of the two branches learns. The arguments are those of `loss`."""
        many, one = outputs
        truth = (gt_boxes, gt_labels, image_shapes, pad_shapes)
        return self.one_to_many.targets(many, *truth), self.one_to_one.targets(one, *truth)

    def decode(
        self, outputs: Pair, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> Detections:
        """The boxes and scores of the branch that detects; see `YOLOHead.decode`."""
        return self.one_to_one.decode(outputs[1], image_shapes)

    def detect(
        self, outputs: Pair, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> KeptDetections:
        """The detections of the branch that detects; see `YOLOHead.detect`."""
        return self.one_to_one.detect(outputs[1], image_shapes)

    def expects(self, outputs: Pair, *args: Any, **options: Any) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        options.pop("weights", None)
        return [
            argument._replace(name=f"{name}: {argument.name}")
            for name, branch in zip(BRANCHES, outputs, strict=True)
            for argument in getattr(self, name).expects(branch, *args, **options)
        ]

    def _raise_unless_pairs(self, outputs: Any, weights: Any) -> None:
        if not isinstance(outputs, list | tuple) or len(outputs) != 2:
            raise ValueError("outputs must be a pair, of the branches one_to_many and one_to_one")
        if len(weights) != 2:
            raise ValueError(f"weights must be two numbers, got {len(weights)}")


def end_to_end_weights(epoch: Number, epochs: Number) -> jax.Array:
    """The weights of an `EndToEndHead`, which move from (0.8, 0.2) to (0.1, 0.9) in a line.

    The first one is max(1 - epoch / max(epochs - 1, 1), 0) · 0.7 + 0.1, and the other the rest.

    Args:
      epoch: The number of epochs that are done: 0 in the first one. It may be traced.
      epochs: The number of epochs of the whole training.

    Returns: (2,) for `weights=`.
    Source: the facts of ultralytics' `E2ELoss` (8.4)
    """
    left = jnp.maximum(1 - epoch / jnp.maximum(epochs - 1, 1), 0)
    many = left * 0.7 + 0.1
    return jnp.stack([many, 1 - many])
