"""RetinaNet's head."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.detectors.heads.anchor_head import AnchorHead, count_positives
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.priors import AnchorGenerator
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Rows
from visdet_jax.losses.boxes._box_loss import BoxLoss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RetinaHead(AnchorHead):
    """RetinaNet: a class loss of all anchors that are not ignored, a box loss of the positives.

    With n = Σ over images of max(positives, 1), `loss_cls` is the sum over the anchors divided by
    n, and `loss_bbox` the sum over the positives, of all four coordinates, divided by n.

    `bbox_preds` are deltas (B, H, W, A · 4), as the network gives them. Which priors the boxes
    below 32 pixels get is decided by rounding, in mmdet too: see `max_iou_assign`.

    Args:
      loss_bbox: Loss of the boxes: of their deltas, or with `reg_decoded_bbox` of boxes in pixels.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002; mmdet's `RetinaHead`
    """

    anchor_generator: AnchorGenerator = AnchorGenerator(
        octave_base_scale=4,
        scales_per_octave=3,
        ratios=(0.5, 1.0, 2.0),
        strides=(8, 16, 32, 64, 128),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss_bbox, BoxLoss) and not self.reg_decoded_bbox:
            raise self.value_error(f"{self.loss_bbox!r} needs boxes: set reg_decoded_bbox=True")

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        count = count_positives(criterion, targets)
        criterion.add("loss_cls", rows.cls_scores, targets.labels, targets.label_weights, count)
        pred = rows.bbox_preds
        if self.reg_decoded_bbox:
            pred = self.bbox_coder.decode(rows.priors, pred)
        weight = jnp.broadcast_to(targets.bbox_weights[..., None], pred.shape)
        criterion.add("loss_bbox", pred, targets.bbox_targets, weight, count)
