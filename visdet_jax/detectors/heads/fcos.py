"""The head of FCOS."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.distances import centerness_target
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.fcos import fcos_assign
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.priors import MlvlPointGenerator
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import HeadTargets
from visdet_jax.losses.boxes.iou import IoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss

INF = 1e8  # mmdet's idea of no upper end, in pixels


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class FCOSHead(DenseHead):
    """FCOS: a point in every cell learns the smallest box that contains it and suits its level.

    With n = max(positives of the batch, 1) and c the centerness of the positives: `loss_cls` is
    the sum over all points divided by n, `loss_bbox` Σ c · loss / max(Σ c, 1e-6) of boxes in
    pixels, and `loss_centerness` the sum over positives divided by n.

    `bbox_preds` are distances (left, top, right, bottom), already positive: after the network's exp
    in pixels, or with `norm_on_bbox` after its ReLU in strides. Points in an image's padding are
    ordinary negatives, and `image_shapes` and `pad_shapes` have no effect on the losses.

    Args:
      strides: of the levels, in pixels.
      regress_ranges: of the largest distance, in pixels, for each level.
      center_sampling: whether only points near a box's centre are its positives.
      center_sample_radius: how near, in strides.
      norm_on_bbox: whether distances are in strides.
    Tian et al. 2019, https://arxiv.org/abs/1904.01355; mmdet's `FCOSHead`.
    """

    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
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

    def __post_init__(self):
        super().__post_init__()
        if len(self.regress_ranges) != len(self.strides) or any(
            len(pair) != 2 for pair in self.regress_ranges
        ):
            raise self.value_error(
                f"{len(self.strides)} strides need as many regress_ranges (low, high), got "
                f"{self.regress_ranges}"
            )

    def grid(self, sizes, dtype):
        return MlvlPointGenerator(strides=self.strides).grid(sizes, dtype)

    def assign(self, grid, gt_boxes, gt_labels, image_shape, pad_shape):
        points, strides = jnp.asarray(grid.priors), jnp.asarray(grid.strides)
        ranges = np.repeat(np.asarray(self.regress_ranges, points.dtype), grid.level_sizes, axis=0)
        found = fcos_assign(
            points,
            gt_boxes,
            gt_labels,
            strides=strides,
            regress_ranges=jnp.asarray(ranges),
            center_sampling=self.center_sampling,
            center_sample_radius=self.center_sample_radius,
        )
        positive = found.gt_inds > 0
        distances = self.bbox_coder.encode(points, pick(gt_boxes, found.gt_inds))
        if self.norm_on_bbox:
            distances /= strides[:, None]
        return HeadTargets(
            gt_inds=found.gt_inds,
            labels=jnp.where(positive, found.labels, self.num_classes),
            label_weights=jnp.ones_like(strides),
            bbox_targets=jnp.where(positive[:, None], distances, 0),
            bbox_weights=positive.astype(points.dtype),
            centerness=jnp.where(positive, centerness_target(distances), 0),
        )

    def compute(self, criterion, rows):
        targets, centerness = rows.targets, rows.targets.centerness
        count = criterion.total(targets.bbox_weights.sum())
        criterion.add("loss_cls", rows.cls_scores, targets.labels, targets.label_weights, count)
        # With norm_on_bbox pixels and strides are mixed, as in the reference: an IoU does not
        # change when both boxes move.
        pred, target = (
            self.bbox_coder.decode(rows.priors, distances)
            for distances in (rows.bbox_preds, targets.bbox_targets)
        )
        total = criterion.total(centerness.sum(), 1e-6)
        criterion.add("loss_bbox", pred, target, centerness, total)
        criterion.add("loss_centerness", rows.centernesses, centerness, targets.bbox_weights, count)

    def boxes(self, grid, bbox_preds, image_shapes):
        if self.norm_on_bbox:
            bbox_preds = bbox_preds * grid.strides[None, :, None]
        return self.bbox_coder.decode(grid.priors[None], bbox_preds, image_shapes)
