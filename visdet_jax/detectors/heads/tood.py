"""TOOD's head."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance, centerness_target
from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.hyperparameters import NonNegative, Number
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.detectors.assigners.assigner import Assigner, pick
from visdet_jax.detectors.assigners.atss import ATSSAssigner
from visdet_jax.detectors.assigners.predictions import PredictionAssigner
from visdet_jax.detectors.assigners.task_aligned import TaskAlignedAssigner
from visdet_jax.detectors.heads.anchor_head import AnchorHead
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.priors import Grid
from visdet_jax.detectors.registry import HEADS
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
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality.quality_focal import QualityFocalLoss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class TOODHead(AnchorHead):
    """TOOD: first ATSS's anchors, then those whose classes and boxes are good together.

    Before `initial_epoch` the initial assigner gives the anchors their boxes, and t is 1 for each
    positive and w its centerness; afterwards the assigner, by what was predicted, and t and w are
    the metric of a positive, without a gradient. Both are 0 elsewhere. `loss_cls` is the sum over
    the anchors divided by max(Σ t, 1), of `initial_loss_cls` by labels or of the field `loss_cls`
    by (label, t); `loss_bbox` is Σ w · loss / max(Σ w, 1), of boxes in strides.

    `cls_scores` are probabilities, and `bbox_preds` boxes x1, y1, x2, y2 in strides.

    Args:
      bbox_coder: Of the network. It has no effect.
      reg_decoded_bbox: Must be True: `loss_bbox` gets boxes, in strides.
      initial_loss_cls: Loss of the class probabilities before `initial_epoch`, which gets labels.
      loss_cls: Loss of the class probabilities afterwards, which gets (label, t).
      initial_epoch: The first epoch with the assigner by predictions. 0 never takes the initial
        one. Larger values take it longer.
      initial_assigner: Gives the anchors their boxes before `initial_epoch`.
      assigner: Gives the anchors their boxes afterwards.
      alpha: Exponent of the score in the assigner's metric, at least 0, in place of its own.
      beta: Exponent of the IoU in the assigner's metric, at least 0, in place of its own.

    Source: Feng et al. 2021, https://arxiv.org/abs/2108.07755; mmdet's `TOODHead`
    """

    reg_decoded_bbox: bool = True
    initial_loss_cls: Loss = FocalLoss(activated=True)
    loss_cls: Loss = QualityFocalLoss(activated=True)
    loss_bbox: Loss = GIoULoss(loss_weight=2.0)
    initial_epoch: int = 4
    initial_assigner: Assigner = ATSSAssigner(topk=9)
    assigner: PredictionAssigner = TaskAlignedAssigner()  # type: ignore[assignment]
    alpha: NonNegative | None = None
    beta: NonNegative | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_unless_decoded()
        self._raise_unless_one_anchor()
        for name in ("initial_loss_cls", "loss_cls"):
            if not getattr(getattr(self, name), "activated", False):
                raise self.value_error(
                    f"{name} gets probabilities and must have activated=True, got "
                    f"{getattr(self, name)!r}"
                )

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
        epoch: Number | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold, and for all
        epochs.

        Args:
          epoch: The number of the epoch, from 0; the assigner and the losses go by it. It may be
            left out where `initial_epoch` is 0.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit; ValueError for an epoch
          that is missing.
        """
        targets = self.targets(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes, epoch=epoch)
        return self.losses_of(state, outputs, targets, axis_name, initial=self._is_initial(epoch))

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        epoch: Number | None = None,
    ) -> HeadTargets:
        """What each anchor learns. The arguments are those of `loss`."""
        images = self.images(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        grid, initial = self._grid(outputs), self._is_initial(epoch)
        by_predictions = jax.vmap(functools.partial(self.assign, grid))
        if initial is False:
            targets = by_predictions(images)
        else:
            by_anchors = jax.vmap(functools.partial(self.assign_initially, grid))
            targets = jax.lax.cond(initial, by_anchors, by_predictions, images)
        return jax.lax.stop_gradient(targets)

    @property
    def use_sigmoid(self) -> bool:
        return True

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        probabilities, labels = examples["loss_cls"]
        metrics = jax.ShapeDtypeStruct((rows,), "float32")
        return examples | {
            "initial_loss_cls": (probabilities, labels),
            "loss_cls": (probabilities, (labels, metrics)),
        }

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        return [
            x._replace(rule=UNIT) if "cls_scores" in x.name else x
            for x in super().expects(*args, **options)
        ]

    def scores(self, logits: jax.Array) -> jax.Array:
        return logits

    def assign_initially(self, grid: Grid, image: Image) -> HeadTargets:
        """The targets (N, ...) of one image before `initial_epoch`."""
        found = self.assign_by(self.initial_assigner, grid, image)
        return self._targets_of(found._replace(metrics=jnp.ones_like(grid.strides)), image)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        strides = jnp.asarray(grid.strides)
        own = {name: getattr(self, name) for name in ("alpha", "beta")}
        assigner = dataclasses.replace(
            self.assigner, **{name: x for name, x in own.items() if x is not None}
        )
        preds = jnp.concatenate(image.outputs["bbox_preds"]).astype(strides.dtype)
        found = assigner.assign_predictions(
            _centers(grid.priors),
            strides,
            preds * strides[:, None],
            image.outputs["cls_scores"],
            image.gt_boxes,
            image.gt_labels,
            self.taking_part(grid, image),
        )
        return self._targets_of(found, image)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        initial = criterion.options["initial"]
        targets, strides = rows.targets, rows.strides[..., None]
        metrics: Any = targets.metrics
        labels, weight = targets.labels, targets.label_weights
        of_boxes, before = metrics, dict(criterion.state)
        # As mmdet: divided by 1 + eps, and then by the sum, so that the digits are the same.
        criterion.add("loss_cls", rows.cls_scores, (labels, metrics), weight, 1.0)
        if initial is not False:
            # One program serves all epochs: it computes both losses, and selects one and its state.
            criterion.add("initial_loss_cls", rows.cls_scores, labels, weight, 1.0)
            for name, counts in (("loss_cls", ~initial), ("initial_loss_cls", initial)):
                criterion.state[name] = jax.tree.map(
                    functools.partial(jnp.where, counts), criterion.state[name], before[name]
                )
            of_labels = criterion.losses.pop("initial_loss_cls")
            losses = criterion.losses
            losses["loss_cls"] = jnp.where(initial, of_labels, losses["loss_cls"])
            distances = bbox2distance(_centers(rows.priors), targets.bbox_targets)
            centerness = jnp.where(targets.bbox_weights > 0, centerness_target(distances), 0)
            of_boxes = jnp.where(initial, centerness, metrics)
        target = targets.bbox_targets / strides
        criterion.add("loss_bbox", rows.bbox_preds, target, of_boxes, 1.0)
        criterion.losses["loss_cls"] /= criterion.total(metrics.sum())
        criterion.losses["loss_bbox"] /= criterion.total(of_boxes.sum())

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        strides = jnp.asarray(grid.strides)[None, :, None]
        return clip_to_image(bbox_preds.astype(strides.dtype) * strides, image_shapes)

    def _is_initial(self, epoch: Number | None) -> Any:
        """Whether the epoch is before `initial_epoch`: False where none is, or an array."""
        if isinstance(self.initial_epoch, int) and self.initial_epoch <= 0:
            return False
        if epoch is None:
            raise self.value_error(f"epoch must be given: initial_epoch is {self.initial_epoch}")
        return jnp.asarray(epoch) < self.initial_epoch

    def _targets_of(self, found: Any, image: Image) -> HeadTargets:
        return self.make_targets(
            found.gt_inds,
            found.labels,
            pick(image.gt_boxes, found.gt_inds),
            pos_weight=self.pos_weight,
            metrics=found.metrics,
        )


def _centers(anchors: Any) -> jax.Array:
    """The centres (..., 2) of anchors (..., 4)."""
    return convert_boxes(jnp.asarray(anchors))[..., :2]
