"""What the heads of a first stage share, whatever their priors are."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import compiled
from visdet_jax.detectors.postprocessing import ProposalConfig
from visdet_jax.detectors.structures import HeadOutputs, Shapes


@dataclass(frozen=True, kw_only=True)
class FirstStage(DenseHead):
    """Mixin of a dense head of one class, an object, that proposes boxes to a second stage.

    It comes last among the bases. A subclass has the defaults `num_classes: Count = 1` and
    `test_cfg: ProposalConfig = ProposalConfig()`.

    Args:
      num_classes: Must be 1.
      test_cfg: Which boxes `detect` makes proposals: those of the second stage in evaluation.
      rpn_proposal: Which boxes `proposals` makes proposals: those of the second stage in training,
        as in mmdet's `train_cfg.rpn_proposal`. None takes `test_cfg`.
    """

    rpn_proposal: ProposalConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_classes != 1:
            raise self.value_error(f"num_classes must be 1, got {self.num_classes}")

    @compiled
    def proposals(self, outputs: HeadOutputs, image_shapes: Shapes | None = None) -> KeptDetections:
        """The boxes that the second stage is trained on, as `rpn_proposal` says.

        As `detect`, which goes by `test_cfg`. No gradient flows through it.

        Args:
          outputs, image_shapes: See `detect`.

        Returns: (B, P, ...) the boxes and their scores in their slots, the index of each one's
          prior, and which slots hold one.
        """
        config = self.test_cfg if self.rpn_proposal is None else self.rpn_proposal
        return jax.lax.stop_gradient(self.detect_by(outputs, image_shapes, config))

    def ground_truth(
        self, gt_boxes: Any, gt_labels: Any, batch: int, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        boxes, labels = super().ground_truth(gt_boxes, gt_labels, batch, dtype)
        return boxes, jnp.minimum(labels, 0)

    @property
    def last_label(self) -> int:
        return np.iinfo(np.int32).max  # Objects of every class are of one class here.
