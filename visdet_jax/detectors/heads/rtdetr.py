"""RT-DETR's criterion."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax

from visdet_jax.boxes.overlap import OverlapMode
from visdet_jax.core.names import did_you_mean
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
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    DETROutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality.matchability_aware import MatchabilityAwareLoss
from visdet_jax.losses.quality.varifocal import VarifocalLoss
from visdet_jax.registry import as_dict

# The class losses by their names in the `losses` of a config of the project.
_OF_CLASSES = {"vfl": VarifocalLoss, "mal": MatchabilityAwareLoss, "focal": FocalLoss}
# What may stand in its `weight_dict`: also of losses that are not computed.
_WEIGHTS = tuple(f"loss_{x}" for x in (*_OF_CLASSES, "bbox", "giou", "fgl", "ddf"))


# RT-DETR's own configs call it RTDETRCriterionv2.
@HEADS.register_module("RTDETRCriterionv2")
@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RTDETRCriterion(SetCriterion):
    """RT-DETR's criterion, in its second version: classes learn the IoU of the boxes.

    Each layer of the decoder, and the encoder, has its own matching. With n the number of boxes of
    the whole batch, at least 1, `loss_vfl` is the sum over the queries, and `loss_bbox`, of centres
    and sizes in fractions of the image, and `loss_giou`, of corners, are the sums over the matched
    queries, all divided by n. A loss of a quality gets (label, IoU of the box). The matching and
    the IoU have no gradient. Of denoising queries n is the number of positive ones.

    The losses of the layers before the last are called "loss_vfl_aux_0" and so on, those of the
    encoder "loss_vfl_enc_0", those of the denoising queries "loss_vfl_dn_0" and so on. The class
    loss is called after its kind: loss_vfl, loss_mal, loss_focal, else loss_cls.

    `build_head` also takes the keys of the project's own config: weight_dict, losses, alpha, gamma,
    matcher, use_focal_loss, which is True unless it is given.

    On purpose other than the project: an encoder that predicts one class for all is matched as one
    (the project raises an IndexError for labels above 0), and "focal" works.

    Args:
      boxes_weight_format: "iou" or "giou": the overlap, without gradient, that multiplies
        `loss_giou` and that the classes learn. None is the IoU for the classes alone.
      share_matched_indices: The layers before the last take its matching, as long as none is given.

    Source: Lv et al. 2024, https://arxiv.org/abs/2407.17140; the facts of RT-DETR's
      `RTDETRCriterionv2`
    """

    outputs_type: ClassVar[Any] = DETROutputs
    parts: ClassVar[Mapping[str, str]] = {"": "LBQ", "enc_": "BP", "dn_": "LBN"}

    loss_cls: Loss = VarifocalLoss(alpha=0.75, gamma=2.0, detached=True)
    boxes_weight_format: Literal["iou", "giou"] | None = None
    share_matched_indices: bool = False

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
        sets = self.sets_of(outputs, gt)
        given = {"": gt_inds, "enc_": enc_gt_inds}
        learnt = self.match_parts(outputs, sets, shapes, given, shared=self.share_matched_indices)
        losses: Losses = {}
        for part, queries in sets.items():
            layers = Layers(queries.cls_scores, queries.bbox_preds, learnt[part])
            divisor = self.divisor_of(part, gt, learnt[part], axis_name)
            add = functools.partial(self._add, divisor=divisor)
            found, state = self.losses_of_part(part, add, state, layers, axis_name)
            losses |= found
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
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        sets = {"": self.sets_of(outputs, gt)[""]}
        given = {"": gt_inds}
        shared = self.share_matched_indices
        return self.match_parts(outputs, sets, shapes, given, shared=shared)[""]

    @classmethod
    def from_project(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Our config for one of the project's own, which is told by its keys.

        Raises: ValueError for a key that there is not.
        """
        if not is_of_project(config):
            return config
        owner, rest = cls.__name__, dict(config)
        weights, losses = (_taken(rest, key, owner) for key in ("weight_dict", "losses"))
        for name in as_dict(weights):
            if name not in _WEIGHTS:
                hint = did_you_mean(name, _WEIGHTS)
                raise ValueError(f"{owner}: weight_dict has no loss {name!r}.{hint}")
        of_classes = [name for name in losses if name != "boxes"]
        if len(losses) != 2 or len(of_classes) != 1 or of_classes[0] not in _OF_CLASSES:
            raise ValueError(
                f"{owner}: losses must be 'boxes' and one of {', '.join(_OF_CLASSES)}, got {losses}"
            )
        (kind,) = of_classes
        gamma, alpha, mal_alpha = (
            rest.pop(key, default)
            for key, default in (("gamma", 2.0), ("alpha", 0.2), ("mal_alpha", None))
        )
        loss_cls: dict[str, Any] = {"type": _OF_CLASSES[kind], "gamma": gamma, "alpha": alpha}
        if kind == "mal":
            loss_cls["alpha"] = mal_alpha
        if kind == "vfl":
            loss_cls["detached"] = True
        loss_cls["loss_weight"] = weight_of(weights, f"loss_{kind}", owner)
        loss_bbox, loss_giou = (weight_of(weights, f"loss_{x}", owner) for x in ("bbox", "giou"))
        fields = {
            "loss_cls": loss_cls,
            "loss_bbox": {"type": "L1Loss", "loss_weight": loss_bbox},
            "loss_iou": {"type": "GIoULoss", "eps": LEAST_AREA, "loss_weight": loss_giou},
        }
        use_focal_loss = rest.pop("use_focal_loss", True)
        if "matcher" in rest:
            fields["assigner"] = _assigner(rest.pop("matcher"), use_focal_loss, owner)
        if both := fields.keys() & rest.keys():
            raise ValueError(f"{owner}: {both.pop()} stands beside weight_dict, which gives it too")
        return rest | fields

    # What a subclass may extend.

    @property
    def quality(self) -> OverlapMode:
        return self.boxes_weight_format or "iou"

    def weight_of_iou(self, bbox_preds: jax.Array, targets: HeadTargets) -> jax.Array:
        if self.boxes_weight_format is None:
            return targets.bbox_weights
        return self.overlap(bbox_preds, targets, self.boxes_weight_format)

    def name_of_loss(self, name: str) -> str:
        if name == "loss_cls":
            kinds = (kind for kind, cls in _OF_CLASSES.items() if isinstance(self.loss_cls, cls))
            return f"loss_{next(kinds, 'cls')}"
        return super().name_of_loss(name)

    def name_of_layer(self, part: str, number: int, count: int) -> str:
        if part:
            return f"_{part}{number}"
        return "" if number == count - 1 else f"_aux_{number}"

    # What subclasses share.

    def divisor_of(
        self, part: str, gt: Instances, targets: HeadTargets, axis_name: AxisName
    ) -> jax.Array:
        """What the sums of a part are divided by: the number of boxes, or of positive queries."""
        is_denoising = part.startswith("dn_")
        count = targets.bbox_weights[0].sum() if is_denoising else self.number_of_boxes(gt)
        return self.divisor(count, axis_name)

    # The rest.

    def _add(self, criterion: Criterion, layer: Layers, *, divisor: jax.Array) -> None:
        self.add_loss_of_classes(criterion, layer, divisor)
        self.add_losses_of_boxes(criterion, layer.bbox_preds, layer.targets, divisor)


def is_of_project(config: dict[str, Any]) -> bool:
    """Whether a criterion's config is one of its project."""
    return bool(config.keys() & {"weight_dict", "losses", "matcher"})


def _taken(config: dict[str, Any], key: str, owner: str) -> Any:
    """A key's value, which leaves the config."""
    if key not in config:
        raise ValueError(f"{owner}: weight_dict, losses and matcher come together: no {key}")
    return config.pop(key)


def _assigner(matcher: Any, use_focal_loss: bool, owner: str) -> dict[str, Any]:
    """The config of an assigner for that of a project's `HungarianMatcher`."""
    of_matcher = f"{owner}: matcher"
    keys = {
        "type": "HungarianMatcher",
        "weight_dict": {},
        "use_focal_loss": use_focal_loss,
        "alpha": 0.25,
        "gamma": 2.0,
    }
    kind, weights, use_focal_loss, alpha, gamma = values_of(matcher, keys, of_matcher)
    if kind != "HungarianMatcher":
        raise ValueError(f"{of_matcher} must be a HungarianMatcher, got {kind!r}")
    names = ("cost_class", "cost_bbox", "cost_giou")
    cost_class, cost_bbox, cost_giou = values_of(weights, dict.fromkeys(names), of_matcher)
    if None in (cost_class, cost_bbox, cost_giou):
        raise ValueError(f"{of_matcher}: weight_dict must have {', '.join(names)}, got {weights}")
    focal = {"type": "FocalLossCost", "alpha": alpha, "gamma": gamma, "eps": 1e-8}
    of_classes = focal if use_focal_loss else {"type": "ClassificationCost"}
    return {
        "type": "HungarianAssigner",
        "match_costs": [
            {**of_classes, "weight": cost_class},
            {"type": "BBoxL1Cost", "weight": cost_bbox, "box_format": "xywh"},
            {"type": "IoUCost", "weight": cost_giou},
        ],
    }
