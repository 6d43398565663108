"""Sparse R-CNN and QueryInst: a fixed set of regions, matched with the boxes in every stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import (
    clip_to_image,
    convert_boxes,
    denormalize_boxes,
    normalize_boxes,
)
from visdet_jax.boxes.masks import crop_masks
from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Count, Finite, Number, Range
from visdet_jax.core.rules import FINITE, UNIT, Expected, Rule
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import FocalLossCost
from visdet_jax.detectors.heads.criterion import Criterion, avg_factor_of_device
from visdet_jax.detectors.heads.head import WithLosses, compiled, without_state
from visdet_jax.detectors.heads.query_head import QueryHead, QuerySets
from visdet_jax.detectors.registry import BRANCHES, HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    HeadTargets,
    Losses,
    Proposals,
    Shapes,
    SparseRoIOutputs,
    States,
)
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.masks.dice import DiceLoss
from visdet_jax.losses.regression.smooth_l1 import L1Loss
from visdet_jax.registry import as_dict, is_config


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class DynamicMaskHead(WithLosses):
    """The masks of QueryInst: of the queries that are matched with a box.

    `loss_mask` gets the probabilities of the mask of the box's class, and what its bitmap holds in
    the predicted box, at h × w pixels. It is the sum over the matched queries of the batch divided
    by max(n, 1), n being their number.

    Args:
      num_classes: Number of classes without background, at least 1.
      class_agnostic: Whether there is one mask for all classes, or one for each.
      loss_mask: Loss of the masks, of probabilities.

    Source: Fang et al. 2021, https://arxiv.org/abs/2105.01928; mmdet's `DynamicMaskHead`
    """

    num_classes: Count = 80
    class_agnostic: bool = False
    loss_mask: Loss = DiceLoss(loss_weight=8.0, activate=False, eps=1e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        masks = jax.ShapeDtypeStruct((2, 4, 4), np.float32)
        weight = jax.ShapeDtypeStruct((2,), np.float32)
        try:
            jax.eval_shape(self.loss_mask.update, self.loss_mask.init(), masks, masks, weight, 1.0)
        except (TypeError, ValueError) as error:
            raise self.value_error(
                "loss_mask gets probabilities (N, h, w), targets (N, h, w) and weight (N,), which "
                f"does not fit {self.loss_mask!r}: {error}"
            ) from error

    @property
    def channels(self) -> int:
        """How many channels the outputs have."""
        return 1 if self.class_agnostic else self.num_classes

    def probabilities(self, mask_preds: jax.Array, labels: jax.Array) -> jax.Array:
        """The masks (B, G, h, w) of the labels (B, G), of logits with channels behind.

        Of those with a negative label nothing is read.
        """
        own = jnp.minimum(labels, 0) if self.class_agnostic else labels
        is_own = own[..., None] == jnp.arange(self.channels, dtype=own.dtype)[None, None]
        logits = jnp.where(is_own[:, :, None, None], mask_preds, 0).sum(axis=-1)
        return jax.nn.sigmoid(logits)

    def update(
        self,
        state: States,
        probabilities: jax.Array,
        targets: jax.Array,
        weights: jax.Array,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """(losses, next state) of masks and targets (B, G, h, w), of weights (B, G) of 0 or 1."""
        count = clamp_min(reduce_sum(weights.sum(), axis_name), 1)
        shape = (-1, *targets.shape[2:])
        value, state_of_loss = self.loss_mask.update(
            state["loss_mask"],
            probabilities.reshape(shape),
            targets.reshape(shape),
            weights.reshape(-1),
            avg_factor_of_device(count, axis_name),
            axis_name=axis_name,
        )
        return {"loss_mask": value}, state | {"loss_mask": state_of_loss}


# Its config holds its branches' configs.
HEADS.parts = {DynamicMaskHead: BRANCHES, **HEADS.parts}


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class SparseRoIHead(QueryHead):
    """Sparse R-CNN's criterion, of all stages: each region learns one box, or background.

    In each stage `assigner` matches the boxes of an image with its Q regions, one each, at the
    least total cost. `loss_cls` is the sum over all regions, `loss_bbox`, of x1, y1, x2, y2 in
    fractions of the image, and `loss_iou`, of the same in pixels, are sums over the matched ones;
    all are divided by max(n, 1), n being the number of matched regions of the batch. (mmdet divides
    by n: without any box in the batch its class loss is 10^8.) The matching has no gradient.

    Losses are called "s0.loss_cls" and so on, and are those of the stage times its weight.

    QueryInst's have a `mask_head`. A network makes the masks of the matched regions only, one for
    each box of the ground truth, in its order:

      targets = roi.targets(boxes_and_logits, gt_boxes, gt_labels, image_shapes)
      regions = roi.matched(targets.gt_inds, gt_labels)  # (L, B, G), -1 without one
      outputs = boxes_and_logits._replace(mask_preds=network(features, regions))
      losses = roi.loss(outputs, gt_boxes, gt_labels, image_shapes, gt_masks)

    Args:
      loss_bbox: Loss of the corners, in fractions of the image.
      loss_iou: Loss of the boxes as x1, y1, x2, y2, in pixels.
      mask_head: The loss of masks; None for a detector without masks.
      stage_loss_weights: Factors of the stages' losses, at least 0, one for each stage. Larger
        values make a stage count more.
      pos_weight: Weight of the matched regions in the class loss, above 0. Any other number means
        1.
      mask_size: Height and width of the masks, or one number for both.
      num_stages: Their number, as configs of mmdet state it; None takes that of the weights.

    Source: Sun et al. 2020, https://arxiv.org/abs/2011.12450; mmdet's `SparseRoIHead`, `DIIHead`
    """

    bbox_rule: ClassVar[Rule] = FINITE  # Regions are in pixels.

    loss_cls: Loss = FocalLoss(loss_weight=2.0)
    loss_bbox: Loss = L1Loss(loss_weight=5.0)
    loss_iou: Loss = GIoULoss(loss_weight=2.0)
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(FocalLossCost(weight=2.0), BBoxL1Cost(weight=5.0), IoUCost(weight=2.0))
    )
    mask_head: DynamicMaskHead | None = None
    stage_loss_weights: Annotated[tuple[float, ...], Range(0)] = (1.0,) * 6
    pos_weight: Finite = -1
    mask_size: int | tuple[int, ...] = 28
    num_stages: Count | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        count = len(self.stage_loss_weights)
        if not count or self.num_stages not in (None, count):
            raise self.value_error(
                f"there must be one weight for each of one stage or more, got "
                f"stage_loss_weights={self.stage_loss_weights} and num_stages={self.num_stages}"
            )
        if self.mask_head is not None and self.mask_head.num_classes != self.num_classes:
            raise self.value_error(
                f"mask_head must have num_classes={self.num_classes}, as the boxes have, got "
                f"{self.mask_head.num_classes}"
            )

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet, whose lists have an entry for each stage.

        Raises: ValueError for lists whose entries differ, for a `bbox_head` that is no DIIHead, and
          for a sampler that samples.
        """
        settings = dict(settings)
        if "bbox_head" in settings:
            branch = as_dict(_of_all_stages("bbox_head", settings.pop("bbox_head")))
            kind = str(branch.pop("type", None)).rpartition(".")[2]
            if kind != "DIIHead":
                raise ValueError(f"SparseRoIHead: bbox_head must be a DIIHead, got {kind}")
            # It says how a network's deltas become the boxes that are given here.
            branch.pop("bbox_coder", None)
            settings = branch | settings
        if settings.get("mask_head") is not None:
            settings["mask_head"] = _of_all_stages("mask_head", settings["mask_head"])
        learnt = as_dict(_of_all_stages("train_cfg", train_cfg) or {})
        learnt.pop("debug", None)
        sampler = learnt.pop("sampler", {"type": "PseudoSampler"})
        if not is_config(sampler) or not str(sampler["type"]).endswith("PseudoSampler"):
            raise ValueError(
                "SparseRoIHead: the sampler must be a PseudoSampler, since every region takes "
                f"part, got {sampler}"
            )
        return settings | learnt

    # What users call.

    @compiled
    def update(
        self,
        state: States,
        outputs: SparseRoIOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        gt_masks: jax.Array | None = None,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from stage to stage.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `SparseRoIOutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes nothing is read.
          image_shapes: (B, 2) height and width of each image in pixels.
          gt_masks: (B, G, H, W) the bitmaps of the ground truth, 0 and 1 of any type, for a head
            with a `mask_head`.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each region's box,
            1 for the first and 0 for none. A region of -1 is left out.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        targets = self.targets(outputs, gt_boxes, gt_labels, image_shapes, gt_inds=gt_inds)
        count = len(self.stage_loss_weights)
        if len(outputs.cls_scores) != count:
            raise ValueError(f"outputs must be of {count} stages, got {len(outputs.cls_scores)}")
        dtype = targets.bbox_targets.dtype
        shapes = jnp.asarray(image_shapes)
        masks = self._masks(outputs, targets.gt_inds, gt_labels, gt_masks)

        def compute(criterion: Criterion, stage: Any) -> None:
            cls_scores, boxes, targets, masks = stage
            weight = targets.bbox_weights
            count = criterion.total(weight.sum())
            criterion.add("loss_cls", cls_scores, targets.labels, targets.label_weights, count)
            fractions = normalize_boxes(boxes, shapes)
            criterion.add("loss_bbox", fractions, targets.bbox_targets, weight, count)
            in_pixels = denormalize_boxes(targets.bbox_targets, shapes)
            criterion.add("loss_iou", boxes, in_pixels, weight, count)
            if masks is not None:
                assert self.mask_head is not None
                of_masks, criterion.state["mask_head"] = self.mask_head.update(
                    criterion.state["mask_head"], *masks, axis_name=axis_name
                )
                criterion.losses |= of_masks

        arrays = (outputs.cls_scores, outputs.bbox_preds.astype(dtype), targets, masks)
        by_stage, state = self.losses_of_layers(compute, state, arrays, axis_name)
        losses = {
            f"s{i}.{name}": weight * value
            for i, weight in enumerate(self.stage_loss_weights)
            for name, value in by_stage[i].items()
        }
        return losses, state

    loss = without_state(update)

    @compiled
    def targets(
        self,
        outputs: SparseRoIOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_inds: jax.Array | None = None,
    ) -> HeadTargets:
        """What each region learns in each stage, (L, B, Q, ...). The arguments are those of `loss`.

        The stages may be fewer than the head has, and their masks missing. `bbox_targets` are
        corners in fractions of the image.
        """
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        boxes = outputs.bbox_preds.astype(shapes.dtype)
        boxes = jax.vmap(normalize_boxes, in_axes=(0, None))(boxes, shapes)
        matching = self.match({"": QuerySets(outputs.cls_scores, boxes, gt)}, shapes, {"": gt_inds})
        targets = self.targets_of(matching[""], gt, shapes)
        corners = convert_boxes(targets.bbox_targets, "cxcywh", "xyxy")
        return self.make_targets(
            targets.gt_inds, targets.labels, corners, pos_weight=self.pos_weight
        )

    @compiled
    def matched(self, gt_inds: jax.Array, gt_labels: jax.Array) -> jax.Array:
        """The region (L, B, G) that each box is matched with; -1 without one.

        Of these a network makes masks.

        Args:
          gt_inds: (L, B, Q) as `targets` has it.
          gt_labels: (B, G), see `loss`.
        """
        gt_labels = as_labels("gt_labels", gt_labels)
        check_array("gt_inds", gt_inds)
        numbers = jnp.arange(1, gt_labels.shape[-1] + 1, dtype=gt_inds.dtype)
        regions = jnp.arange(gt_inds.shape[-1], dtype=jnp.int32)
        is_own = gt_inds[..., None] == numbers[None, None, None]
        return jnp.where(is_own, regions[None, None, :, None], -1).max(axis=2, initial=-1)

    @compiled
    def decode(
        self, outputs: SparseRoIOutputs, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> Detections:
        """Boxes and scores of the last stage's regions. There are no duplicates to suppress.

        Scores are sigmoid(cls_scores), or the softmax without the background.

        Args:
          outputs: What the network gave; see `SparseRoIOutputs`.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all. Boxes are clipped to them where given.
        """
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        scores = self.scores(outputs.cls_scores[-1].astype(dtype))
        shapes = None if image_shapes is None else jnp.asarray(image_shapes)
        return Detections(clip_to_image(outputs.bbox_preds[-1].astype(dtype), shapes), scores)

    @compiled
    def detect(
        self, outputs: SparseRoIOutputs, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> KeptDetections:
        """The best predictions of the last stage, of all classes, as `test_cfg` says.

        Args:
          outputs, image_shapes: See `decode`.

        Returns: as `QueryHead.detect`.
        """
        return self.best_of(self.decode(outputs, image_shapes), best_class=False)

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, _ = examples["loss_cls"]  # A loss of a quality would get labels alone too.
        return examples | {"loss_cls": (logits, jax.ShapeDtypeStruct((rows,), np.int32))}

    def expects(
        self,
        outputs: SparseRoIOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        gt_masks: jax.Array | None = None,
        **options: Any,
    ) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        without_masks = outputs._replace(mask_preds=None)
        expected = super().expects(without_masks, gt_boxes, gt_labels, image_shapes, **options)
        if outputs.mask_preds is not None:
            exists = as_labels("gt_labels", gt_labels)[None, ..., None, None, None] >= 0
            expected.append(Expected("mask_preds", outputs.mask_preds, FINITE, exists))
        return [*expected, Expected("gt_masks", gt_masks, UNIT)]

    # The rest.

    def corners(self, boxes: jax.Array) -> jax.Array:
        """The boxes as they are: regions have corners."""
        return boxes

    def _masks(
        self,
        outputs: SparseRoIOutputs,
        gt_inds: jax.Array,
        gt_labels: jax.Array,
        gt_masks: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array] | None:
        """(probabilities, targets, weights) of the masks (L, B, G, h, w); None without any."""
        preds = outputs.mask_preds
        if self.mask_head is None:
            if gt_masks is not None or preds is not None:
                raise ValueError("gt_masks and mask_preds must be None: this head has no mask_head")
            return None
        if gt_masks is None or preds is None:
            raise ValueError("gt_masks and outputs.mask_preds must be given for the mask_head")
        labels = as_labels("gt_labels", gt_labels)
        height, width = (
            self.mask_size if isinstance(self.mask_size, tuple) else (self.mask_size,) * 2
        )
        shape = (*gt_inds.shape[:2], labels.shape[1], height, width, self.mask_head.channels)
        check_array("mask_preds", preds)
        check_array("gt_masks", gt_masks)
        if preds.shape != shape:
            raise ValueError(f"mask_preds must have shape {shape}, got {preds.shape}")
        if gt_masks.ndim != 4 or gt_masks.shape[:2] != labels.shape:
            expected = ", ".join(map(str, labels.shape))
            raise ValueError(f"gt_masks must have shape ({expected}, H, W), got {gt_masks.shape}")
        dtype = compute_dtype(pred=preds)
        regions = self.matched(gt_inds, labels)
        numbers = jnp.arange(1, labels.shape[1] + 1, dtype=jnp.int32)
        own = jnp.where(regions >= 0, numbers[None, None], 0)
        boxes = jax.vmap(jax.vmap(pick))(outputs.bbox_preds.astype(dtype), regions + 1)

        def crop(masks: jax.Array, boxes: jax.Array, gt_inds: jax.Array) -> jax.Array:
            return crop_masks(masks, boxes, gt_inds, output_size=(height, width))

        targets = jax.vmap(jax.vmap(crop), in_axes=(None, 0, 0))(gt_masks, boxes, own)
        labels = jnp.where(regions >= 0, labels[None], -1)
        probabilities = jax.vmap(self.mask_head.probabilities)(preds.astype(dtype), labels)
        return probabilities, targets, (regions >= 0).astype(dtype)

    def _check_outputs(self, outputs: Any) -> None:
        if not isinstance(outputs, SparseRoIOutputs):
            raise TypeError(f"outputs must be SparseRoIOutputs, got {type(outputs).__name__}")
        leading = None
        for name, size in self.channels.items():
            x = getattr(outputs, name)
            check_array(name, x)
            if x.ndim != 4 or x.shape[-1] != size:
                raise ValueError(f"{name} must have shape (L, B, Q, {size}), got {x.shape}")
            if leading not in (None, x.shape[:-1]):
                raise ValueError(
                    f"cls_scores and bbox_preds must have the same (L, B, Q), got {leading} and "
                    f"{x.shape[:-1]}"
                )
            leading = x.shape[:-1]


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class EmbeddingRPNHead(WithLosses):
    """The first stage of Sparse R-CNN: regions that are parameters of the network. It has no loss.

    Args:
      num_proposals: Number of regions of each image, at least 1.

    Source: Sun et al. 2020, https://arxiv.org/abs/2011.12450; mmdet's `EmbeddingRPNHead`
    """

    num_proposals: Count = 100

    @compiled
    def proposals(self, init_boxes: jax.Array, image_shapes: Shapes) -> Proposals:
        """The regions of each image, in pixels.

        Args:
          init_boxes: (P, 4) the parameters, as cx, cy, w, h in fractions of the image. They begin
            as the whole image: 0.5, 0.5, 1, 1.
          image_shapes: (B, 2) height and width of each image in pixels.
        """
        check_array("init_boxes", init_boxes)
        if init_boxes.shape != (self.num_proposals, 4):
            raise ValueError(
                f"init_boxes must have shape ({self.num_proposals}, 4), got {init_boxes.shape}"
            )
        shapes = jnp.asarray(image_shapes)
        boxes = convert_boxes(init_boxes.astype(compute_dtype(pred=init_boxes)), "cxcywh", "xyxy")
        boxes = denormalize_boxes(jnp.broadcast_to(boxes, (len(shapes), *boxes.shape)), shapes)
        return Proposals(boxes, jnp.ones(boxes.shape[:2], bool))


def _of_all_stages(name: str, value: Any) -> Any:
    """The one config that a list repeats for every stage, or the config itself.

    Raises: ValueError where the stages differ.
    """
    if value is None or is_config(value):
        return value
    first, *others = value
    if any(other != first for other in others):
        raise ValueError(
            f"SparseRoIHead: {name} must be the same for all stages, got a list that differs"
        )
    return first
