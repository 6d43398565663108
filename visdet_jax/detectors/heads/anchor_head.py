"""The base of the heads on anchors: RetinaNet, ATSS, GFL."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance, centerness_target
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Finite
from visdet_jax.detectors.assigners.assigner import Assigner, Assignment, pick
from visdet_jax.detectors.coders import BoxCoder, DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.priors import AnchorGenerator, Grid, Sizes, inside_flags, valid_flags
from visdet_jax.detectors.samplers.pseudo import PseudoSampler
from visdet_jax.detectors.samplers.sampler import Sampler
from visdet_jax.detectors.structures import HeadTargets, Image, Rows
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import SmoothL1Loss


@dataclass(frozen=True, kw_only=True)
class AnchorHead(DenseHead):
    """Base of the heads on anchors, with mmdet's defaults.

    Unless a subclass defines another `compute`, the losses are the sum over the anchors of
    `loss_cls`, and over the positives of `loss_bbox`, each divided by `count`.

    Args:
      anchor_generator: Makes the anchors, and knows the strides.
      bbox_coder: Between boxes and what the network predicts for an anchor.
      reg_decoded_bbox: Whether `loss_bbox` gets boxes in pixels, as losses of the IoU family need,
        or what the network predicts for them.
      assigner: Says which box each anchor learns.
      sampler: Only `PseudoSampler`: all anchors that are not ignored count.
      allowed_border: By less than how many pixels anchors may reach over the image. Larger values
        leave more anchors; a negative one leaves all.
      pos_weight: Weight of positives in the class loss, above 0. Any other number means 1.
    """

    anchor_generator: AnchorGenerator = AnchorGenerator(
        scales=(8, 16, 32), ratios=(0.5, 1.0, 2.0), strides=(4, 8, 16, 32, 64)
    )
    bbox_coder: BoxCoder | DistancePointBBoxCoder = DeltaXYWHBBoxCoder()
    reg_decoded_bbox: bool = False
    loss_cls: Loss = CrossEntropyLoss(use_sigmoid=True)
    loss_bbox: Loss = SmoothL1Loss(beta=1 / 9)
    assigner: Assigner
    sampler: Sampler = PseudoSampler()
    allowed_border: Finite = -1
    pos_weight: Finite = -1

    takes_samplers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.takes_samplers or isinstance(self.sampler, PseudoSampler)):
            raise self.value_error(f"sampler must be PseudoSampler, got {self.sampler!r}")

    @property
    def num_base_priors(self) -> int:
        return self.anchor_generator.num_base_priors

    @property
    def strides(self) -> tuple[int, ...]:
        return self.anchor_generator.strides

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return self.anchor_generator.grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        anchors = jnp.asarray(grid.priors)
        found = self.assign_by(self.assigner, grid, image)
        boxes = pick(image.gt_boxes, found.gt_inds)
        learnt = boxes if self.reg_decoded_bbox else self.bbox_coder.encode(anchors, boxes)
        centerness = None
        if "centernesses" in self.channels:
            centerness = centerness_target(bbox2distance(convert_boxes(anchors)[:, :2], boxes))
        return self.make_targets(
            found.gt_inds, found.labels, learnt, centerness, pos_weight=self.pos_weight
        )

    def assign_by(self, assigner: Assigner, grid: Grid, image: Image) -> Assignment:
        """The ground truth of an image's anchors by an assigner that looks at anchors alone."""
        return assigner.assign(
            jnp.asarray(grid.priors),
            image.gt_boxes,
            image.gt_labels,
            self.taking_part(grid, image),
            level_sizes=grid.level_sizes,
        )

    def taking_part(self, grid: Grid, image: Image) -> jax.Array:
        """Which anchors (N,) take part: those of cells in the image, within `allowed_border`."""
        anchors = jnp.asarray(grid.priors)
        border = as_dtype(anchors.dtype, self.allowed_border)
        inside = (border < 0) | inside_flags(anchors, image.image_shape, border)
        return valid_flags(grid, image.pad_shape) & inside

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets, count = rows.targets, self.count(criterion, rows.targets)
        criterion.add("loss_cls", rows.cls_scores, targets.labels, targets.label_weights, count)
        pred = rows.bbox_preds
        if self.reg_decoded_bbox:
            pred = self.bbox_coder.decode(rows.priors, pred)
        weight = jnp.broadcast_to(targets.bbox_weights[..., None], pred.shape)
        criterion.add("loss_bbox", pred, targets.bbox_targets, weight, count)

    def count(self, criterion: Criterion, targets: HeadTargets) -> jax.Array:
        """What `compute` divides the losses by."""
        return count_positives(criterion, targets)

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        return self.bbox_coder.decode(jnp.asarray(grid.priors[None]), bbox_preds, image_shapes)

    def _raise_unless_one_anchor(self) -> None:
        """Raises a ValueError where a cell has several anchors."""
        if self.num_base_priors != 1:
            raise self.value_error(f"a cell must have one anchor, got {self.num_base_priors}")

    def _raise_unless_decoded(self) -> None:
        """Raises a ValueError where `loss_bbox` would not get boxes."""
        if not self.reg_decoded_bbox:
            raise self.value_error("reg_decoded_bbox must be True: the box loss is of boxes")


def count_positives(criterion: Criterion, targets: HeadTargets) -> jax.Array:
    """What class losses are divided by: the sum over the images of max(positives, 1).

    So an image without positives counts as one.
    """
    return criterion.total(jnp.maximum(targets.bbox_weights.sum(1), 1).sum())
