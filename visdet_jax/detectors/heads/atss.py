"""ATSS's head."""

from dataclasses import dataclass
from typing import Any

from visdet_jax.detectors.heads.anchor_head import AnchorHead, count_positives
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Rows
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class ATSSHead(AnchorHead):
    """ATSS: RetinaNet's class loss, a box loss weighted by centerness, and a centerness loss.

    With n = Σ over images of max(positives, 1) and c the centerness of the positives' anchors,
    `loss_cls` is the sum over the anchors divided by n, `loss_bbox` Σ c · loss / max(Σ c, 1), and
    `loss_centerness` the sum over the positives divided by n.

    `bbox_preds` are deltas (B, H, W, A · 4), as the network gives them.

    Args:
      reg_decoded_bbox: Must be True: `loss_bbox` gets boxes in pixels.
      loss_centerness: Loss of the centerness logits, whose targets are in [0, 1].

    Source: Zhang et al. 2020, https://arxiv.org/abs/1912.02424; mmdet's `ATSSHead`
    """

    reg_decoded_bbox: bool = True
    loss_centerness: Loss = CrossEntropyLoss(use_sigmoid=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_unless_decoded()

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        centerness: Any = targets.centerness
        count = count_positives(criterion, targets)
        criterion.add("loss_cls", rows.cls_scores, targets.labels, targets.label_weights, count)
        boxes = self.bbox_coder.decode(rows.priors, rows.bbox_preds)
        # As mmdet: divided by 1 + eps, and then by the sum, so that the digits are the same.
        criterion.add("loss_bbox", boxes, targets.bbox_targets, centerness, 1.0)
        criterion.losses["loss_bbox"] /= criterion.total(centerness.sum())
        criterion.add("loss_centerness", rows.centernesses, centerness, targets.bbox_weights, count)
