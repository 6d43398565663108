"""The heads of DETR: a set of predictions against the set of boxes, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import convert_boxes, denormalize_boxes, normalize_boxes
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.hyperparameters import Number
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner, hungarian
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import ClassificationCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import (
    Head,
    as_shapes,
    compiled,
    iou_of_positives,
    without_state,
)
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    DETROutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.boxes._box_loss import BoxLoss
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss
from visdet_jax.losses.regression.smooth_l1 import L1Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DETRHead(Head):
    """DETR's set criterion, for the last layer of a decoder and for those before it.

    In each layer `assigner` matches the boxes of an image with queries, one each, at the least
    total cost; the other queries are background. With n the number of matched queries and m that
    of the others, of the whole batch, `loss_cls` is the sum over the queries divided by
    max(n + w m, 1), w being the weight of background in a softmax (`bg_cls_weight`, or
    `class_weight` where only that is given; 0 without either). `loss_bbox`, of centres and sizes in
    fractions of the image, and `loss_iou`, of corners in pixels, are sums over the matched queries
    divided by max(n, 1). Losses of a quality get (label, IoU of the box). The matching, and that
    IoU, have no gradient.

    The losses of the layers before the last are called "d0.loss_cls" and so on, those of a
    two-stage encoder's proposals "enc_loss_cls" and so on. A `class_weight` multiplies and does not
    enter the divisor, as in mmdet.

    Args:
      loss_bbox: Loss of centres and sizes, in fractions of the image.
      loss_iou: Loss of the boxes as x1, y1, x2, y2, in pixels.
      assigner: Matches boxes and queries; mmdet's `train_cfg` has it.
      sync_cls_avg_factor: Has no effect: the counts are always those of the whole batch.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `DETRHead`
    """

    loss_cls: Loss = CrossEntropyLoss(class_weight=1.0, bg_cls_weight=0.1)
    loss_bbox: Loss = L1Loss(loss_weight=5.0)
    loss_iou: Loss = GIoULoss(loss_weight=2.0)
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            ClassificationCost(),
            BBoxL1Cost(weight=5.0, box_format="xywh"),
            IoUCost(weight=2.0),
        )
    )
    sync_cls_avg_factor: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss_bbox, BoxLoss):
            raise self.value_error(
                f"loss_bbox gets centres and sizes, and {self.loss_bbox!r} needs corners"
            )
        if isinstance(getattr(self.loss_cls, "class_weight", None), tuple):
            raise self.value_error(
                "loss_cls must have one number as its class_weight, and a bg_cls_weight"
            )

    # What users call.

    @compiled
    def update(
        self,
        state: States,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `DETROutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes nothing is read.
          image_shapes: (B, 2) height and width in pixels of each image, of which the predicted
            boxes are fractions.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's box,
            1 for the first and 0 for none. A query of -1 is left out.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        targets = self.targets(outputs, gt_boxes, gt_labels, image_shapes, gt_inds=gt_inds)
        boxes = outputs.bbox_preds.astype(targets.bbox_targets.dtype)
        shapes = jnp.asarray(image_shapes).astype(boxes.dtype)

        def layer(
            state: States, arrays: tuple[jax.Array, jax.Array, HeadTargets]
        ) -> tuple[States, Losses]:
            criterion = Criterion(self, state, arrays[0].shape[1:2], axis_name)
            self._compute(criterion, *arrays, shapes)
            return criterion.state, criterion.losses

        state, by_layer = jax.lax.scan(layer, state, (outputs.cls_scores, boxes, targets))
        *before, last = range(len(boxes))
        losses = {name: values[last] for name, values in by_layer.items()}
        for i in before:
            losses |= {f"d{i}.{name}": values[i] for name, values in by_layer.items()}
        if outputs.enc_cls_scores is not None and outputs.enc_bbox_preds is not None:
            proposals = DETROutputs(outputs.enc_cls_scores[None], outputs.enc_bbox_preds[None])
            one_class = jnp.minimum(gt_labels, 0)
            of_proposals, state = self.update(
                state, proposals, gt_boxes, one_class, image_shapes, axis_name=axis_name
            )
            losses |= {f"enc_{name}": value for name, value in of_proposals.items()}
        return losses, state

    loss = without_state(update)

    @compiled
    def targets(
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_inds: jax.Array | None = None,
    ) -> HeadTargets:
        """What each query learns in each layer, (L, B, Q, ...). The arguments are those of `loss`.

        `bbox_targets` are centres and sizes in fractions of the image.
        """
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        batch = outputs.cls_scores.shape[1]
        gt_boxes, gt_labels = self.ground_truth(gt_boxes, gt_labels, batch, dtype)
        shapes = as_shapes("image_shapes", image_shapes, gt_labels, dtype)
        if gt_inds is None:
            gt_inds = self._match(outputs, gt_boxes, gt_labels, shapes)
        else:
            gt_inds = as_labels("gt_inds", gt_inds, outputs.cls_scores.shape[:3])
        pick_in_layers = jax.vmap(jax.vmap(pick), in_axes=(None, 0))
        labels = pick_in_layers(gt_labels, gt_inds)
        gt_inds = jnp.where(labels >= 0, gt_inds, jnp.minimum(gt_inds, 0))
        boxes = pick_in_layers(normalize_boxes(convert_boxes(gt_boxes), shapes), gt_inds)
        return jax.lax.stop_gradient(self.make_targets(gt_inds, labels, boxes))

    @compiled
    def decode(self, outputs: DETROutputs, image_shapes: Shapes | Sequence[Number]) -> Detections:
        """Boxes and scores of the last layer's queries. There are no duplicates to suppress.

        Scores are sigmoid(cls_scores), or the softmax without the background.

        Args:
          outputs: What the network gave; see `DETROutputs`.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all. Boxes are clipped to them.
        """
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        scores = self.scores(outputs.cls_scores[-1].astype(dtype))
        boxes = convert_boxes(outputs.bbox_preds[-1].astype(dtype), "cxcywh", "xyxy")
        boxes = denormalize_boxes(clamp(boxes, 0, 1), jnp.asarray(image_shapes))
        return Detections(boxes, scores)

    # What a subclass may extend.

    @property
    def background_weight(self) -> Any:
        """What a query without a box counts for in the divisor of the class loss."""
        loss = self.loss_cls
        if not isinstance(loss, CrossEntropyLoss) or loss.use_sigmoid:
            return 0.0
        weight = loss.class_weight if loss.bg_cls_weight is None else loss.bg_cls_weight
        return 0.0 if weight is None else weight

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        if isinstance(self.loss_cls, QualityLoss):
            scores = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_cls"] = (logits, (labels, scores))
        return examples | {"loss_iou": examples["loss_bbox"]}

    # The rest.

    def _compute(
        self,
        criterion: Criterion,
        cls_scores: jax.Array,
        bbox_preds: jax.Array,
        targets: HeadTargets,
        image_shapes: jax.Array,
    ) -> None:
        """Adds the losses of one layer, of arrays (B, Q, ...), to the criterion."""
        weight = targets.bbox_weights
        count = criterion.total(weight.sum())
        background = (targets.gt_inds == 0).sum().astype(weight.dtype)
        divisor = criterion.total(weight.sum() + self.background_weight * background)
        pred, target = (
            convert_boxes(x, "cxcywh", "xyxy") for x in (bbox_preds, targets.bbox_targets)
        )
        labels: Any = targets.labels
        if isinstance(self.loss_cls, QualityLoss):
            labels = (labels, iou_of_positives(pred, target, weight))
        criterion.add("loss_cls", cls_scores, labels, targets.label_weights, divisor)
        criterion.add("loss_bbox", bbox_preds, targets.bbox_targets, weight, count)
        pred, target = (denormalize_boxes(x, image_shapes) for x in (pred, target))
        criterion.add("loss_iou", pred, target, weight, count)

    def _match(
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array,
    ) -> jax.Array:
        """The matching (L, B, Q) of all layers and images at once."""
        boxes = convert_boxes(outputs.bbox_preds.astype(image_shapes.dtype), "cxcywh", "xyxy")

        def cost(
            scores: jax.Array,
            boxes: jax.Array,
            gt_boxes: jax.Array,
            gt_labels: jax.Array,
            image_shape: jax.Array,
        ) -> jax.Array:
            pred = Instances(scores=scores, bboxes=denormalize_boxes(boxes, image_shape))
            gt = Instances(labels=gt_labels, bboxes=gt_boxes)
            return self.assigner.cost(pred, gt, image_shape)

        cost_of_layers = jax.vmap(jax.vmap(cost), in_axes=(0, 0, None, None, None))
        costs = cost_of_layers(outputs.cls_scores, boxes, gt_boxes, gt_labels, image_shapes)
        mask = jnp.broadcast_to(gt_labels >= 0, (len(costs), *gt_labels.shape))
        return sharded_as(hungarian(costs, mask), outputs.cls_scores)

    def _check_outputs(self, outputs: Any) -> None:
        """Raises unless the outputs are what this head takes."""
        if not isinstance(outputs, DETROutputs):
            raise TypeError(f"outputs must be DETROutputs, got {type(outputs).__name__}")
        if (outputs.enc_cls_scores is None) != (outputs.enc_bbox_preds is None):
            raise ValueError("enc_cls_scores and enc_bbox_preds come together, or are both None")
        for prefix, axes in (("", "(L, B, Q"), ("enc_", "(B, P")):
            leading = None
            for name, size in self.channels.items():
                x = getattr(outputs, prefix + name)
                if x is None and prefix:
                    continue
                check_array(prefix + name, x)
                if x.ndim != axes.count(",") + 2 or x.shape[-1] != size:
                    raise ValueError(
                        f"{prefix}{name} must have shape {axes}, {size}), got {x.shape}"
                    )
                if leading not in (None, x.shape[:-1]):
                    raise ValueError(
                        f"cls_scores and bbox_preds must have the same {axes}), got "
                        f"{leading} and {x.shape[:-1]}"
                    )
                leading = x.shape[:-1]


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DeformableDETRHead(DETRHead):
    """Deformable DETR's criterion: DETR's, whose class loss is divided by max(n, 1).

    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159; mmdet's `DeformableDETRHead`
    """

    @property
    def background_weight(self) -> Any:
        return 0.0


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class ConditionalDETRHead(DeformableDETRHead):
    """Conditional DETR's criterion: Deformable DETR's.

    Source: Meng et al. 2021, https://arxiv.org/abs/2108.06152; mmdet's `ConditionalDETRHead`
    """


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DABDETRHead(DeformableDETRHead):
    """DAB-DETR's criterion: Deformable DETR's.

    Source: Liu et al. 2022, https://arxiv.org/abs/2201.12329; mmdet's `DABDETRHead`
    """
