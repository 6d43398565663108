"""The region proposal network's head: the first stage of Faster R-CNN."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from visdet_jax.core.docstrings import described_by
from visdet_jax.core.hyperparameters import Count
from visdet_jax.detectors.assigners.assigner import IGNORED
from visdet_jax.detectors.heads.anchor_head import AnchorHead, count_positives
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.first_stage import FirstStage
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.postprocessing import ProposalConfig
from visdet_jax.detectors.priors import AnchorGenerator
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.samplers.pseudo import PseudoSampler
from visdet_jax.detectors.samplers.sampler import NOT_CHOSEN, POSITIVE
from visdet_jax.detectors.structures import (
    AxisName,
    HeadOutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import L1Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RPNHead(AnchorHead, FirstStage):
    """Region proposal network: whether an anchor has an object, and that object's box.

    All ground truth is of one class, whatever its labels. Of the anchors that are assigned the
    sampler takes some. With n = Σ over images of max(positives, 1) + max(negatives, 1) of these,
    `loss_rpn_cls` is the sum over the sampled anchors divided by n, and `loss_rpn_bbox` the sum
    over the sampled positives, of all four coordinates, divided by n. Without a sampler all anchors
    take part that are not ignored, and n = Σ max(positives, 1).

    Args:
      sampler: Takes a fixed number of the anchors, at random with a key.

    Source: Ren et al. 2015, https://arxiv.org/abs/1506.01497; mmdet's `RPNHead`
    """

    takes_samplers: ClassVar[bool] = True
    suppresses_by_level: ClassVar[bool] = True

    num_classes: Count = 1
    anchor_generator: AnchorGenerator = AnchorGenerator(
        scales=(8,), ratios=(0.5, 1.0, 2.0), strides=(4, 8, 16, 32, 64)
    )
    loss_bbox: Loss = L1Loss()
    test_cfg: ProposalConfig = ProposalConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_for_losses_of_boxes(self.reg_decoded_bbox)

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
        key: jax.Array | None = None,
        chosen: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          gt_labels: (B, G) integers of any width. Negative ones are padding, of whose boxes nothing
            is read; all others mean an object, whatever its class.
          key: A `jax.random.key` for a sampler that draws. On several devices under `shard_map`
            each needs its own.
          chosen: (B, N) which anchors are sampled, in place of a draw: 1 for a positive, 2 for a
            negative, 0 for none. Then no key is needed.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit, and for a key that is
          missing.
        """
        targets = self.targets(
            outputs, gt_boxes, gt_labels, image_shapes, pad_shapes, key=key, chosen=chosen
        )
        return self.losses_of(state, outputs, targets, axis_name)

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
        key: jax.Array | None = None,
        chosen: jax.Array | None = None,
    ) -> HeadTargets:
        """What each anchor learns. The arguments are those of `loss`.

        `gt_inds` is -1 for anchors that were not sampled.
        """
        targets = super().targets(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        chosen = self.sampler.choose(targets.gt_inds, key=key, chosen=chosen)
        positive, sampled = chosen == POSITIVE, chosen != NOT_CHOSEN
        return HeadTargets(
            gt_inds=jnp.where(sampled, targets.gt_inds, jnp.minimum(targets.gt_inds, IGNORED)),
            labels=jnp.where(positive, targets.labels, self.num_classes),
            label_weights=jnp.where(sampled, targets.label_weights, 0),
            bbox_targets=jnp.where(positive[..., None], targets.bbox_targets, 0),
            bbox_weights=jnp.where(positive, targets.bbox_weights, 0),
        )

    def losses_of(
        self,
        state: States,
        outputs: HeadOutputs,
        targets: HeadTargets,
        axis_name: AxisName,
        **options: Any,
    ) -> tuple[Losses, States]:
        losses, state = super().losses_of(state, outputs, targets, axis_name, **options)
        return {name.replace("loss_", "loss_rpn_"): x for name, x in losses.items()}, state

    def count(self, criterion: Criterion, targets: HeadTargets) -> jax.Array:
        if isinstance(self.sampler, PseudoSampler):
            return count_positives(criterion, targets)
        positives = targets.bbox_weights.sum(1)
        negatives = (targets.label_weights > 0).astype(positives.dtype).sum(1) - positives
        return criterion.total((jnp.maximum(positives, 1) + jnp.maximum(negatives, 1)).sum())
