"""YOLOX's head."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Range
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.predictions import PredictionAssigner
from visdet_jax.detectors.assigners.sim_ota import SimOTAAssigner
from visdet_jax.detectors.heads._mmyolo import NUM_CLASSES, from_mmyolo, without_points
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.postprocessing import TestConfig
from visdet_jax.detectors.priors import Grid, MlvlPointGenerator, Sizes
from visdet_jax.detectors.registry import HEADS, with_training
from visdet_jax.detectors.structures import (
    AxisName,
    HeadOutputs,
    HeadTargets,
    Image,
    Losses,
    Rows,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.iou import IoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import L1Loss
from visdet_jax.registry import is_config

# The logarithm of the largest side of a box, in strides. Larger ones are cut to it, so that boxes
# and their areas stay finite in float32.
LARGEST_LOG_SIZE = 20.0
# How many candidates take part where mmyolo's `test_cfg` does not say it.
MMYOLOS_NMS_PRE = 100_000


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOXHead(DenseHead):
    """YOLOX: an objectness for every cell, and boxes of those cells that the predictions deserve.

    With n = max(positives of the batch, 1), all losses are sums divided by n: `loss_obj` over all
    cells; `loss_cls` over the positives, whose class learns the IoU of its box (without a
    gradient), and all others 0; `loss_bbox` over the positives, in pixels; and `loss_l1`, times
    `use_l1`, over the positives, of what the network gives. Cells in an image's padding are
    ordinary negatives, and `image_shapes` and `pad_shapes` have no effect on the losses.

    `bbox_preds` are (dx, dy, log w, log h) in strides, from the cell's corner; logarithms above 20
    count as 20. Boxes go to the cells by their centres. Detections are of the best class of each
    cell. mmdet keeps as many as there are and clips none; here as many as `test_cfg` says, and they
    are clipped where `image_shapes` is given.

    A config of mmyolo's class of this name has a `head_module`. Its losses are the same, and are
    not multiplied by the number of images either; its `loss_bbox_aux` is `loss_l1` here, which
    `use_l1` turns on in place of the hook's `use_bbox_aux`. Its detections may be of every class of
    a cell, as `multi_label` says.

    Args:
      strides: Strides of the levels, in pixels, at least 1.
      loss_cls: Loss of the class logits, which gets values in [0, 1] of their shape.
      loss_bbox: Loss of the boxes as x1, y1, x2, y2, in pixels.
      loss_obj: Loss of the objectness logits, whose targets are 0 or 1.
      loss_l1: Loss of the outputs themselves. All four losses need the reduction "sum".
      use_l1: Whether `loss_l1` counts, unless a call says it: mmdet turns it on for the last
        epochs.
      assigner: Gives boxes their cells by what was predicted.

    Source: Ge et al. 2021, https://arxiv.org/abs/2107.08430; mmdet's `YOLOXHead`
    """

    sums_losses: ClassVar[bool] = True
    detects_best_class: ClassVar[bool] = True
    detects_by_joint_scores: ClassVar[bool] = True

    strides: Annotated[tuple[int, ...], Range(1)] = (8, 16, 32)
    loss_cls: Loss = CrossEntropyLoss(use_sigmoid=True, reduction="sum")
    loss_bbox: Loss = IoULoss(mode="square", eps=1e-16, reduction="sum", loss_weight=5.0)
    loss_obj: Loss = CrossEntropyLoss(use_sigmoid=True, reduction="sum")
    loss_l1: Loss = L1Loss(reduction="sum")
    use_l1: bool = False
    assigner: PredictionAssigner = SimOTAAssigner()
    test_cfg: TestConfig = TestConfig(score_thr=0.01)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_unless_sigmoid()

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet, or of mmyolo's head of this name.

        Raises: ValueError for a key that stands twice, and for points elsewhere than in the corners
          of the cells of these strides.
        """
        if "head_module" not in settings:
            return with_training(settings, train_cfg)
        fields = NUM_CLASSES | {"featmap_strides": "strides"}
        settings = from_mmyolo(settings, train_cfg, fields)
        settings = without_points(YOLOXHead, settings, 0)
        if "loss_bbox_aux" in settings:
            settings["loss_l1"] = settings.pop("loss_bbox_aux")
        if is_config(settings.get("test_cfg")):
            settings["test_cfg"] = {"nms_pre": MMYOLOS_NMS_PRE} | settings["test_cfg"]
        return settings

    @described_by(DenseHead.update)
    @compiled
    def update(
        self,
        state: States,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        use_l1: bool | jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold, and for both
        values of `use_l1`.

        Args:
          use_l1: Whether `loss_l1` counts: True or False, or an array () that it is multiplied by.
            None takes the head's own `use_l1`.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        targets = self.targets(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        use_l1 = self.use_l1 if use_l1 is None else use_l1
        return self.losses_of(state, outputs, targets, axis_name, use_l1=use_l1)

    loss = without_state(update)  # type: ignore[arg-type]

    @property
    def channels(self) -> dict[str, int]:
        return super().channels | {"objectnesses": 1}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, _ = examples["loss_cls"]
        objectness = jax.ShapeDtypeStruct((rows,), "float32")
        return examples | {
            "loss_cls": (logits, logits),
            "loss_obj": (objectness, objectness),
            "loss_l1": examples["loss_bbox"],
        }

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return MlvlPointGenerator(strides=self.strides, offset=0).grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        strides = jnp.asarray(grid.strides)
        raw = jnp.concatenate(image.outputs["bbox_preds"])
        logits = (image.outputs[name] for name in ("cls_scores", "objectnesses"))
        scores = [_joint_scores(x, y, strides.dtype) for x, y in zip(*logits, strict=True)]
        found = self.assigner.assign_predictions(
            jnp.asarray(grid.priors) + strides[:, None] / 2,
            strides,
            self.boxes(grid, raw[None], None)[0],
            scores,
            image.gt_boxes,
            image.gt_labels,
        )
        boxes = pick(image.gt_boxes, found.gt_inds)
        return self.make_targets(found.gt_inds, found.labels, boxes, metrics=found.metrics)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets, objectnesses = rows.targets, rows.objectnesses
        quality: Any = targets.metrics
        positive = targets.bbox_weights
        count = criterion.total(positive.sum())
        classes = jnp.arange(self.num_classes, dtype=targets.labels.dtype)[None, None]
        of_classes = jnp.where(targets.labels[..., None] == classes, quality[..., None], 0)
        criterion.add("loss_cls", rows.cls_scores, of_classes, positive, count)
        boxes = _boxes(rows.priors, rows.strides, rows.bbox_preds)
        criterion.add("loss_bbox", boxes, targets.bbox_targets, positive, count)
        criterion.add("loss_obj", objectnesses, positive, None, count)
        learnt = _as_predicted(rows.priors, rows.strides, targets.bbox_targets)
        criterion.add("loss_l1", rows.bbox_preds, learnt, positive, count)
        loss_l1 = criterion.losses["loss_l1"]
        criterion.losses["loss_l1"] = loss_l1 * as_dtype(loss_l1.dtype, criterion.options["use_l1"])

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        points, strides = jnp.asarray(grid.priors[None]), jnp.asarray(grid.strides[None])
        return clip_to_image(_boxes(points, strides, bbox_preds), image_shapes)


def _joint_scores(cls_scores: jax.Array, objectnesses: jax.Array, dtype: Any) -> jax.Array:
    """What the assigner goes by (n, C): the geometric mean of both probabilities."""
    of_class, of_object = (jax.nn.sigmoid(x.astype(dtype)) for x in (cls_scores, objectnesses))
    return jnp.sqrt(of_class * of_object)


def _boxes(points: jax.Array, strides: jax.Array, bbox_preds: jax.Array) -> jax.Array:
    """The boxes (B, N, 4) in pixels of what the network gives."""
    strides = strides[..., None]
    preds = bbox_preds.astype(points.dtype)
    center = preds[..., :2] * strides + points
    size = jnp.exp(jnp.minimum(preds[..., 2:], LARGEST_LOG_SIZE)) * strides
    return convert_boxes(jnp.concatenate([center, size], axis=-1), "cxcywh", "xyxy")


def _as_predicted(points: jax.Array, strides: jax.Array, boxes: jax.Array) -> jax.Array:
    """What the network has to give for boxes (B, N, 4) in pixels."""
    strides, boxes = strides[..., None], convert_boxes(boxes)
    # An inverted box counts as one of no size, whose logarithm is -18 by mmdet's 1e-8.
    size = jnp.log(jnp.maximum(boxes[..., 2:] / strides, 0) + 1e-8)
    return jnp.concatenate([(boxes[..., :2] - points) / strides, size], axis=-1)
