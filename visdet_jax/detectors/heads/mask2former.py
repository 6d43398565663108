"""Mask2Former's head: MaskFormer's set of masks, compared at points."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.points import sample_points, uncertain_points
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.classes import ClassificationCost
from visdet_jax.detectors.costs.masks import CrossEntropyLossCost, DiceCost
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.heads.maskformer import MaskFormerHead, MaskPairs
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Losses,
    MaskFormerOutputs,
    MaskPoints,
    MaskTargets,
    States,
)
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.masks.dice import DiceLoss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class Mask2FormerHead(MaskFormerHead):
    """Mask2Former's set criterion: MaskFormer's, with masks that are compared at P random points.

    For the matching the masks of an image are compared at P uniform points, the same for all of its
    predictions and ground truths. For the losses each matched pair has P points of its own, most of
    them where the prediction is the least certain; see `uncertain_points`. Between the pixels masks
    are interpolated bilinearly, with 0 beyond their edge, those of the ground truth too. With n as
    in `MaskFormerHead`, `loss_mask` is the sum over the points of all pairs divided by n · P, and
    `loss_dice` that over the pairs divided by n. Neither the matching nor the choice of points has
    a gradient.

    What is random comes from a key, or is given: see `update`.

    Memory: a few numbers for each point of each pair in each layer. Of the masks, those of one
    layer are copied; the ground truth is read where it lies.

    Args:
      loss_mask: Loss of the logits at points.
      loss_dice: Loss of the points of whole masks.
      num_points: The number P of points of a mask, at least 1. Larger values compare more of it.
      oversample_ratio: Candidates for each point, at least 1. Larger values bring the points nearer
        to where the prediction is not certain.
      importance_sample_ratio: The part of the points that is chosen among the candidates, in
        [0, 1]. The others are uniform.

    Source: Cheng et al. 2022, https://arxiv.org/abs/2112.01527; mmdet's `Mask2FormerHead`
    """

    loss_cls: CrossEntropyLoss = CrossEntropyLoss(
        class_weight=(1.0,) * 133 + (0.1,), loss_weight=2.0
    )
    loss_mask: Loss = CrossEntropyLoss(use_sigmoid=True, loss_weight=5.0)
    loss_dice: Loss = DiceLoss(naive_dice=True, eps=1.0, loss_weight=5.0)
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            ClassificationCost(weight=2.0),
            CrossEntropyLossCost(weight=5.0),
            DiceCost(weight=5.0, pred_act=True, eps=1.0),
        )
    )
    num_points: Count = 12544
    oversample_ratio: Annotated[float, Range(1)] = 3.0
    importance_sample_ratio: Annotated[float, Range(0, 1)] = 0.75

    # What users call.

    @compiled
    def update(  # type: ignore[override]
        self,
        state: States,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        *,
        key: jax.Array | None = None,
        points: MaskPoints | None = None,
        gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many masks they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `MaskFormerOutputs`.
          gt_labels: (B, G) integers of any width, from 0 to C - 1, C being the number of all
            classes. Negative ones are padding, of whose masks nothing is read.
          gt_masks: (B, G, H, W) the bitmaps of the ground truth, 0 and 1 of any type. H and W are
            those of the padded images.
          key: A `jax.random.key` for the points that are not given. On several devices under
            `shard_map` each needs its own.
          points: The points, or some of them, in place of a draw; see `MaskPoints`.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's mask,
            1 for the first and 0 for none. A query of -1 is left out.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit, and for a key that is
          missing.
        """
        drawn = self._drawn(outputs, key, points)
        return self.losses_of(state, outputs, gt_labels, gt_masks, drawn, gt_inds, axis_name)

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(  # type: ignore[override]
        self,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        *,
        key: jax.Array | None = None,
        points: MaskPoints | None = None,
        gt_inds: jax.Array | None = None,
    ) -> MaskTargets:
        """What each query learns in each layer. The arguments are those of `loss`."""
        drawn = self._drawn(outputs, key, points)
        return self.targets_of(outputs, gt_labels, gt_masks, drawn, gt_inds)

    # What MaskFormer has otherwise.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        masks = jax.ShapeDtypeStruct((rows, self.num_points), np.float32)
        at_points = {"loss_mask": (masks, masks), "loss_dice": (masks, masks)}
        return super().examples(rows) | at_points

    def masks_to_match(
        self, mask_preds: jax.Array, gt_masks: jax.Array, drawn: Any
    ) -> tuple[jax.Array, jax.Array]:
        points, key = drawn
        at = points.matching
        if at is None:
            if key is None:
                raise ValueError("key must be given, or points.matching or gt_inds")
            of_matching, _ = jax.random.split(key)
            dtype = compute_dtype(pred=mask_preds)
            at = jax.random.uniform(of_matching, (mask_preds.shape[0], self.num_points, 2), dtype)
        at = sharded_as(at, mask_preds)

        def at_points(masks: jax.Array) -> jax.Array:
            points = jnp.broadcast_to(at[:, None], (*masks.shape[:2], *at.shape[1:]))
            return sample_points(masks, points)

        return at_points(mask_preds), at_points(gt_masks)

    def compute_masks(
        self,
        criterion: Criterion,
        mask_preds: jax.Array,
        gt_masks: jax.Array,
        pairs: MaskPairs,
        total: jax.Array,
        drawn: Any,
    ) -> None:
        points, key = drawn
        if key is not None:
            _, key = jax.random.split(key)
        given = {
            name: jax.vmap(lambda x, i: x[i])(x, pairs.queries)
            for name in ("candidates", "rest")
            if (x := getattr(points, name)) is not None
        }
        at = uncertain_points(
            key,
            mask_preds,
            pairs.queries,
            num_points=self.num_points,
            oversample_ratio=self.oversample_ratio,
            importance_ratio=self.importance_sample_ratio,
            **given,
        )
        pred = sample_points(mask_preds, at, pairs.queries)
        target = sample_points(gt_masks, at, pairs.rows)
        weight = pairs.exists.astype(pred.dtype)
        criterion.add("loss_dice", pred, target, weight, total)
        criterion.add("loss_mask", pred, target, weight, total * self.num_points)

    # The rest.

    def _drawn(self, outputs: Any, key: jax.Array | None, points: Any) -> tuple[Any, Any]:
        """The points that are given, and a key for each layer; None without one."""
        self.check_outputs(outputs)
        points = MaskPoints() if points is None else points
        if not isinstance(points, MaskPoints):
            raise TypeError(f"points must be MaskPoints, got {type(points).__name__}")
        layers, batch, queries = outputs.cls_scores.shape[:3]
        chosen = int(self.num_points * self.importance_sample_ratio)
        of_queries = (layers, batch, queries)
        for name, shape in (
            ("matching", (layers, batch, self.num_points, 2)),
            ("candidates", (*of_queries, int(self.num_points * self.oversample_ratio), 2)),
            ("rest", (*of_queries, self.num_points - chosen, 2)),
        ):
            if (x := getattr(points, name)) is not None:
                check_array(f"points.{name}", x)
                if x.shape != shape:
                    raise ValueError(f"points.{name} must have shape {shape}, got {x.shape}")
        points = jax.tree.map(jnp.asarray, points)
        return points, None if key is None else jax.random.split(key, layers)
