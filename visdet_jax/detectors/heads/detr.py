"""The heads of DETR: a set of predictions against the set of boxes, layer by layer."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import convert_boxes, denormalize_boxes, normalize_boxes
from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.detectors.assigners.assigner import EPS, pick, without_padding
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner, hungarian
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import ClassificationCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import Head, compiled
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Detections, DETROutputs, HeadTargets
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

    In each layer the boxes of an image are matched with queries, one each, at the least total cost
    (`assigner`); the other queries are background. With n the number of matched queries and m that
    of the others, of the whole batch, `loss_cls` is the sum over the queries divided by
    max(n + w m, 1), w being the weight of background in a softmax (`bg_cls_weight`, or
    `class_weight` where only that is given; 0 without either); `loss_bbox`, of centres and sizes in
    fractions of the image, and `loss_iou`, of corners in pixels, are sums over the matched queries
    divided by max(n, 1). Losses of a quality get (label, IoU of the box). The matching, and that
    IoU, have no gradient.

    The layers before the last are "d0.loss_cls" and so on. A `class_weight` multiplies and does not
    enter the divisor, as in mmdet.

    Args:
      loss_iou: gets boxes as x1, y1, x2, y2, in pixels.
      assigner: what matches; mmdet's `train_cfg` has it.
      sync_cls_avg_factor: without effect: counts are the whole batch's, always.
    Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `DETRHead`.
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

    def __post_init__(self):
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

    def loss(
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> dict[str, jax.Array]:
        """The losses of a batch by name, each a scalar.

        Jitted: one compilation for all batches of the same shapes, however many boxes are in them.

        Args:
          outputs: what the network gave; see `DETROutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) from 0 to C - 1; negative for padding, of whose boxes nothing is read.
          image_shapes: (B, 2) height and width of each image in pixels, of which boxes are
            fractions.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's box,
            1 for the first, 0 for none.
          axis_name: of the mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Under plain `jit` over sharded arrays it is so without.
        Raises: ValueError, TypeError for shapes and types that do not fit; TypeError where a loss
          keeps running statistics, which `update` is for.
        """
        arguments = (outputs, gt_boxes, gt_labels, image_shapes)
        options = {"gt_inds": gt_inds, "axis_name": axis_name}
        return self.update(self.stateless(), *arguments, **options)[0]

    @compiled
    def update(
        self,
        state: dict[str, Any],
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """(losses, next state), as `loss` and as a `StatefulLoss`'s `update`, layer after layer."""
        self.check_state(state)
        targets = self._targets(outputs, gt_boxes, gt_labels, image_shapes, gt_inds)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        shapes = jnp.asarray(image_shapes).astype(dtype)

        def layer(state: dict[str, Any], arrays: tuple[Any, Any, HeadTargets]) -> Any:
            cls_scores, bbox_preds, targets = arrays
            criterion = Criterion(self, state, cls_scores.shape[1:2], axis_name)
            self._compute(criterion, cls_scores, bbox_preds, targets, shapes)
            return criterion.state, criterion.losses

        layers = (outputs.cls_scores, outputs.bbox_preds.astype(dtype), targets)
        state, losses = jax.lax.scan(layer, state, layers)
        *before, last = range(len(outputs.cls_scores))
        named = {name: values[last] for name, values in losses.items()}
        for i in before:
            named |= {f"d{i}.{name}": values[i] for name, values in losses.items()}
        if outputs.enc_cls_scores is not None and outputs.enc_bbox_preds is not None:
            proposals = DETROutputs(outputs.enc_cls_scores[None], outputs.enc_bbox_preds[None])
            one_class = jnp.minimum(gt_labels, 0)
            targets = self._targets(proposals, gt_boxes, one_class, image_shapes, None)
            arrays = (proposals.cls_scores, proposals.bbox_preds.astype(dtype), targets)
            state, losses = layer(state, jax.tree.map(lambda x: x[0], arrays))
            named |= {f"enc_{name}": value for name, value in losses.items()}
        return named, state

    @compiled
    def targets(
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
    ) -> HeadTargets:
        """What each query learns in each layer, (L, B, Q, ...); the arguments are those of `loss`.

        `bbox_targets` are centres and sizes in fractions of the image.
        """
        return self._targets(outputs, gt_boxes, gt_labels, image_shapes, gt_inds)

    @compiled
    def decode(self, outputs: DETROutputs, image_shapes: jax.Array) -> Detections:
        """Boxes, clipped to the images (B, 2), and scores of the last layer's queries.

        Scores are sigmoid(cls_scores), or the softmax without the background. There are no
        duplicates to suppress.
        """
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        scores = self.scores(outputs.cls_scores[-1].astype(dtype))
        boxes = convert_boxes(outputs.bbox_preds[-1].astype(dtype), "cxcywh", "xyxy")
        boxes = denormalize_boxes(clamp(boxes, 0, 1), image_shapes)
        return Detections(boxes, scores)

    def expects(
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> list[Expected]:
        """What `checked` looks at: the arguments of `loss`, and what their values must be."""
        return [
            *(Expected(name, x, FINITE) for name, x in outputs._asdict().items()),
            *self.expects_ground_truth(gt_boxes, gt_labels, image_shapes, axis_name),
        ]

    # The rest.

    @property
    def background_weight(self) -> Any:
        """What a query without a box counts for in the divisor of the class loss."""
        loss = self.loss_cls
        if not isinstance(loss, CrossEntropyLoss) or loss.use_sigmoid:
            return 0.0
        weight = loss.class_weight if loss.bg_cls_weight is None else loss.bg_cls_weight
        return 0.0 if weight is None else weight

    def examples(self, rows):
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        if isinstance(self.loss_cls, QualityLoss):
            scores = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_cls"] = (logits, (labels, scores))
        return examples | {"loss_iou": examples["loss_bbox"]}

    def _compute(self, criterion, cls_scores, bbox_preds, targets, image_shapes):
        """Adds the losses of one layer, of arrays (B, Q, ...), to the criterion."""
        weight = targets.bbox_weights
        count = criterion.total(weight.sum())
        others = (targets.gt_inds == 0).sum().astype(weight.dtype)
        share = criterion.total(weight.sum() + self.background_weight * others)
        pred, target = (
            convert_boxes(x, "cxcywh", "xyxy") for x in (bbox_preds, targets.bbox_targets)
        )
        labels: Any = targets.labels
        if isinstance(self.loss_cls, QualityLoss):
            iou = overlaps(jax.lax.stop_gradient(pred), target, "iou", EPS)
            labels = (labels, jnp.where(weight > 0, iou, 0))
        criterion.add("loss_cls", cls_scores, labels, targets.label_weights, share)
        criterion.add("loss_bbox", bbox_preds, targets.bbox_targets, weight, count)
        pred, target = (denormalize_boxes(x, image_shapes) for x in (pred, target))
        criterion.add("loss_iou", pred, target, weight, count)

    def _targets(self, outputs, gt_boxes, gt_labels, image_shapes, gt_inds):
        """What each query learns, and the matching if it is not given."""
        self._check_outputs(outputs)
        batch = outputs.cls_scores.shape[1]
        self.check_ground_truth(gt_boxes, gt_labels, batch)
        if np.shape(image_shapes) != (batch, 2):
            raise ValueError(
                f"image_shapes must have shape ({batch}, 2), got {np.shape(image_shapes)}"
            )
        dtype = compute_dtype(pred=outputs.bbox_preds)
        gt_boxes, gt_labels = without_padding(gt_boxes, gt_labels, dtype)
        shapes = jnp.asarray(image_shapes).astype(dtype)
        if gt_inds is None:
            gt_inds = self._match(outputs, gt_boxes, gt_labels, shapes)
        else:
            gt_inds = as_labels("gt_inds", gt_inds, outputs.cls_scores.shape[:3])
        per_image = jax.vmap(pick)
        per_layer = jax.vmap(per_image, in_axes=(None, 0))
        labels = per_layer(gt_labels, gt_inds)
        matched = (gt_inds > 0) & (labels >= 0)
        gt_inds = jnp.where(matched, gt_inds, jnp.minimum(gt_inds, 0))
        boxes = per_layer(normalize_boxes(convert_boxes(gt_boxes), shapes), gt_inds)
        targets = HeadTargets(
            gt_inds=gt_inds,
            labels=jnp.where(matched, labels, self.num_classes),
            label_weights=(gt_inds >= 0).astype(dtype),
            bbox_targets=jnp.where(matched[..., None], boxes, 0),
            bbox_weights=matched.astype(dtype),
        )
        return jax.lax.stop_gradient(targets)

    def _match(self, outputs, gt_boxes, gt_labels, image_shapes):
        """The matching (L, B, Q) of all layers and images at once."""
        boxes = convert_boxes(outputs.bbox_preds.astype(image_shapes.dtype), "cxcywh", "xyxy")

        def cost(scores, boxes, gt_boxes, gt_labels, image_shape):
            pred = Instances(scores=scores, bboxes=denormalize_boxes(boxes, image_shape))
            gt = Instances(labels=gt_labels, bboxes=gt_boxes)
            return self.assigner.cost(pred, gt, image_shape)

        cost = jax.vmap(jax.vmap(cost), in_axes=(0, 0, None, None, None))
        costs = cost(outputs.cls_scores, boxes, gt_boxes, gt_labels, image_shapes)
        mask = jnp.broadcast_to(gt_labels >= 0, (len(costs), *gt_labels.shape))
        return sharded_as(hungarian(costs, mask), outputs.cls_scores)

    def _check_outputs(self, outputs):
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

    Zhu et al. 2021, https://arxiv.org/abs/2010.04159; mmdet's `DeformableDETRHead`.
    """

    @property
    def background_weight(self):
        return 0.0
