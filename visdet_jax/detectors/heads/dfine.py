"""The criteria of D-FINE and DEIM."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.bins import boxes_to_bins
from visdet_jax.core.checks import as_labels
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.hyperparameters import Range
from visdet_jax.core.rules import FINITE, Rule
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads._set_criterion import Layers
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.heads.query_head import check_axes
from visdet_jax.detectors.heads.rtdetr import RTDETRCriterion, is_of_project
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    DFINEOutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.fine_grained import (
    DecoupledDistillationFocalLoss,
    FineGrainedLocalizationLoss,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality.matchability_aware import MatchabilityAwareLoss
from visdet_jax.reduction import AVG_FACTOR_EPS
from visdet_jax.registry import as_dict


class Sides(NamedTuple):
    """The sides of the boxes of S layers, as distributions."""

    corners: jax.Array  # Logits (S, B, Q, 4, reg_max + 1).
    has_teacher: jax.Array  # (S,): True for all layers but the last.


class Teacher(NamedTuple):
    """What the sides of a part's boxes are refined from, and what its last layer teaches."""

    ref_points: jax.Array  # (B, Q, 4)
    up: jax.Array
    reg_scale: jax.Array
    sides: jax.Array  # Logits (B, Q, 4, reg_max + 1) of the last layer.
    confidence: jax.Array  # (B, Q) its largest class probability.
    sides_of_batch: jax.Array  # How many sides the whole batch has.
    # By what the confidence of sides with and without a box is multiplied; None for 1.
    mix: tuple[jax.Array, jax.Array] | None


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DFINECriterion(RTDETRCriterion):
    """D-FINE's criterion: RT-DETR's, with boxes that are learnt as distributions over bins.

    Each layer, the plain head after the first layer and the encoder have their own matching, by
    which the classes learn. Boxes learn by the union of all these matchings; see
    `union_of_matchings`. With m the number of queries in the union, of the whole batch and at least
    1, the losses of boxes are divided by m: `loss_bbox`, `loss_giou`, and `loss_fgl`, which learns
    the bins of the sides, weighted by the IoU of the box. `loss_ddf` learns the last layer's
    distributions in the layers before it. Its means over the sides of the queries in the union and
    over the others are mixed by the roots of their numbers; those of denoising queries by the roots
    of the numbers of the other queries.

    The losses of the plain head are called "loss_vfl_pre" and so on, and "loss_vfl_dn_pre".

    `build_head` also takes the keys of the project's own config; see `RTDETRCriterion`.

    On purpose other than the project: NaN is not made 0; without the union (`use_uni_set`) each
    layer's bins are those of its own matching, where DEIM keeps those of the last layer; the union
    has a rule for equal counts.

    Args:
      reg_max: Number of bins of a side less one, an even integer of at least 4.
      use_uni_set: Boxes learn by the union of all matchings. Without it by each layer's own, and
        their losses are divided by the number of boxes.
      loss_fgl: Loss of the bins of each side. None leaves it out.
      loss_ddf: Loss of the sides' distributions. None leaves it out.

    Source: Peng et al. 2024, https://arxiv.org/abs/2410.13842; the facts of D-FINE's
      `DFINECriterion`
    """

    outputs_type: ClassVar[Any] = DFINEOutputs
    # Distances to the sides may lead out of the image.
    bbox_rule: ClassVar[Rule] = FINITE
    parts: ClassVar[Mapping[str, str]] = {
        "": "LBQ",
        "pre_": "BQ",
        "enc_": "BQ",
        "dn_": "LBN",
        "dn_pre_": "BN",
    }
    # Whether denoising queries have a `loss_ddf` for the last layer, which is 0.
    last_learns_from_itself: ClassVar[bool] = True

    reg_max: Annotated[int, Range(4)] = 32
    use_uni_set: bool = True
    loss_fgl: Loss | None = FineGrainedLocalizationLoss(loss_weight=0.15)
    loss_ddf: Loss | None = DecoupledDistillationFocalLoss(loss_weight=1.5)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reg_max % 2:
            raise self.value_error(f"reg_max must be even, got {self.reg_max}")

    # What users call.

    @compiled
    def update(  # type: ignore[override]
        self,
        state: States,
        outputs: DFINEOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_inds: jax.Array | None = None,
        pre_gt_inds: jax.Array | None = None,
        enc_gt_inds: jax.Array | None = None,
        union_gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `DFINEOutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes nothing is read.
          image_shapes: (B, 2) height and width in pixels of each image, of which the predicted
            boxes are fractions.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's box,
            1 for the first and 0 for none. A query of -1 is left out.
          pre_gt_inds: (B, Q) likewise, of the plain head after the first layer.
          enc_gt_inds: (B, Q) likewise, of the encoder.
          union_gt_inds: (B, Q) likewise, in place of the union of all matchings.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        sets = self.sets_of(outputs, gt)
        given = {"": gt_inds, "pre_": pre_gt_inds, "enc_": enc_gt_inds}
        learnt = self.match_parts(outputs, sets, shapes, given, shared=self.share_matched_indices)
        union = self._union(learnt, union_gt_inds, gt, shapes) if self.use_uni_set else None
        teachers = self._teachers(outputs, learnt, union, axis_name)
        losses: Losses = {}
        for part, queries in sets.items():
            sides = None
            if part in teachers:
                corners = self._sides(getattr(outputs, f"{part}corners"))
                sides = Sides(corners, jnp.arange(len(corners)) < len(corners) - 1)
            layers = Layers(queries.cls_scores, queries.bbox_preds, learnt[part], sides)
            by_union = None if part.startswith("dn_") else union
            divisor = of_boxes = self.divisor_of(part, gt, learnt[part], axis_name)
            if by_union is not None:
                of_boxes = self.divisor(by_union.bbox_weights.sum(), axis_name)
            add = functools.partial(
                self._add_all,
                union=by_union,
                divisors=(divisor, of_boxes),
                teacher=teachers.get(part),
            )
            found, state = self.losses_of_part(part, add, state, layers, axis_name)
            if not part or not self.last_learns_from_itself:
                last = len(queries.cls_scores) - 1
                found.pop("loss_ddf" + self.name_of_layer(part, last, last + 1), None)
            losses |= found
        return losses, state

    loss = without_state(update)  # type: ignore[arg-type, assignment]

    @compiled
    def union_targets(
        self,
        outputs: DFINEOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        gt_inds: jax.Array | None = None,
        pre_gt_inds: jax.Array | None = None,
        enc_gt_inds: jax.Array | None = None,
    ) -> HeadTargets:
        """What the box of each query learns, (B, Q, ...). The arguments are those of `loss`."""
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        sets = self.sets_of(outputs, gt)
        given = {"": gt_inds, "pre_": pre_gt_inds, "enc_": enc_gt_inds}
        learnt = self.match_parts(outputs, sets, shapes, given, shared=self.share_matched_indices)
        return self._union(learnt, None, gt, shapes)

    @classmethod
    def from_project(cls, config: dict[str, Any]) -> dict[str, Any]:
        if not is_of_project(config):
            return config
        config = dict(config)
        names = list(config.get("losses", ()))
        config.pop("share_matched_indices", None)  # It has no effect in D-FINE.
        fields = super().from_project(config | {"losses": [x for x in names if x != "local"]})
        weights = as_dict(config["weight_dict"])
        for name, loss in _LOCAL.items():
            there = "local" in names and name in weights
            fields[name] = {"type": loss, "loss_weight": weights[name]} if there else None
        return fields

    # What a subclass may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        sides = jax.ShapeDtypeStruct((rows, 4, self.reg_max + 1), np.float32)
        numbers = jax.ShapeDtypeStruct((rows, 4), np.float32)
        if self.loss_fgl is not None:
            examples["loss_fgl"] = (sides, (numbers, numbers, numbers))
        return examples

    def name_of_layer(self, part: str, number: int, count: int) -> str:
        if part.endswith("pre_"):
            return f"_{part.removesuffix('_')}"
        return super().name_of_layer(part, number, count)

    # The rest.

    def _union(
        self, learnt: dict[str, HeadTargets], given: Any, gt: Instances, image_shapes: jax.Array
    ) -> HeadTargets:
        """What boxes (B, Q, ...) learn by the union of the matchings but the denoising ones'."""
        parts = [x.gt_inds for part, x in learnt.items() if not part.startswith("dn_")]
        if given is None:
            union = union_of_matchings(jnp.concatenate(parts))
        else:
            union = as_labels("union_gt_inds", given, parts[0].shape[1:])
        return jax.tree.map(lambda x: x[0], self.targets_of(union[None], gt, image_shapes))

    def _teachers(
        self,
        outputs: DFINEOutputs,
        learnt: dict[str, HeadTargets],
        union: HeadTargets | None,
        axis_name: AxisName,
    ) -> dict[str, Teacher]:
        """The teachers of the parts that have corners, by their names."""
        if outputs.corners is None or self.loss_fgl is self.loss_ddf is None:
            return {}
        teachers: dict[str, Teacher] = {}
        mixed: Any = None
        for part in ("", "dn_"):
            if (corners := getattr(outputs, f"{part}corners")) is None:
                continue
            last = jax.tree.map(lambda x: x[-1], learnt[part])
            targets = last if part or union is None else union
            dtype = targets.bbox_weights.dtype
            ref_points, up, reg_scale = (
                jnp.asarray(x).astype(dtype)
                for x in (getattr(outputs, f"{part}ref_points"), outputs.up, outputs.reg_scale)
            )
            matched, others = (
                reduce_sum(rows.sum(dtype=dtype), axis_name)
                for rows in (targets.gt_inds > 0, targets.gt_inds == 0)
            )
            both = jnp.sqrt(matched) + jnp.sqrt(others)
            own = [divide(jnp.sqrt(n), both) for n in (matched, others)]
            scores = getattr(outputs, f"{part}cls_scores")[-1].astype(dtype)
            teacher = Teacher(
                ref_points,
                up.reshape(()),
                reg_scale.reshape(()),
                self._sides(corners[-1]),
                jax.nn.sigmoid(scores.max(-1)),
                4 * (matched + others),
                # Denoising queries' two means are mixed by the numbers of the other queries.
                tuple(map(divide, mixed, own)) if part else None,  # type: ignore[arg-type]
            )
            teachers[part] = jax.lax.stop_gradient(teacher)
            mixed = own
        return teachers

    def _add_all(
        self,
        criterion: Criterion,
        layer: Layers,
        *,
        union: HeadTargets | None,
        divisors: tuple[jax.Array, jax.Array],
        teacher: Teacher | None,
    ) -> None:
        """Adds all losses of one layer to the criterion."""
        divisor, of_boxes = divisors
        self.add_loss_of_classes(criterion, layer, divisor)
        learnt = layer.targets if union is None else union
        self.add_losses_of_boxes(criterion, layer.bbox_preds, learnt, of_boxes)
        if teacher is None:
            return
        iou = self.overlap(layer.bbox_preds, learnt)
        if self.loss_fgl is not None:
            corners = self.corners(learnt.bbox_targets)
            of_decoder = self.reg_max, teacher.reg_scale, teacher.up
            bins = boxes_to_bins(teacher.ref_points, corners, *of_decoder)
            criterion.add("loss_fgl", layer.more.corners, bins, iou, of_boxes)
        if self.loss_ddf is not None:
            matched, confidence = learnt.gt_inds > 0, teacher.confidence
            if teacher.mix is not None:
                iou, confidence = iou * teacher.mix[0], confidence * teacher.mix[1]
            confidence = jnp.where(matched, iou, confidence)
            shape = teacher.sides.shape[:-1]
            criterion.add(
                "loss_ddf",
                layer.more.corners,
                teacher.sides,
                ((learnt.gt_inds >= 0) & layer.more.has_teacher).astype(iou.dtype),
                clamp_min(teacher.sides_of_batch, 1) - AVG_FACTOR_EPS,  # The loss adds it.
                confidence=jnp.broadcast_to(confidence[..., None], shape),
                matched=jnp.broadcast_to(matched[..., None], shape),
            )

    def _sides(self, corners: jax.Array) -> jax.Array:
        """Corners (..., 4 · (reg_max + 1)) as sides (..., 4, reg_max + 1)."""
        return corners.reshape(*corners.shape[:-1], 4, self.reg_max + 1)

    def sizes_of(self, outputs: Any) -> dict[str, int]:
        sizes = super().sizes_of(outputs)
        if outputs.corners is None and outputs.dn_corners is None:
            return sizes
        for part, axes in (("", "LBQ"), ("dn_", "LBN")):
            if part and outputs.dn_cls_scores is None:
                continue
            given = {name: getattr(outputs, part + name) for name in ("corners", "ref_points")}
            for name, x in given.items():
                if x is None:
                    raise ValueError(f"{part}{name} is missing: all parts have corners, or none")
            check_axes(f"{part}corners", given["corners"], axes, (4 * (self.reg_max + 1),), sizes)
            check_axes(f"{part}ref_points", given["ref_points"], axes[1:], (4,), sizes)
        for name in ("up", "reg_scale"):
            x = getattr(outputs, name)
            if x is None or jnp.size(x) != 1:
                found = None if x is None else f"shape {jnp.shape(x)}"
                raise ValueError(f"{name} must be a number or an array (1,), got {found}")
        return sizes


_LOCAL = {
    "loss_fgl": FineGrainedLocalizationLoss,
    "loss_ddf": DecoupledDistillationFocalLoss,
}


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DEIMCriterion(DFINECriterion):
    """DEIM's criterion: D-FINE's with a class loss that learns from matches of a small IoU too.

    Its losses are called "loss_mal" and so on. With `use_uni_set=False` and without corners it is
    DEIM's criterion for RT-DETR.

    Source: Huang et al. 2024, https://arxiv.org/abs/2412.04234; the facts of DEIM's `DEIMCriterion`
    """

    last_learns_from_itself: ClassVar[bool] = False

    loss_cls: Loss = MatchabilityAwareLoss(gamma=1.5)


def union_of_matchings(gt_inds: jax.Array) -> jax.Array:
    """For each query the box that most of several matchings give it.

    Of boxes with equal counts it is the first. (D-FINE's own is the first too while an image has up
    to 16 pairs, and any with more.) A box may keep several queries, or none.

    Args:
      gt_inds: (S, ...) the matchings: the number of each query's box, 1 for the first; 0 and less
        for none.

    Returns: (...), 0 for queries that no matching gives a box.
    Source: Peng et al. 2024 (D-FINE), https://arxiv.org/abs/2410.13842
    """
    # By comparing the matchings with each other. Counts of each query with each box would be as
    # large as the costs of a matching.
    votes = (gt_inds[:, None] == gt_inds[None]).sum(1)
    votes = jnp.where(gt_inds > 0, votes, 0)
    most = votes.max(0)
    last = jnp.iinfo(gt_inds.dtype).max
    union = jnp.where((votes == most[None]) & (gt_inds > 0), gt_inds, last).min(0)
    return jnp.where(most > 0, union, 0)
