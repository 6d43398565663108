"""What goes into a head and what comes out of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Number

# (B, 2), or a list or tuple of as many pairs: height and width of each image, in pixels.
Shapes = jax.Array | Sequence[Sequence[Number]]
# Names of mesh axes, as `jax.lax.psum` takes them.
AxisName = str | tuple[str, ...] | None
# The losses of a batch by name, each a scalar.
Losses = dict[str, jax.Array]
# The states of a head's losses by name; () for a loss that keeps none.
States = dict[str, Any]


@exportable
class HeadOutputs(NamedTuple):
    """A network's outputs of each level, channels last: what mmdet's `loss_by_feat` gets.

    A is the number of priors in a cell and C that of classes, with one more for background where
    the class loss is a softmax. Channel a · C + c is class c of prior a. A level may have no cells
    (H or W of 0). What a head has not stays None.
    """

    cls_scores: Sequence[jax.Array]  # Logits (B, H, W, A·C); `TOODHead`'s are probabilities.
    # (B, H, W, A·4), or logits of bins, A·4·(reg_max + 1).
    bbox_preds: Sequence[jax.Array] | None = None
    centernesses: Sequence[jax.Array] | None = None  # Logits (B, H, W, A).
    objectnesses: Sequence[jax.Array] | None = None  # Logits (B, H, W, A).
    bbox_preds_refine: Sequence[jax.Array] | None = None  # (B, H, W, A·4)
    kernel_preds: Sequence[jax.Array] | None = None  # Of a mask's convolutions, (B, H, W, A·P).
    mask_feats: jax.Array | None = None  # What those convolutions read, (B, h, w, channels).
    wh_preds: Sequence[jax.Array] | None = None  # (B, H, W, 2) width and height, in cells.
    offset_preds: Sequence[jax.Array] | None = None  # (B, H, W, 2) of a centre in its cell: x, y.


@exportable
class DETROutputs(NamedTuple):
    """The outputs of a decoder with L layers and Q queries: what mmdet's `loss_by_feat` gets.

    Boxes are (cx, cy, w, h) in fractions of the image. The last layer's are the detections; those
    of the layers before it are auxiliary. A two-stage encoder adds P proposals. The N denoising
    queries, and what they learn, are those of `dn_queries`; mmdet has them in front of the others.
    """

    cls_scores: jax.Array  # Logits (L, B, Q, C); C + 1 with a softmax, whose last is background.
    bbox_preds: jax.Array  # (L, B, Q, 4)
    enc_cls_scores: jax.Array | None = None  # Logits (B, P, C).
    enc_bbox_preds: jax.Array | None = None  # (B, P, 4)
    dn_cls_scores: jax.Array | None = None  # Logits (L, B, N, C).
    dn_bbox_preds: jax.Array | None = None  # (L, B, N, 4)
    # (B, N) integers: 1 for the first box, 0 for background, -1 for queries that learn nothing.
    dn_gt_inds: jax.Array | None = None


@exportable
class DFINEOutputs(NamedTuple):
    """The outputs of D-FINE's decoder with L layers and Q queries: what `DFINECriterion` gets.

    Boxes are (cx, cy, w, h) in fractions of the image. `corners` are the logits of the bins 0 to
    reg_max of each side, left, top, right, bottom; see `boxes.bins`. The last layer's boxes are the
    detections. What a network does not have stays None.
    """

    cls_scores: jax.Array  # Logits (L, B, Q, C).
    bbox_preds: jax.Array  # (L, B, Q, 4)
    corners: jax.Array | None = None  # (L, B, Q, 4 · (reg_max + 1))
    ref_points: jax.Array | None = None  # (B, Q, 4) boxes that the corners of all layers refine.
    up: jax.Array | float | None = None  # () or (1,), see `bin_values`.
    reg_scale: jax.Array | float | None = None  # () or (1,), see `bin_values`.
    # Of a plain head after the first layer, and of the encoder.
    pre_cls_scores: jax.Array | None = None  # Logits (B, Q, C).
    pre_bbox_preds: jax.Array | None = None  # (B, Q, 4)
    enc_cls_scores: jax.Array | None = None  # Logits (B, Q, C), or (B, Q, 1) of any class.
    enc_bbox_preds: jax.Array | None = None  # (B, Q, 4)
    # Of the N denoising queries.
    dn_cls_scores: jax.Array | None = None  # Logits (L, B, N, C).
    dn_bbox_preds: jax.Array | None = None  # (L, B, N, 4)
    dn_corners: jax.Array | None = None  # (L, B, N, 4 · (reg_max + 1))
    dn_ref_points: jax.Array | None = None  # (B, N, 4)
    dn_pre_cls_scores: jax.Array | None = None  # Logits (B, N, C).
    dn_pre_bbox_preds: jax.Array | None = None  # (B, N, 4)
    dn_gt_inds: jax.Array | None = None  # (B, N), as in `DETROutputs`.


@exportable
class RFDETROutputs(NamedTuple):
    """The outputs of RF-DETR's decoder with L layers and Q queries, in groups one after the other.

    Boxes are (cx, cy, w, h) in fractions of the image. The last layer's are the detections. A
    two-stage encoder adds P proposals, in as many groups. Masks are h x w, of the whole image.
    """

    cls_scores: jax.Array  # Logits (L, B, Q, C).
    bbox_preds: jax.Array  # (L, B, Q, 4)
    mask_preds: jax.Array | None = None  # Logits (L, B, Q, h, w).
    enc_cls_scores: jax.Array | None = None  # Logits (B, P, C).
    enc_bbox_preds: jax.Array | None = None  # (B, P, 4)
    enc_mask_preds: jax.Array | None = None  # Logits (B, P, h, w).


@exportable
class MaskFormerOutputs(NamedTuple):
    """A mask and its class from each of Q queries, after each of L layers of a decoder.

    It is what mmdet's `loss_by_feat` gets. The last layer's are the predictions, those of the
    layers before it are auxiliary. Mask2Former counts what its queries are before the first layer
    as a layer too.
    """

    cls_scores: jax.Array  # Logits (L, B, Q, C + 1), the last of "no object".
    mask_preds: jax.Array  # Logits (L, B, Q, h, w).


@exportable
class MaskPoints(NamedTuple):
    """The points at which masks are compared, for a replay; None for what the head shall draw.

    They are x, y in fractions of the image. S are the L layers of the decoder, and in RF-DETR then
    the encoder, where there is one. A mask has P points for its losses, of which k are chosen among
    C candidates; see `uncertain_points`.
    """

    # What the matching compares: (S, B, M, 2), M being P; in RF-DETR (S, M, 2), for all images.
    matching: jax.Array | None = None
    candidates: jax.Array | None = None  # (S, B, Q, C, 2)
    rest: jax.Array | None = None  # (S, B, Q, P - k, 2): those that are not chosen by the logits.


@exportable
class MaskTargets(NamedTuple):
    """What each of Q queries of B images learns in each of L layers."""

    gt_inds: jax.Array  # (L, B, Q): 1 for the first mask; 0 no object, -1 a query that is left out.
    labels: jax.Array  # (L, B, Q): the class, or num_classes for no object.
    label_weights: jax.Array  # (L, B, Q): 0 for a query that is left out, else 1.


@exportable
class Masks(NamedTuple):
    """The masks and scores that the outputs mean."""

    scores: jax.Array  # (B, Q, C) in [0, 1].
    masks: jax.Array  # (B, Q, h, w) in [0, 1].


@exportable
class Candidates(NamedTuple):
    """What is learnt where several boxes may learn at one prior, in K slots of each of B images.

    An empty slot has the weight 0, and nothing is read of it.
    """

    priors: jax.Array  # (B, K) int32: which of the N priors predicts; 0 in empty slots.
    gt_inds: jax.Array  # (B, K): 1 for the first box; 0 in empty slots.
    labels: jax.Array  # (B, K): the class, or num_classes in empty slots.
    bbox_targets: jax.Array  # (B, K, 4) in the form that the head learns; 0 in empty slots.
    weights: jax.Array  # (B, K): how many times the slot counts.


@exportable
class HeadTargets(NamedTuple):
    """What each of the N priors of B images learns. Of queries, all have an axis L in front."""

    gt_inds: jax.Array  # (B, N): 1 for the first box; 0 background, -1 ignored, -2 dropped prior.
    labels: jax.Array  # (B, N): the class, or num_classes for background.
    label_weights: jax.Array  # (B, N)
    bbox_targets: jax.Array  # (B, N, 4) in the form that the head learns; 0 without a box.
    bbox_weights: jax.Array  # (B, N): 1 where there is a box, else 0.
    centerness: jax.Array | None = None  # (B, N): 0 without a box. None for heads without it.
    # (B, N): how well a prediction does for its box, in [0, 1], which its class learns in place of
    # 1; 0 without a box. None for heads that do not look at predictions.
    metrics: jax.Array | None = None
    # For heads whose priors may learn several boxes each. The rest is then of one of them.
    candidates: Candidates | None = None
    # (B, N, C) in [0, 1], which the classes learn in place of `labels`: 1 at the centre of a box of
    # the class, and less around it. None for heads that learn no heatmaps.
    heatmaps: jax.Array | None = None


@exportable
class Detections(NamedTuple):
    """The boxes and scores that the outputs mean, before non-maximum suppression."""

    boxes: jax.Array  # (B, N, 4) as x1, y1, x2, y2, in pixels.
    scores: jax.Array  # (B, N, C) in [0, 1].


@exportable
class Proposals(NamedTuple):
    """The boxes that a second stage looks at, in fixed slots."""

    boxes: jax.Array  # (B, P, 4) as x1, y1, x2, y2, in pixels.
    exists: jax.Array  # (B, P) False for padding, of whose boxes nothing is read.


@exportable
class Samples(NamedTuple):
    """The S boxes of each image that a second stage learns from, and what they learn.

    The chosen positives come first, then the chosen negatives, both in the order of the
    candidates, which are the G ground truths and then the P proposals. Slots that are left over
    have the box 0, 0, 0, 0 and weight 0.
    """

    boxes: jax.Array  # (B, S, 4) as x1, y1, x2, y2, in pixels: what the network aligns.
    candidates: jax.Array  # (B, S) int32: the candidate, -1 in empty slots.
    is_gt: jax.Array  # (B, S) bool: whether the candidate is a ground truth.
    targets: HeadTargets  # gt_inds are -2 in empty slots.


@exportable
class RoIOutputs(NamedTuple):
    """What the second stage's network gives for the boxes of `Samples`, channels last.

    C is the number of classes. Some class losses have channels of their own; see `channels`.
    """

    cls_scores: jax.Array  # Logits (B, S, C + 1), the last of the background.
    bbox_preds: jax.Array  # (B, S, 4·C), channel 4·c + k for class c; or (B, S, 4) for all.
    # Logits (B, M, m, m, C or 1) for the first M slots, which hold all positives.
    mask_preds: jax.Array | None = None


@exportable
class SparseRoIOutputs(NamedTuple):
    """What Sparse R-CNN's L stages give for the Q regions of each image.

    The boxes of a stage are the regions of the next one.
    """

    cls_scores: jax.Array  # Logits (L, B, Q, C); C + 1 with a softmax, whose last is background.
    bbox_preds: jax.Array  # (L, B, Q, 4) as x1, y1, x2, y2, in pixels.
    # QueryInst's: logits (L, B, G, h, w, C or 1) of the region that each box is matched with.
    # Nothing is read of padding, and of a box that has none.
    mask_preds: jax.Array | None = None


class Image(NamedTuple):
    """One image: its ground truth, its sizes, and what the network gave for its N priors.

    A batch of them has an axis B in front of all arrays.
    """

    gt_boxes: jax.Array  # (G, 4) as x1, y1, x2, y2, in pixels; 0 for padding.
    gt_labels: jax.Array  # (G,), negative for padding.
    image_shape: jax.Array  # (height, width) in pixels.
    pad_shape: jax.Array  # (height, width) in pixels with the image's own padding.
    outputs: dict[str, list[jax.Array]]  # By the names of `HeadOutputs`, of each level (n, ...).
    gt_centers: jax.Array | None = None  # (G, 2) x, y of the masks' centres, where masks are known.
    ignore_flags: jax.Array | None = None  # (G,) bool: which boxes are regions to ignore.


class Rows(NamedTuple):
    """Outputs and targets of the N priors of all levels, in each of B images."""

    # (B, n, C) of each level. Keep them apart: together they are the largest array of a detector,
    # and one array of all levels would be a copy of it.
    cls_scores: list[jax.Array]
    bbox_preds: jax.Array  # (B, N, 4) or (B, N, 4 · (reg_max + 1))
    # (B, H, W, A · 4) or (B, H, W, A · 4 · (reg_max + 1)) of each level, as the network gave them:
    # for logits of bins, which are large. See `distances_of_maps`.
    bbox_maps: Sequence[jax.Array]
    priors: jax.Array  # Anchors (1, N, 4) or points (1, N, 2), in pixels.
    strides: jax.Array  # (1, N), in pixels.
    targets: HeadTargets
    centernesses: jax.Array | None = None  # (B, N)
    objectnesses: jax.Array | None = None  # (B, N)
    bbox_preds_refine: jax.Array | None = None  # (B, N, 4)
