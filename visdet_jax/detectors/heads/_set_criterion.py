"""What the criteria share that are no heads of mmdet: RT-DETR's, D-FINE's, DEIM's and RF-DETR's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import columns
from visdet_jax.boxes.overlap import OverlapMode, overlaps
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Count
from visdet_jax.core.names import did_you_mean
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import FocalLossCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.query_head import QueryHead, QuerySets
from visdet_jax.detectors.structures import AxisName, HeadTargets, Losses, States
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss
from visdet_jax.losses.regression.smooth_l1 import L1Loss
from visdet_jax.reduction import AVG_FACTOR_EPS
from visdet_jax.registry import as_dict

# The least union of two boxes that is divided by, in fractions of the image's area. The projects
# have none and give NaN where both boxes are without area. It is less than a pixel's millionth.
LEAST_AREA = 1e-12


class Layers(NamedTuple):
    """What S layers gave for Q queries of B images, and what they learn by their own matching."""

    cls_scores: jax.Array  # Logits (S, B, Q, C).
    bbox_preds: jax.Array  # (S, B, Q, 4) as cx, cy, w, h in fractions of the image.
    targets: HeadTargets  # (S, B, Q, ...)
    more: Any = None  # What a criterion has besides, (S, B, Q, ...).


# Adds the losses of one layer, of arrays (B, Q, ...), to a criterion.
AddLosses = Callable[[Criterion, Layers], None]


@dataclass(frozen=True, kw_only=True)
class SetCriterion(QueryHead):
    """Base of the criteria that are no heads of mmdet.

    The outputs have parts: the layers of a decoder, an encoder's proposals, denoising queries, and
    so on. Each part is some layers of queries, each of which is matched with the boxes and has a
    few losses. A sum is divided by the number of boxes, at least 1, without mmdet's eps.

    Args:
      loss_iou: Loss of the boxes as x1, y1, x2, y2, in fractions of the image.
    """

    outputs_type: ClassVar[Any]
    # The axes of the parts of the outputs, by what their names start with.
    parts: ClassVar[Mapping[str, str]]

    num_classes: Count = 80
    loss_bbox: Loss = L1Loss(loss_weight=5.0)
    loss_iou: Loss = GIoULoss(eps=LEAST_AREA, loss_weight=2.0)
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            FocalLossCost(weight=2.0, eps=1e-8),
            BBoxL1Cost(weight=5.0, box_format="xywh"),
            IoUCost(weight=2.0),
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_unless_sigmoid()

    # What a subclass may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        if isinstance(self.loss_cls, QualityLoss):
            scores = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_cls"] = (logits, (labels, scores))
        return examples

    def corners(self, boxes: jax.Array) -> jax.Array:
        """Boxes (..., 4) as cx, cy, w, h as their corners. A size below 0 counts as 0."""
        x, y, w, h = columns(boxes)
        w, h = clamp_min(w, 0) / 2, clamp_min(h, 0) / 2
        return jnp.stack([x - w, y - h, x + w, y + h], axis=-1)

    def class_targets(self, targets: HeadTargets, bbox_preds: jax.Array) -> Any:
        """The target of the class loss of one layer, (B, Q, ...)."""
        if isinstance(self.loss_cls, QualityLoss):
            return targets.labels, self.overlap(bbox_preds, targets)
        return targets.labels

    def weight_of_iou(self, bbox_preds: jax.Array, targets: HeadTargets) -> jax.Array:
        """The weight of `loss_iou` of one layer, (B, Q)."""
        return targets.bbox_weights

    def name_of_loss(self, name: str) -> str:
        """The project's name for the loss of a field."""
        return "loss_giou" if name == "loss_iou" else name

    def name_of_layer(self, part: str, number: int, count: int) -> str:
        """What stands behind the names of the losses of a layer, one of so many of its part."""
        raise NotImplementedError(f"{type(self).__name__} must define name_of_layer")

    # What subclasses share.

    def sets_of(self, outputs: Any, gt: Instances) -> dict[str, QuerySets]:
        """The queries of the parts that there are; each part has an axis of layers."""
        sets = {}
        boxes: Any = gt.bboxes
        labels: Any = gt.labels
        for part, axes in self.parts.items():
            cls_scores, bbox_preds = (getattr(outputs, part + name) for name in _PREDICTIONS)
            if cls_scores is None:
                continue
            if "L" not in axes:
                cls_scores, bbox_preds = cls_scores[None], bbox_preds[None]
            learnt = gt
            if cls_scores.shape[-1] < self.num_classes:  # One channel, for boxes of any class.
                learnt = gt._replace(labels=jnp.minimum(labels, 0))
            sets[part] = QuerySets(cls_scores, bbox_preds.astype(boxes.dtype), learnt)
        return sets

    def match_parts(
        self,
        outputs: Any,
        sets: dict[str, QuerySets],
        image_shapes: jax.Array,
        given: dict[str, Any],
        *,
        shared: bool = False,
        groups: int = 1,
    ) -> dict[str, HeadTargets]:
        """What the classes of each part learn, (S, B, Q, ...), by their own matching.

        Args:
          outputs: The outputs, which say what denoising queries learn.
          sets: See `sets_of`.
          image_shapes: (B, 2) height and width in pixels.
          given: The matchings that are given, or None, by what stands before "gt_inds".
          shared: The layers of the decoder are matched as the last one is.
          groups: See `match`.
        """
        known = {key: x[None] if key and x is not None else x for key, x in given.items()}
        matched = dict(sets)
        for part, queries in sets.items():
            shape = queries.cls_scores.shape[:3]
            if part.startswith("dn_"):
                known[part] = jnp.broadcast_to(jnp.asarray(outputs.dn_gt_inds)[None], shape)
            elif not part and shared and known[part] is None:
                cls_scores, bbox_preds = (x[-1:] for x in queries[:2])
                matched[part] = queries._replace(cls_scores=cls_scores, bbox_preds=bbox_preds)
        found = self.match(matched, image_shapes, known, groups)
        return {
            part: self.targets_of(
                jnp.broadcast_to(found[part], queries.cls_scores.shape[:3]),
                queries.gt,
                image_shapes,
            )
            for part, queries in sets.items()
        }

    def divisor(self, count: jax.Array, axis_name: AxisName) -> jax.Array:
        """max(count, 1), with the count summed over all devices, for `Criterion.add`."""
        return clamp_min(reduce_sum(count, axis_name), 1) - AVG_FACTOR_EPS  # The loss adds it.

    def number_of_boxes(self, gt: Instances) -> jax.Array:
        """How many boxes all images have."""
        boxes: Any = gt.bboxes
        labels: Any = gt.labels
        return (labels >= 0).sum(dtype=boxes.dtype)

    def overlap(
        self, bbox_preds: jax.Array, targets: HeadTargets, mode: OverlapMode = "iou"
    ) -> jax.Array:
        """How well predictions (..., Q, 4) do for their boxes: 0 without a box; no gradient."""
        pred = self.corners(jax.lax.stop_gradient(bbox_preds))
        overlap = overlaps(pred, self.corners(targets.bbox_targets), mode, LEAST_AREA)
        return jnp.where(targets.bbox_weights > 0, overlap, 0)

    def add_loss_of_classes(self, criterion: Criterion, layer: Layers, divisor: jax.Array) -> None:
        """Adds the class loss of one layer to the criterion."""
        target = self.class_targets(layer.targets, layer.bbox_preds)
        weight = layer.targets.label_weights
        criterion.add("loss_cls", layer.cls_scores, target, weight, divisor)

    def add_losses_of_boxes(
        self,
        criterion: Criterion,
        bbox_preds: jax.Array,
        targets: HeadTargets,
        divisor: jax.Array,
    ) -> None:
        """Adds the losses of the boxes of one layer to the criterion."""
        learnt = targets.bbox_targets
        criterion.add("loss_bbox", bbox_preds, learnt, targets.bbox_weights, divisor)
        corners = self.corners(bbox_preds), self.corners(learnt)
        weight = self.weight_of_iou(bbox_preds, targets)
        criterion.add("loss_iou", *corners, weight, divisor)

    def losses_of_part(
        self, part: str, add: AddLosses, state: States, layers: Layers, axis_name: AxisName
    ) -> tuple[Losses, States]:
        """The losses of all layers of a part by their names, and the next state."""
        by_layer, state = self.losses_of_layers(add, state, layers, axis_name)
        losses: Losses = {}
        for number, of_layer in enumerate(by_layer):
            end = self.name_of_layer(part, number, len(by_layer))
            losses |= {self.name_of_loss(name) + end: x for name, x in of_layer.items()}
        return losses, state

    def _check_outputs(self, outputs: Any) -> None:
        self.sizes_of(outputs)

    def sizes_of(self, outputs: Any) -> dict[str, int]:
        """The sizes of the outputs' axes by their letters.

        Raises: TypeError, ValueError for outputs that this head does not take.
        """
        if not isinstance(outputs, self.outputs_type):
            expected = self.outputs_type.__name__
            raise TypeError(f"outputs must be {expected}, got {type(outputs).__name__}")
        sizes: dict[str, int] = {}
        for part, axes in self.parts.items():
            there = [name for name in _PREDICTIONS if getattr(outputs, part + name) is not None]
            if part and not there:
                continue
            for name in _PREDICTIONS:
                if name not in there:
                    raise ValueError(f"{part}{name} is missing, beside {part}{there[0]}")
                last: Any = (4,) if name == "bbox_preds" else (self.num_classes,)
                if part == "enc_" and name == "cls_scores":
                    last = (self.num_classes, 1)
                check_axes(part + name, getattr(outputs, part + name), axes, last, sizes)
        if "N" in sizes:
            if outputs.dn_gt_inds is None:
                raise ValueError("dn_gt_inds is missing, beside dn_cls_scores")
            as_labels("dn_gt_inds", outputs.dn_gt_inds, (sizes["B"], sizes["N"]))
        return sizes


_PREDICTIONS = ("cls_scores", "bbox_preds")


def check_axes(name: str, x: Any, axes: str, last: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Raises a ValueError unless an array has these axes, and then one of the sizes `last`.

    Args:
      axes: Letters of its axes but the last.
      sizes: The sizes of the axes that are known, by their letters. Those of others are added.
    """
    check_array(name, x)
    known = [sizes.get(axis) for axis in axes]
    fits = x.ndim == len(axes) + 1 and x.shape[-1] in last
    if not fits or any(n not in (None, m) for n, m in zip(known, x.shape, strict=False)):
        expected = [
            axis if n is None else f"{axis}={n}" for axis, n in zip(axes, known, strict=True)
        ]
        shape = ", ".join([*expected, " or ".join(map(str, last))])
        raise ValueError(f"{name} must have shape ({shape}), got {x.shape}")
    sizes.update(zip(axes, x.shape, strict=False))


# From the projects' own configs.


def values_of(config: Any, defaults: Mapping[str, Any], owner: str) -> list[Any]:
    """The values of a config's keys, in the order of `defaults`, which has all keys that there are.

    Raises: ValueError for another key.
    """
    settings = as_dict(config)
    for key in settings:
        if key not in defaults:
            hint = did_you_mean(key, defaults)
            raise ValueError(f"{owner} has no key {key!r}.{hint} Its keys: {', '.join(defaults)}.")
    return [settings.get(key, default) for key, default in defaults.items()]


def weight_of(weights: Mapping[str, Any], name: str, owner: str) -> Any:
    """The weight of a loss in a config's `weight_dict`. Raises: ValueError where there is none."""
    if name not in weights:
        raise ValueError(f"{owner}: weight_dict must have {name}, got {', '.join(weights)}")
    return weights[name]
