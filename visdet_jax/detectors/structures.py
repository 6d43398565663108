"""What goes into a head and what comes out of it."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from visdet_jax.core.export import exportable


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
class DETROutputs(NamedTuple):
    """What a decoder of L layers gives for its Q queries: what mmdet's `loss_by_feat` gets.

    Boxes are centres and sizes in fractions of the image, (cx, cy, w, h). The last layer's are the
    detections, those before auxiliary; the proposals are a two-stage encoder's, of class 0 if any.
    """

    cls_scores: jax.Array  # (L, B, Q, C) logits; C + 1 with a softmax, whose last is background
    bbox_preds: jax.Array  # (L, B, Q, 4)
    enc_cls_scores: jax.Array | None = None  # (B, P, C) logits of P proposals
    enc_bbox_preds: jax.Array | None = None  # (B, P, 4)


@exportable
class HeadTargets(NamedTuple):
    """What each of the N priors of B images learns; of queries, with an axis of layers before."""

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
