"""RetinaNet's head."""

from dataclasses import dataclass

from visdet_jax.detectors.heads.anchor_head import AnchorHead
from visdet_jax.detectors.priors import AnchorGenerator
from visdet_jax.detectors.registry import HEADS


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
        self.raise_for_losses_of_boxes(self.reg_decoded_bbox)


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RetinaSepBNHead(RetinaHead):
    """RetinaNet with batch norms of its own for each level: the losses are `RetinaHead`'s.

    Args:
      num_ins: Number of levels in a config of mmdet. It is the network's, and has no effect.

    Source: mmdet's `RetinaSepBNHead`
    """

    num_ins: int = 5
