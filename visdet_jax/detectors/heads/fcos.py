"""The head of FCOS."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.distances import centerness_target
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.detectors.assigners.assigner import Assignment, pick
from visdet_jax.detectors.assigners.fcos import fcos_assign
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.first_stage import FirstStage
from visdet_jax.detectors.postprocessing import ProposalConfig
from visdet_jax.detectors.priors import Grid, MlvlPointGenerator, Sizes
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    HeadOutputs,
    HeadTargets,
    Image,
    Losses,
    Rows,
    States,
)
from visdet_jax.losses.boxes.iou import IoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss

INF = 1e8  # mmdet's number for a range without an upper end, in pixels.


def raise_unless_a_range_each(head: Any) -> None:
    """Raises a ValueError unless the head has as many `regress_ranges` as `strides`."""
    if len(head.regress_ranges) != len(head.strides) or any(
        len(pair) != 2 for pair in head.regress_ranges
    ):
        raise head.value_error(
            f"{len(head.strides)} strides need as many regress_ranges (low, high), got "
            f"{head.regress_ranges}"
        )


def assign_points(head: Any, points: jax.Array, grid: Grid, image: Image) -> Assignment:
    """`fcos_assign` of an image's points (N, 2), by the fields of a head."""
    ranges = np.repeat(np.asarray(head.regress_ranges, points.dtype), grid.level_sizes, axis=0)
    return fcos_assign(
        points,
        image.gt_boxes,
        image.gt_labels,
        strides=jnp.asarray(grid.strides),
        regress_ranges=jnp.asarray(ranges),
        center_sampling=head.center_sampling,
        center_sample_radius=head.center_sample_radius,
    )


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class FCOSHead(DenseHead, function=fcos_assign):
    """FCOS: a point in every cell learns the smallest box that contains it and suits its level.

    With n = max(positives of the batch, 1) and c the centerness of the positives, `loss_cls` is
    the sum over all points divided by n, `loss_bbox` Σ c · loss / max(Σ c, 1e-6) of boxes in
    pixels, and `loss_centerness` the sum over the positives divided by n.

    `bbox_preds` are distances (left, top, right, bottom) that are positive already: after the
    network's exp in pixels, or with `norm_on_bbox` after its ReLU in strides. Points in an image's
    padding are ordinary negatives, and `image_shapes` and `pad_shapes` have no effect on the
    losses.

    Args:
      strides: Strides of the levels, in pixels, at least 1.
      regress_ranges: (low, high) of each level, in pixels: a box belongs to the level whose range
        has the largest of a point's four distances to its sides.
      norm_on_bbox: Whether distances are in strides.
      loss_bbox: Loss of the boxes, which it gets as x1, y1, x2, y2.
      loss_centerness: Loss of the centerness logits, whose targets are in [0, 1].
      bbox_coder: Between boxes and distances from a point.

    Source: Tian et al. 2019, https://arxiv.org/abs/1904.01355; mmdet's `FCOSHead`
    """

    # What `build_detector` makes of this head where a model has it as its `rpn_head`.
    rpn_head: ClassVar[str] = "FCOSRPNHead"

    strides: Annotated[tuple[int, ...], Range(1)] = (4, 8, 16, 32, 64)
    regress_ranges: tuple[tuple[float, ...], ...] = (
        (-1, 64),
        (64, 128),
        (128, 256),
        (256, 512),
        (512, INF),
    )
    center_sampling: bool = False
    center_sample_radius: float = 1.5
    norm_on_bbox: bool = False
    loss_cls: Loss = FocalLoss()
    loss_bbox: Loss = IoULoss()
    loss_centerness: Loss = CrossEntropyLoss(use_sigmoid=True)
    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_unless_a_range_each(self)

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return MlvlPointGenerator(strides=self.strides).grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        points, strides = jnp.asarray(grid.priors), jnp.asarray(grid.strides)
        found = assign_points(self, points, grid, image)
        distances = self.bbox_coder.encode(points, pick(image.gt_boxes, found.gt_inds))
        if self.norm_on_bbox:
            distances /= strides[:, None]
        return self.make_targets(
            found.gt_inds, found.labels, distances, centerness_target(distances)
        )

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        centerness: Any = targets.centerness
        count = criterion.total(targets.bbox_weights.sum())
        criterion.add("loss_cls", rows.cls_scores, targets.labels, targets.label_weights, count)
        # With norm_on_bbox points are in pixels and distances in strides, as in mmdet: an IoU does
        # not change when both boxes move.
        pred, target = (
            self.bbox_coder.decode(rows.priors, distances)
            for distances in (rows.bbox_preds, targets.bbox_targets)
        )
        total = criterion.total(centerness.sum(), 1e-6)
        criterion.add("loss_bbox", pred, target, centerness, total)
        criterion.add("loss_centerness", rows.centernesses, centerness, targets.bbox_weights, count)

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        if self.norm_on_bbox:
            bbox_preds = bbox_preds * grid.strides[None, :, None]
        return self.bbox_coder.decode(jnp.asarray(grid.priors[None]), bbox_preds, image_shapes)


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class NASFCOSHead(FCOSHead):
    """NAS-FCOS, whose network was searched for: the losses are `FCOSHead`'s.

    Source: Wang et al. 2020, https://arxiv.org/abs/1906.04423; mmdet's `NASFCOSHead`
    """


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class FCOSRPNHead(FCOSHead, FirstStage):
    """`FCOSHead` as the first stage of Faster R-CNN: an `rpn_head` of type FCOSHead in mmdet.

    All ground truth is of one class, whatever its labels. The losses are `FCOSHead`'s by the names
    `rpn_loss_cls`, `rpn_loss_bbox` and `rpn_loss_centerness`. Proposals suppress each other across
    the levels, unlike `RPNHead`'s.

    Source: mmdet's `TwoStageDetector` with an `FCOSHead`
    """

    num_classes: Count = 1
    test_cfg: ProposalConfig = ProposalConfig()

    def losses_of(
        self,
        state: States,
        outputs: HeadOutputs,
        targets: HeadTargets,
        axis_name: AxisName,
        **options: Any,
    ) -> tuple[Losses, States]:
        losses, state = super().losses_of(state, outputs, targets, axis_name, **options)
        return {f"rpn_{name}": value for name, value in losses.items()}, state
