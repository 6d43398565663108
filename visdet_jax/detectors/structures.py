"""What goes into a head and what comes out of it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from visdet_jax.function import exportable


@exportable
class HeadOutputs(NamedTuple):
    """What a network gives, level by level, channels last: what mmdet's `loss_by_feat` gets.

    A priors at a cell, C classes (and one channel for background where the class loss is a
    softmax). Channel a · C + c is class c of prior a.
    """

    cls_scores: Sequence[jax.Array]  # (B, H, W, A·C) logits
    bbox_preds: Sequence[jax.Array]  # (B, H, W, A·4), in bins (B, H, W, A·4·(reg_max + 1)) logits
    centernesses: Sequence[jax.Array] | None = None  # (B, H, W, A) logits, where the head has them


@exportable
class HeadTargets(NamedTuple):
    """What each of the N priors of B images learns."""

    gt_inds: jax.Array  # (B, N) 1 for the first box; 0 background, -1 ignored, -2 dropped prior
    labels: jax.Array  # (B, N) num_classes for background
    label_weights: jax.Array  # (B, N)
    bbox_targets: jax.Array  # (B, N, 4) in the head's own terms; 0 where there is no box
    bbox_weights: jax.Array  # (B, N) 1 where there is a box, else 0
    centerness: jax.Array | None = None  # (B, N) 0 where there is no box


@exportable
class Detections(NamedTuple):
    """What the outputs say, before non-maximum suppression."""

    boxes: jax.Array  # (B, N, 4) as x1, y1, x2, y2, in pixels
    scores: jax.Array  # (B, N, C) in [0, 1]


class Rows(NamedTuple):
    """Outputs and targets of the N priors of all levels, in each of B images."""

    cls_scores: list[jax.Array]  # (B, n, C) of each level: too large to be copied into one array
    bbox_preds: jax.Array  # (B, N, 4) or (B, N, 4 · (reg_max + 1))
    centernesses: jax.Array | None  # (B, N)
    priors: np.ndarray  # (1, N, 4) or (1, N, 2)
    strides: np.ndarray  # (1, N) of the priors
    targets: HeadTargets  # of (B, N, ...)
