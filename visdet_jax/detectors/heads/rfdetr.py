"""RF-DETR's criterion."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.points import Mode, sample_points, uncertain_points
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.hyperparameters import Count
from visdet_jax.core.names import did_you_mean
from visdet_jax.core.rules import FINITE, Rule
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import FocalLossCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads._set_criterion import (
    LEAST_AREA,
    Layers,
    SetCriterion,
    values_of,
    weight_of,
)
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.heads.query_head import QuerySets, check_axes
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    HeadTargets,
    Losses,
    MaskPoints,
    RFDETROutputs,
    Shapes,
    States,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss
from visdet_jax.losses.quality.iou_aware_bce import IoUAwareBCELoss
from visdet_jax.losses.quality.varifocal import VarifocalLoss
from visdet_jax.reduction import AVG_FACTOR_EPS
from visdet_jax.registry import as_dict

OVERSAMPLING, IMPORTANCE = 3, 0.75


class Masks(NamedTuple):
    """What S layers predict as masks, and where they are compared; see `MaskPoints`."""

    preds: jax.Array  # Logits (S, B, Q, h, w).
    matching: jax.Array  # (S, P, 2)
    candidates: jax.Array | None = None  # (S, B, Q, ., 2)
    rest: jax.Array | None = None  # (S, B, Q, ., 2)
    keys: jax.Array | None = None  # (S,), where candidates and the rest are drawn.


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RFDETRCriterion(SetCriterion):
    """RF-DETR's criterion: groups of queries, each of which is matched with all boxes.

    In training the queries are `group_detr` groups of equal size, one after the other, each with a
    matching of its own, in each layer of the decoder and in the encoder. With n the number of boxes
    of the whole batch times the number of groups, at least 1, `loss_ce` is the sum over the
    queries, and `loss_bbox`, of centres and sizes in fractions of the image, and `loss_giou`, of
    corners, are the sums over the matched queries, all divided by n. A loss of a quality gets
    (label, IoU of the box). The matching and the IoU have no gradient.

    Masks are compared at points, by `loss_mask_ce` and `loss_mask_dice`: three quarters of them
    where the prediction is the least certain of three times as many, the others anywhere. They are
    matched at points that are the same for the whole batch.

    The losses of the layers before the last are called "loss_ce_0" and so on, those of the encoder
    "loss_ce_enc". They are weighted; the project weights them outside of its criterion.

    `build_head` also takes the arguments of the project's `SetCriterion`, by their names.

    Args:
      loss_mask_ce: Loss of the masks' logits at P points, (N, P). None for a model without masks.
      loss_mask_dice: Loss of the masks' logits at P points, (N, P). None for a model without masks.
      group_detr: Number of groups in training, at least 1. Larger values learn from more queries.
      sum_group_losses: The sums are divided by the number of boxes alone.
      relative_quality: The classes learn the IoU divided by the largest of the image.
      mask_point_sample_ratio: Pixels of a predicted mask for each point, at least 1. Larger values
        compare masks at fewer points.

    Source: Robinson et al. 2025, https://arxiv.org/abs/2511.09554; the facts of rf-detr's
      `SetCriterion`
    """

    outputs_type: ClassVar[Any] = RFDETROutputs
    # What the network adds to its proposals may lead out of the image.
    bbox_rule: ClassVar[Rule] = FINITE
    parts: ClassVar[Mapping[str, str]] = {"": "LBQ", "enc_": "BP"}

    loss_cls: Loss = IoUAwareBCELoss(alpha=0.25, gamma=2.0)
    loss_mask_ce: Loss | None = None
    loss_mask_dice: Loss | None = None
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            FocalLossCost(weight=2.0, eps=0.0),
            BBoxL1Cost(weight=5.0, box_format="xywh"),
            IoUCost(weight=2.0),
        )
    )
    group_detr: Count = 13
    sum_group_losses: bool = False
    relative_quality: bool = False
    mask_point_sample_ratio: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.loss_mask_ce is None) != (self.loss_mask_dice is None):
            raise self.value_error("loss_mask_ce and loss_mask_dice come together")

    # What users call.

    @compiled
    def update(
        self,
        state: States,
        outputs: RFDETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_masks: jax.Array | None = None,
        key: jax.Array | None = None,
        points: MaskPoints | None = None,
        gt_inds: jax.Array | None = None,
        enc_gt_inds: jax.Array | None = None,
        training: bool = True,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `RFDETROutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes and masks nothing is read.
          image_shapes: (B, 2) height and width in pixels of each image, of which the predicted
            boxes are fractions.
          gt_masks: (B, G, H, W) of any type, 0 and 1, of the same part of the image as the
            predicted ones; where masks are learnt.
          key: A `jax.random.key`, where masks are learnt.
          points: The points in place of random ones.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's box,
            1 for the first and 0 for none. A query of -1 is left out.
          enc_gt_inds: (B, P) likewise, of the encoder's proposals.
          training: Whether the queries are in groups. Outside of training they are one group.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        masks, gt_masks = self._masks(outputs, gt, gt_masks, key, points)
        sets = self._sets(outputs, gt, masks, gt_masks)
        groups = self.group_detr if training else 1
        given = {"": gt_inds, "enc_": enc_gt_inds}
        learnt = self.match_parts(outputs, sets, shapes, given, groups=groups)
        counted = 1 if self.sum_group_losses else groups
        divisor = self.divisor(counted * self.number_of_boxes(gt), axis_name)
        add = functools.partial(self._add, gt_masks=gt_masks, divisor=divisor)
        losses: Losses = {}
        for part, queries in sets.items():
            layers = Layers(queries.cls_scores, queries.bbox_preds, learnt[part], masks.get(part))
            found, state = self.losses_of_part(part, add, state, layers, axis_name)
            losses |= found
        return losses, state

    loss = without_state(update)

    @compiled
    def targets(
        self,
        outputs: RFDETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_masks: jax.Array | None = None,
        key: jax.Array | None = None,
        points: MaskPoints | None = None,
        gt_inds: jax.Array | None = None,
        training: bool = True,
    ) -> HeadTargets:
        """What each query learns in each layer, (L, B, Q, ...). The arguments are those of `loss`.

        `bbox_targets` are centres and sizes in fractions of the image.
        """
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        masks, gt_masks = self._masks(outputs, gt, gt_masks, key, points)
        sets = {"": self._sets(outputs, gt, masks, gt_masks)[""]}
        groups = self.group_detr if training else 1
        return self.match_parts(outputs, sets, shapes, {"": gt_inds}, groups=groups)[""]

    @classmethod
    def from_project(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our config for the arguments of the project's `SetCriterion`, told by their names.

        Raises: ValueError for a key that there is not.
        """
        if not config.keys() & {"weight_dict", "losses", "matcher"}:
            return config
        owner = cls.__name__
        same = ("type", "num_classes", "group_detr", "sum_group_losses", "mask_point_sample_ratio")
        fields = {key: config[key] for key in same if key in config}
        rest = {key: value for key, value in config.items() if key not in same}
        weights, losses, matcher, alpha, varifocal, position, ia_bce = values_of(
            rest,
            {
                "weight_dict": {},
                "losses": ("labels", "boxes"),
                "matcher": {},
                "focal_alpha": 0.25,
                "use_varifocal_loss": False,
                "use_position_supervised_loss": False,
                "ia_bce_loss": False,
            },
            owner,
        )
        for name in losses:
            if name not in ("labels", "boxes", "masks", "cardinality"):
                raise ValueError(f"{owner}: losses has no {name!r}")
        if not {"labels", "boxes"} <= set(losses):
            raise ValueError(f"{owner}: losses must have 'labels' and 'boxes', got {losses}")
        weights = _weights(weights, owner)
        loss_cls: dict[str, Any] = {"type": "FocalLoss", "alpha": alpha, "gamma": 2.0}
        if varifocal:
            loss_cls = {"type": "VarifocalLoss", "alpha": 1 - alpha, "gamma": 2.0}
        if position:
            loss_cls = {"type": "QualityFocalLoss", "alpha": alpha, "beta": 2.0}
        if ia_bce:
            loss_cls = {"type": "IoUAwareBCELoss", "alpha": alpha, "gamma": 2.0}
        fields["relative_quality"] = bool(position and not ia_bce)
        learnt = {
            "loss_ce": loss_cls,
            "loss_bbox": {"type": "L1Loss"},
            "loss_giou": {"type": "GIoULoss", "eps": LEAST_AREA},
        }
        if "masks" in losses:
            learnt["loss_mask_ce"] = {"type": "CrossEntropyLoss", "use_sigmoid": True}
            learnt["loss_mask_dice"] = {"type": "DiceLoss", "naive_dice": True, "eps": 1.0}
        ours = {"loss_ce": "loss_cls", "loss_giou": "loss_iou"}
        for name, loss in learnt.items():
            weight = weight_of(weights, name, owner)
            fields[ours.get(name, name)] = {**loss, "loss_weight": weight}
        matcher = as_dict(matcher)
        ratio = fields.setdefault(
            "mask_point_sample_ratio", matcher.get("mask_point_sample_ratio", 16)
        )
        if matcher.pop("mask_point_sample_ratio", ratio) != ratio:
            raise ValueError(f"{owner}: mask_point_sample_ratio must be the same in the matcher")
        fields["assigner"] = _assigner(matcher, "masks" in losses, f"{owner}: matcher")
        return fields

    # What a subclass may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        points = jax.ShapeDtypeStruct((rows, 8), np.float32)
        for name in ("loss_mask_ce", "loss_mask_dice"):
            if getattr(self, name) is not None:
                examples[name] = (points, points)
        return examples

    def class_targets(self, targets: HeadTargets, bbox_preds: jax.Array) -> Any:
        if not isinstance(self.loss_cls, QualityLoss):
            return targets.labels
        quality = self.overlap(bbox_preds, targets)
        if self.relative_quality:
            quality /= quality.max(-1, keepdims=True, initial=0) + 1e-8
        labels = targets.labels
        if isinstance(self.loss_cls, VarifocalLoss):  # Its positives are those with an IoU.
            labels = jnp.where(quality > 0, labels, self.num_classes)
        return labels, quality

    def name_of_loss(self, name: str) -> str:
        return "loss_ce" if name == "loss_cls" else super().name_of_loss(name)

    def name_of_layer(self, part: str, number: int, count: int) -> str:
        if part:
            return f"_{part.removesuffix('_')}"
        return "" if number == count - 1 else f"_{number}"

    def sizes_of(self, outputs: Any) -> dict[str, int]:
        sizes = super().sizes_of(outputs)
        for part, axes in self.parts.items() if self.loss_mask_ce is not None else ():
            if getattr(outputs, f"{part}cls_scores") is not None:
                name = f"{part}mask_preds"
                x = getattr(outputs, name)
                check_axes(name, x, f"{axes}h", x.shape[-1:] if hasattr(x, "shape") else (), sizes)
        return sizes

    # The rest.

    def _add(
        self, criterion: Criterion, layer: Layers, *, gt_masks: Any, divisor: jax.Array
    ) -> None:
        """Adds all losses of one layer to the criterion."""
        self.add_loss_of_classes(criterion, layer, divisor)
        self.add_losses_of_boxes(criterion, layer.bbox_preds, layer.targets, divisor)
        if layer.more is None:
            return
        pred, target = self._masks_at_points(layer.more, layer.targets, gt_masks)
        weight = layer.targets.bbox_weights
        # The mean over the points. The loss adds the eps.
        of_points = (divisor + AVG_FACTOR_EPS) * pred.shape[-1] - AVG_FACTOR_EPS
        criterion.add("loss_mask_ce", pred, target, weight, of_points)
        criterion.add("loss_mask_dice", pred, target, weight, divisor)

    def _masks_at_points(
        self, masks: Masks, targets: HeadTargets, gt_masks: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The predicted masks and those of the boxes, (B, Q, points)."""
        preds = masks.preds
        batch, queries, height, width = preds.shape
        own = jnp.broadcast_to(jnp.arange(queries, dtype=jnp.int32)[None], (batch, queries))
        own = sharded_as(own, preds)
        points = uncertain_points(
            masks.keys,
            preds,
            own,
            num_points=max(height, self._number_of_points(height, width)),
            oversample_ratio=OVERSAMPLING,
            importance_ratio=IMPORTANCE,
            padding="border",
            candidates=masks.candidates,
            rest=masks.rest,
        )
        learnt = jnp.maximum(targets.gt_inds - 1, 0)
        pred = sample_points(preds, points, own, padding="border")
        target = sample_points(gt_masks, points, learnt, mode="nearest", padding="border")
        return pred, jax.lax.stop_gradient(target).astype(pred.dtype)

    def _number_of_points(self, height: int, width: int) -> int:
        return height * width // self.mask_point_sample_ratio

    def _masks(
        self, outputs: RFDETROutputs, gt: Instances, gt_masks: Any, key: Any, points: Any
    ) -> tuple[dict[str, Masks], Any]:
        """The masks of each part, and those of the ground truth; nothing where none are learnt."""
        if self.loss_mask_ce is None:
            return {}, None
        if points is None and key is None:
            raise ValueError("masks are compared at random points: give a key, or the points")
        labels: Any = gt.labels
        check_array("gt_masks", gt_masks)
        batch, boxes = labels.shape
        if gt_masks.ndim != 4 or gt_masks.shape[0] != batch or gt_masks.shape[1] not in (boxes, 0):
            expected = f"({batch}, {boxes}, H, W)"
            raise ValueError(f"gt_masks must have shape {expected}, got {gt_masks.shape}")
        if gt_masks.shape[1] == 0:
            gt_masks = jnp.zeros((batch, 1, *gt_masks.shape[2:]), bool)
        masks, start = {}, 0
        for part in self.parts:
            if (preds := getattr(outputs, f"{part}mask_preds")) is None:
                continue
            preds = preds if not part else preds[None]
            stop = start + len(preds)
            if points is None:
                of_matching, of_losses = jax.random.split(jax.random.fold_in(key, start))
                shape = len(preds), self._number_of_points(*preds.shape[-2:]), 2
                matching = jax.random.uniform(of_matching, shape, gt.bboxes.dtype)  # type: ignore[union-attr]
                masks[part] = Masks(preds, matching, keys=jax.random.split(of_losses, len(preds)))
            else:
                masks[part] = Masks(preds, *(x[start:stop] for x in points))
            start = stop
        return masks, gt_masks

    def _sets(
        self, outputs: RFDETROutputs, gt: Instances, masks: dict[str, Masks], gt_masks: Any
    ) -> dict[str, QuerySets]:
        """The queries of each part, with masks at the points by which they are matched."""
        sets = self.sets_of(outputs, gt)
        for part, (preds, points, *_) in masks.items():
            sets[part] = sets[part]._replace(
                mask_preds=_at_shared_points(preds, points, "bilinear"),
                gt_masks=_at_shared_points(gt_masks, points, "nearest"),
            )
        return sets


def _at_shared_points(images: jax.Array, points: jax.Array, mode: Mode) -> jax.Array:
    """What maps hold at points (S, P, 2), which all of them share: (S, B, Q, P).

    Args:
      images: (S, B, Q, h, w), or (B, Q, h, w) for all S.
      points: As x, y in fractions of the map.
      mode: See `sample_points`.
    """

    def read(image: jax.Array, points: jax.Array) -> jax.Array:
        return sample_points(image, points, mode=mode, padding="border")

    of_layer = jax.vmap(jax.vmap(read, in_axes=(0, None)), in_axes=(0, None))
    values: jax.Array = jax.vmap(of_layer, in_axes=(0 if images.ndim == 5 else None, 0))(
        images, points
    )
    return values


def _weights(weights: Any, owner: str) -> dict[str, Any]:
    """The weights of a `weight_dict` without those of single layers, which must be the same."""
    names = ("loss_ce", "loss_bbox", "loss_giou", "loss_mask_ce", "loss_mask_dice")
    found: dict[str, Any] = {}
    for key, weight in as_dict(weights).items():
        name, _, layer = key.rpartition("_")
        name = name if layer == "enc" or layer.isdigit() else key
        if name not in names:
            hint = did_you_mean(name, names)
            raise ValueError(f"{owner}: weight_dict has no loss {key!r}.{hint}")
        if found.setdefault(name, weight) != weight:
            raise ValueError(
                f"{owner}: a loss has one weight for all layers, got {found[name]} and {weight} of "
                f"{key}"
            )
    return found


def _assigner(matcher: Any, has_masks: bool, owner: str) -> dict[str, Any]:
    """The config of an assigner for that of rf-detr's `HungarianMatcher`."""
    costs = ("cost_class", "cost_bbox", "cost_giou", "cost_mask_ce", "cost_mask_dice")
    # These have no effect in the project.
    others = ("focal_alpha", "use_pos_only", "use_position_modulated_cost")
    keys = {**dict.fromkeys(costs, 1), "type": "HungarianMatcher", **dict.fromkeys(others)}
    cost_class, cost_bbox, cost_giou, mask_ce, mask_dice, kind, *_ = values_of(matcher, keys, owner)
    if kind != "HungarianMatcher":
        raise ValueError(f"{owner} must be a HungarianMatcher, got {kind!r}")
    of_masks = [
        {"type": "CrossEntropyLossCost", "weight": mask_ce},
        {"type": "DiceCost", "weight": mask_dice, "pred_act": True, "eps": 1.0},
    ]
    return {
        "type": "HungarianAssigner",
        "match_costs": [
            {"type": "FocalLossCost", "weight": cost_class, "eps": 0.0},
            {"type": "BBoxL1Cost", "weight": cost_bbox, "box_format": "xywh"},
            {"type": "IoUCost", "weight": cost_giou},
            *(of_masks if has_masks else ()),
        ],
    }
