"""The head of Generalized Focal Loss."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes.distances import integral
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.boxes.overlap import overlaps
from visdet_jax.detectors.assigners.assigner import EPS
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads.anchor_head import AnchorHead, count_positives
from visdet_jax.detectors.registry import HEADS
from visdet_jax.losses.boxes.distribution_focal import DistributionFocalLoss
from visdet_jax.losses.loss import Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class GFLHead(AnchorHead):
    """GFL: classes scored by the IoU of their boxes, and each side of a box as a distribution.

    Per level, in its strides, from the anchors' centres, with n = Σ over images of
    max(positives, 1), q the IoU of a positive's box and w its largest class probability (neither
    has a gradient): `loss_cls` gets (label, q) and is divided by n; `loss_bbox` is
    Σ w · loss / max(Σ w, 1); `loss_dfl` Σ w · (sum over the sides) / 4 / max(Σ w, 1), with targets
    clipped to [0, reg_max - 0.1].

    `bbox_preds` are logits (B, H, W, 4 · (reg_max + 1)), side by side (left, top, right, bottom).

    Args:
      loss_dfl: gets logits (M, reg_max + 1) and distances (M,) in bins.
      reg_max: the last bin, in strides.
    Li et al. 2020, https://arxiv.org/abs/2006.04388; mmdet's `GFLHead`.
    """

    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()
    reg_decoded_bbox: bool = True
    loss_dfl: Loss = DistributionFocalLoss(loss_weight=0.25)
    reg_max: int = 16

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("reg_max")
        if not self.reg_decoded_bbox:
            raise self.value_error("reg_decoded_bbox must be True: the box loss is of boxes")
        if self.num_base_priors != 1:
            raise self.value_error(f"a cell must have one anchor, got {self.num_base_priors}")
        if not self.use_sigmoid:
            raise self.value_error(
                f"loss_cls must use a sigmoid for each class, got {self.loss_cls!r}"
            )

    @property
    def box_channels(self):
        return 4 * (self.reg_max + 1)

    def examples(self, rows):
        def floats(*shape):
            return jax.ShapeDtypeStruct((rows, *shape), "float32")

        slots = super().examples(rows)
        logits, labels = slots["loss_cls"]
        return slots | {
            "loss_cls": (logits, (labels, floats())),
            "loss_dfl": (floats(self.reg_max + 1), floats()),
        }

    def compute(self, criterion, rows):
        targets, strides = rows.targets, rows.strides[..., None]
        points = convert_boxes(rows.priors)[..., :2] / strides
        logits, distances = self._distances(rows.bbox_preds)
        pred = self.bbox_coder.decode(points, distances)
        target = targets.bbox_targets / strides
        iou = overlaps(jax.lax.stop_gradient(pred), target, "iou", EPS)
        quality = jnp.where(targets.bbox_weights > 0, iou, 0)
        best = [jax.lax.stop_gradient(x).max(-1).astype(iou.dtype) for x in rows.cls_scores]
        certainty = jax.nn.sigmoid(jnp.concatenate(best, axis=1)) * targets.bbox_weights

        count = count_positives(criterion, targets)
        labels = (targets.labels, quality)
        criterion.add("loss_cls", rows.cls_scores, labels, targets.label_weights, count)
        criterion.add("loss_bbox", pred, target, certainty, 1.0)
        bins = self.bbox_coder.encode(points, target, self.reg_max)
        sides = (bins.shape[0], -1)
        criterion.add(
            "loss_dfl",
            logits.reshape(*sides, self.reg_max + 1),
            bins.reshape(sides),
            jnp.broadcast_to(certainty[..., None], bins.shape).reshape(sides),
            4.0,
        )
        total = criterion.total(certainty.sum())
        for name in ("loss_bbox", "loss_dfl"):
            criterion.losses[name] /= total

    def boxes(self, grid, bbox_preds, image_shapes):
        strides = grid.strides[None, :, None]
        points = convert_boxes(grid.priors[None])[..., :2]
        return self.bbox_coder.decode(
            points, self._distances(bbox_preds)[1] * strides, image_shapes
        )

    def _distances(self, bbox_preds: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits (B, n, 4, reg_max + 1), and the distances (B, n, 4) they mean, in strides."""
        logits = bbox_preds.reshape(*bbox_preds.shape[:2], 4, self.reg_max + 1)
        return logits, integral(logits)
