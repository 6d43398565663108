"""The base of the heads on anchors: RetinaNet, ATSS, GFL."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import bbox2distance, centerness_target
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.detectors.assigners.assigner import Assigner, pick
from visdet_jax.detectors.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.priors import AnchorGenerator, inside_flags, valid_flags
from visdet_jax.detectors.samplers.pseudo import PseudoSampler
from visdet_jax.detectors.structures import HeadTargets
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import SmoothL1Loss


@dataclass(frozen=True, kw_only=True)
class AnchorHead(DenseHead):
    """Base of the heads on anchors; mmdet's defaults.

    Args:
      anchor_generator, bbox_coder, assigner: objects, or their configs in a head's config.
      reg_decoded_bbox: whether `loss_bbox` gets boxes in pixels, as losses of the IoU family need,
        or what the network predicts for them.
      allowed_border: by how many pixels anchors may reach over the image, -1 for any number.
      pos_weight: weight of positives in the class loss, -1 for 1.
    """

    anchor_generator: AnchorGenerator = AnchorGenerator(
        scales=(8, 16, 32), ratios=(0.5, 1.0, 2.0), strides=(4, 8, 16, 32, 64)
    )
    bbox_coder: DeltaXYWHBBoxCoder | DistancePointBBoxCoder = DeltaXYWHBBoxCoder()
    reg_decoded_bbox: bool = False
    loss_cls: Loss = CrossEntropyLoss(use_sigmoid=True)
    loss_bbox: Loss = SmoothL1Loss(beta=1 / 9)
    assigner: Assigner
    sampler: PseudoSampler = PseudoSampler()
    allowed_border: float = -1
    pos_weight: float = -1

    @property
    def num_base_priors(self):
        return self.anchor_generator.num_base_priors

    @property
    def strides(self):
        return self.anchor_generator.strides

    def grid(self, sizes, dtype):
        return self.anchor_generator.grid(sizes, dtype)

    def assign(self, grid, gt_boxes, gt_labels, image_shape, pad_shape):
        anchors = jnp.asarray(grid.priors)
        valid = valid_flags(grid, pad_shape)
        if self.allowed_border >= 0:
            valid &= inside_flags(anchors, image_shape, self.allowed_border)
        found = self.assigner.assign(
            anchors, gt_boxes, gt_labels, valid, level_sizes=grid.level_sizes
        )
        positive = found.gt_inds > 0
        boxes = pick(gt_boxes, found.gt_inds)
        targets = boxes if self.reg_decoded_bbox else self.bbox_coder.encode(anchors, boxes)
        one = jnp.ones((), anchors.dtype)
        return HeadTargets(
            gt_inds=found.gt_inds,
            labels=jnp.where(positive, found.labels, self.num_classes),
            label_weights=jnp.where(
                positive,
                one * (self.pos_weight if self.pos_weight > 0 else 1),
                (found.gt_inds == 0).astype(anchors.dtype),
            ),
            bbox_targets=jnp.where(positive[:, None], targets, 0),
            bbox_weights=positive.astype(anchors.dtype),
            centerness=self.centerness(anchors, boxes, positive),
        )

    def centerness(
        self, anchors: jax.Array, boxes: jax.Array, positive: jax.Array
    ) -> jax.Array | None:
        """What the centerness of each anchor learns, for heads that have one."""
        if "centernesses" not in self.channels:
            return None
        distances = bbox2distance(convert_boxes(anchors)[:, :2], boxes)
        return jnp.where(positive, centerness_target(distances), 0)

    def boxes(self, grid, bbox_preds, image_shapes):
        return self.bbox_coder.decode(grid.priors[None], bbox_preds, image_shapes)


def count_positives(criterion: Criterion, targets: HeadTargets) -> jax.Array:
    """What class losses are divided by: the sum over the images of max(positives, 1).

    So an image without positives counts as one.
    """
    return criterion.total(jnp.maximum(targets.bbox_weights.sum(1), 1).sum())
