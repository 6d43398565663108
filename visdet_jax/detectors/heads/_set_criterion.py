"""What the criteria share that are no heads of mmdet: RT-DETR's, D-FINE's, DEIM's and RF-DETR's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.boxes.overlap import OverlapMode, overlaps
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

    def corners(self, boxes: jax.Array) -> jax.Array:
        """Boxes (..., 4) as cx, cy, w, h as their corners. A size below 0 counts as 0."""
        x, y, w, h = columns(boxes)
        w, h = clamp_min(w, 0) / 2, clamp_min(h, 0) / 2
        return jnp.stack([x - w, y - h, x + w, y + h], axis=-1)

    def gt_of_part(self, part: str, queries: QuerySets) -> Instances:
        """The ground truth of a part: of class 0 where one channel stands for all classes."""
        labels: Any = queries.gt.labels
        if queries.cls_scores.shape[-1] == self.num_classes:
            return queries.gt
        return queries.gt._replace(labels=jnp.minimum(labels, 0))

    @property
    def quality(self) -> OverlapMode:
        """Which overlap with its box a loss of a quality learns as a query's score."""
        return "iou"

    def class_targets(self, targets: HeadTargets, bbox_preds: jax.Array) -> Any:
        """The target of the class loss of one layer, (B, Q, ...)."""
        if isinstance(self.loss_cls, QualityLoss):
            return targets.labels, self.overlap(bbox_preds, targets, self.quality)
        return targets.labels

    def weight_of_iou(self, bbox_preds: jax.Array, targets: HeadTargets) -> jax.Array:
        """The weight of `loss_iou` of one layer, (B, Q)."""
        return targets.bbox_weights

    def channels_of(self, part: str, name: str) -> tuple[int, ...]:
        sizes = super().channels_of(part, name)
        return (*sizes, 1) if (part, name) == ("enc_", "cls_scores") else sizes

    def name_of_loss(self, name: str) -> str:
        """The project's name for the loss of a field."""
        return "loss_giou" if name == "loss_iou" else name

    def name_of_layer(self, part: str, number: int, count: int) -> str:
        """What stands behind the names of the losses of a layer, one of so many of its part."""
        raise NotImplementedError(f"{type(self).__name__} must define name_of_layer")

    # What subclasses share.

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
