"""The heads of DETR: a set of predictions against the set of boxes, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.boxes.formats import convert_boxes, denormalize_boxes
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import ClassificationCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import compiled, iou_of_positives, without_state
from visdet_jax.detectors.heads.query_head import QueryHead, QuerySets
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    DETROutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss
from visdet_jax.losses.regression.smooth_l1 import L1Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DETRHead(QueryHead):
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
    two-stage encoder's proposals, which are matched too, "enc_loss_cls" and so on. Denoising
    queries are not matched: they know their boxes. Their losses are called "dn_loss_cls",
    "d0.dn_loss_cls" and so on, n being the number of positive ones. A `class_weight` multiplies and
    does not enter the divisor, as in mmdet.

    Args:
      loss_iou: Loss of the boxes as x1, y1, x2, y2, in pixels.
      sync_cls_avg_factor: Has no effect: the counts are always those of the whole batch.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `DETRHead`
    """

    outputs_type: ClassVar[Any] = DETROutputs
    parts: ClassVar[Mapping[str, str]] = {"": "LBQ", "enc_": "BP", "dn_": "LBN"}

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
        enc_gt_inds: jax.Array | None = None,
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
          enc_gt_inds: (B, P) likewise, of the encoder's proposals.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        given = {"": gt_inds, "enc_": enc_gt_inds}
        return self.update_of(state, outputs, gt, shapes, given, axis_name)

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
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        layers = {"": self.sets_of(outputs, gt)[""]}
        return self.match_parts(outputs, layers, shapes, {"": gt_inds})[""]

    # What a subclass may extend.

    @property
    def background_weight(self) -> Any:
        """What a query without a box counts for in the divisor of the class loss."""
        loss = self.loss_cls
        if not isinstance(loss, CrossEntropyLoss) or loss.use_sigmoid:
            return 0.0
        weight = loss.class_weight if loss.bg_cls_weight is None else loss.bg_cls_weight
        return 0.0 if weight is None else weight

    def gt_of_part(self, part: str, queries: QuerySets) -> Instances:
        """The ground truth of a part: for an encoder whether there is an object, as class 0."""
        labels: Any = queries.gt.labels
        if part != "enc_":
            return queries.gt
        return queries.gt._replace(labels=jnp.minimum(labels, 0))

    def class_targets(self, targets: HeadTargets, gt: Instances) -> tuple[Any, Any]:
        """(target, weight) of the class loss of one layer, (B, Q, ...)."""
        return targets.labels, targets.label_weights

    # What subclasses share.

    def update_of(
        self,
        state: States,
        outputs: DETROutputs,
        gt: Instances,
        image_shapes: jax.Array,
        given: dict[str, Any],
        axis_name: AxisName,
    ) -> tuple[Losses, States]:
        """`update` with what `prepare` gives, and matchings by what stands before "gt_inds".

        Those of the encoder and of the denoising queries are the same for all layers.
        """
        sets = self.sets_of(outputs, gt)
        learnt = self.match_parts(outputs, sets, image_shapes, given)
        losses: Losses = {}
        for prefix, (cls_scores, bbox_preds, gt_of_set, *_) in sets.items():

            def compute(criterion: Criterion, layer: Any, gt: Instances = gt_of_set) -> None:
                self._compute(criterion, image_shapes, gt, *layer)

            arrays = (cls_scores, bbox_preds, learnt[prefix])
            by_layer, state = self.losses_of_layers(compute, state, arrays, axis_name)
            *before, last = by_layer
            losses |= {prefix + name: value for name, value in last.items()}
            for i, of_layer in enumerate(before):
                losses |= {f"d{i}.{prefix}{name}": value for name, value in of_layer.items()}
        return losses, state

    # The rest.

    def _compute(
        self,
        criterion: Criterion,
        image_shapes: jax.Array,
        gt: Instances,
        cls_scores: jax.Array,
        bbox_preds: jax.Array,
        targets: HeadTargets,
    ) -> None:
        """Adds the losses of one layer, of arrays (B, Q, ...), to the criterion."""
        weight = targets.bbox_weights
        count = criterion.total(weight.sum())
        background = (targets.gt_inds == 0).sum().astype(weight.dtype)
        divisor = criterion.total(weight.sum() + self.background_weight * background)
        pred, target = (
            convert_boxes(x, "cxcywh", "xyxy") for x in (bbox_preds, targets.bbox_targets)
        )
        labels, label_weights = self.class_targets(targets, gt)
        if isinstance(self.loss_cls, QualityLoss):
            labels = (labels, iou_of_positives(pred, target, weight))
        criterion.add("loss_cls", cls_scores, labels, label_weights, divisor)
        criterion.add("loss_bbox", bbox_preds, targets.bbox_targets, weight, count)
        pred, target = (denormalize_boxes(x, image_shapes) for x in (pred, target))
        criterion.add("loss_iou", pred, target, weight, count)


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
