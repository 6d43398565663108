"""The head of Generalized Focal Loss."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.distances import integral
from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.core.hyperparameters import Count, Number
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads.anchor_head import AnchorHead, count_positives
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import iou_of_positives
from visdet_jax.detectors.priors import Grid, split_small
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Rows
from visdet_jax.losses.boxes.distribution_focal import DistributionFocalLoss
from visdet_jax.losses.loss import Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class GFLHead(AnchorHead):
    """GFL: class scores that learn the IoU of their boxes, and a distribution for each side.

    Everything is per level in its strides, from the anchors' centres. With n = Σ over images of
    max(positives, 1), q the IoU of a positive's box and w its largest class probability (neither
    has a gradient): `loss_cls` gets (label, q) and is divided by n; `loss_bbox` is
    Σ w · loss / max(Σ w, 1); `loss_dfl` Σ w · (sum over the sides) / 4 / max(Σ w, 1), with targets
    clipped to [0, reg_max - 0.1].

    `bbox_preds` are logits (B, H, W, 4 · (reg_max + 1)), side by side (left, top, right, bottom).

    Args:
      bbox_coder: Between boxes and distances from a point.
      reg_decoded_bbox: Must be True: `loss_bbox` gets boxes, in strides.
      loss_cls: Loss of the class logits, which gets (label, q): one of the quality losses.
      loss_dfl: Loss of the sides, which gets logits (B, H, W, 4, reg_max + 1) and distances
        (B, H, W, 4) in bins.
      reg_max: The last bin, in strides, at least 1. Larger values reach farther.

    Source: Li et al. 2020, https://arxiv.org/abs/2006.04388; mmdet's `GFLHead`
    """

    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()
    reg_decoded_bbox: bool = True
    loss_dfl: Loss = DistributionFocalLoss(loss_weight=0.25)
    reg_max: Count = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_unless_decoded()
        self._raise_unless_one_anchor()
        self.raise_unless_sigmoid()

    @property
    def box_channels(self) -> int:
        return 4 * (self.reg_max + 1)

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        def floats(*shape: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((rows, *shape), "float32")

        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        return examples | {
            "loss_cls": (logits, (labels, floats())),
            "loss_dfl": (floats(1, 1, 4, self.reg_max + 1), floats(1, 1, 4)),
        }

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets, strides = rows.targets, rows.strides[..., None]
        points = convert_boxes(rows.priors)[..., :2] / strides
        logits, distances = distances_of_maps(rows.bbox_maps, self.reg_max + 1)
        pred = self.bbox_coder.decode(points, distances)
        target = targets.bbox_targets / strides
        quality = iou_of_positives(pred, target, targets.bbox_weights)
        largest = [jax.lax.stop_gradient(x).max(-1).astype(quality.dtype) for x in rows.cls_scores]
        certainty = jax.nn.sigmoid(jnp.concatenate(largest, axis=1)) * targets.bbox_weights

        count = count_positives(criterion, targets)
        labels = (targets.labels, quality)
        criterion.add("loss_cls", rows.cls_scores, labels, targets.label_weights, count)
        criterion.add("loss_bbox", pred, target, certainty, 1.0)
        bins = self.bbox_coder.encode(points, target, self.reg_max)
        add_loss_of_bins(criterion, logits, bins, certainty, 4.0)
        # As mmdet: divided by 1 + eps and 4 + eps, and then by the sum, so that the digits are the
        # same.
        total = criterion.total(certainty.sum())
        for name in ("loss_bbox", "loss_dfl"):
            criterion.losses[name] /= total

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        points = convert_boxes(jnp.asarray(grid.priors[None]))[..., :2]
        _, distances = distances_of_maps([bbox_preds], self.reg_max + 1)
        distances *= grid.strides[None, :, None]
        return self.bbox_coder.decode(points, distances, image_shapes)


def distances_of_maps(
    bbox_preds: Sequence[jax.Array], bins: int
) -> tuple[list[jax.Array], jax.Array]:
    """Logits (B, ..., 4, bins) of each level, and the distances (B, N, 4) they mean, in strides.

    Small levels are one: see `split_small`.

    Args:
      bbox_preds: The logits (B, H, W, 4 · bins) of each level, side by side; or (B, n, 4 · bins).
      bins: How many bins a side has.
    """
    large, small = split_small([math.prod(x.shape[1:-1]) for x in bbox_preds])
    maps = list(bbox_preds[large])
    if rest := bbox_preds[small]:
        # Keep the small levels together, as a map of one row, which copies 6 % of the logits. One
        # by one they are 10 kernels more on an H200 (jax 0.12.0.1).
        rows = [x.reshape(x.shape[0], math.prod(x.shape[1:-1]), 4 * bins) for x in rest]
        maps.append(jnp.concatenate(rows, axis=1)[:, None])
    logits, distances = [], []
    for x in maps:
        # Keep the axes of the map. A TPU then leaves the cells along its 128 lanes, as the map has
        # them. As rows (B · H · W · 4, bins) the bins lie there, 17 in 128: GFL's losses of one
        # level need 12 times the memory of its logits in place of 0.9, and move 2.6 times as much
        # (v5e, jax 0.12.0.1).
        sides = x.reshape(*x.shape[:-1], 4, bins)
        # Keep the barrier. Without it XLA splits all that the gradient is made of into sides and
        # puts it together again: a GPU moves 1.4 times as much (H200, jax 0.12.0.1).
        sides = jax.lax.optimization_barrier(sides)
        logits.append(sides)
        # Keep the axes that the loss of the sides gets. With others XLA:CPU computes the
        # exponentials of the two apart, and the losses take 1.7 times as long (jax 0.10.2).
        mean = integral(sides)
        distances.append(mean.reshape(x.shape[0], math.prod(x.shape[1:-1]), 4))
    return logits, jnp.concatenate(distances, axis=1)


def add_loss_of_bins(
    criterion: Criterion,
    logits: list[jax.Array],
    bins: jax.Array,
    weight: jax.Array,
    avg_factor: Number,
) -> None:
    """Adds `loss_dfl` of all sides.

    Args:
      criterion: Where it is added.
      logits: From `distances_of_maps`.
      bins: (B, N, 4) what the sides learn, in bins.
      weight: (B, N) of the priors.
      avg_factor: What the sum over the whole batch is divided by.
    """
    weight = jnp.broadcast_to(weight[..., None], bins.shape)
    ends = np.cumsum([0, *(math.prod(x.shape[1:-2]) for x in logits)]).tolist()
    levels = list(itertools.starmap(slice, itertools.pairwise(ends)))
    criterion.add("loss_dfl", logits, bins, weight, avg_factor, levels, of_maps=True)
