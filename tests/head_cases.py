"""Every registered head as a small one, and batches for it: 3 classes, images of 32 x 48 pixels.

`tests/detectors/heads/test_head.py` and `test_sharded_heads.py` ask their laws of every head in
EVERY_ROW, and fail for a registered head that has no row here. `test_dense_head.py` asks more of
the heads on priors in ROWS, which have two levels. A head whose losses are another's stands in
SAME_LOSSES.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from visdet_jax.boxes.formats import convert_boxes
from visdet_jax.detectors import (
    CenterNetHead,
    CenterNetUpdateHead,
    DETRHead,
    DETROutputs,
    DFINECriterion,
    DFINEOutputs,
    FCOSHead,
    HeadOutputs,
    QueryHead,
    RFDETRCriterion,
    RFDETROutputs,
    RTDETRCriterion,
    RTMDetHead,
    SparseRoIHead,
    SparseRoIOutputs,
    TOODHead,
    VFNetHead,
    YOLORTMDetHead,
    build_head,
)

CLASSES = 3
SIZES = ((4, 6), (2, 3))
IMAGE = (32, 48)
LAYERS, QUERIES, DENOISING = 2, 5, 4
# Where a law takes long, these stand for all heads without `--all`: priors, and queries.
FEW = ("FCOSHead", "DETRHead")
ATSS = {"type": "ATSSAssigner", "topk": 4}
MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
ANCHORS = {"type": "AnchorGenerator", "ratios": [1.0], "scales": [3], "strides": [8, 16]}
FOCAL = {"type": "FocalLoss", "loss_weight": 1.0}
CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True}
HEATMAP = {"type": "GaussianFocalLoss", "gamma": 2.0, "pos_weight": 0.25, "neg_weight": 0.75}
GIOU = {"type": "GIoULoss", "loss_weight": 2.0}
STDS = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}


@dataclass
class Row:
    """A head's config, and the names of the losses that it gives."""

    config: dict
    names: tuple = ("loss_cls", "loss_bbox", "loss_centerness")
    train_cfg: Any = field(default_factory=lambda: {"assigner": ATSS})
    # The fields that hold the losses, where they have other names than the losses.
    fields: tuple = ()
    # The loss of all priors or queries, with and without a box, and the outputs that it is of.
    of_all: tuple = ("loss_cls", "cls_scores")
    # The loss of those with a box alone, and the outputs that it is of.
    of_boxes: tuple = ("loss_bbox", "bbox_preds")

    def head(self, **changes):
        return build_head({**self.config, **changes}, self.train_cfg)

    def key(self, loss):
        """The name by which the head gives a loss: "loss_rpn_cls" for an RPN's "loss_cls"."""
        return next(name for name in self.names if name.endswith(loss.removeprefix("loss")))

    def is_of_boxes(self, key):
        """Whether a loss of that name is the head's loss of boxes, of any layer or part."""
        loss, _ = self.of_boxes
        _, found, layer = key.partition(loss.removeprefix("loss"))
        return bool(found) and layer not in ("_rf",)

    def has_classes(self):
        """Whether the head's number of classes may be chosen."""
        return "num_classes" in self.config

    def anchors(self):
        return self.config.get("anchor_generator", {}).get("type") == "AnchorGenerator"


# The heads on priors.
ROWS = {
    "RetinaHead": Row(
        {
            "type": "RetinaHead",
            "num_classes": CLASSES,
            "anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]},
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11},
        },
        names=("loss_cls", "loss_bbox"),
        train_cfg={"assigner": MAX_IOU},
    ),
    "RetinaSepBNHead": Row(
        {
            "type": "RetinaSepBNHead",
            "num_classes": CLASSES,
            "anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]},
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "SmoothL1Loss", "beta": 0.11},
        },
        names=("loss_cls", "loss_bbox"),
        train_cfg={"assigner": MAX_IOU},
    ),
    "RPNHead": Row(
        {
            "type": "RPNHead",
            "anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]},
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "L1Loss"},
        },
        names=("loss_rpn_cls", "loss_rpn_bbox"),
        train_cfg={"assigner": MAX_IOU},
    ),
    "FCOSHead": Row(
        {
            "type": "FCOSHead",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "regress_ranges": [[-1, 16], [16, 1e8]],
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "IoULoss"},
            "loss_centerness": CENTERNESS,
        },
        train_cfg=None,
    ),
    "FCOSRPNHead": Row(
        {
            "type": "FCOSRPNHead",
            "strides": [8, 16],
            "regress_ranges": [[-1, 16], [16, 1e8]],
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "IoULoss"},
            "loss_centerness": CENTERNESS,
        },
        names=("rpn_loss_cls", "rpn_loss_bbox", "rpn_loss_centerness"),
        train_cfg=None,
    ),
    "ATSSHead": Row(
        {
            "type": "ATSSHead",
            "num_classes": CLASSES,
            "anchor_generator": ANCHORS,
            "bbox_coder": STDS,
            "loss_cls": FOCAL,
            "loss_bbox": GIOU,
            "loss_centerness": CENTERNESS,
        }
    ),
    "GFLHead": Row(
        {
            "type": "GFLHead",
            "num_classes": CLASSES,
            "anchor_generator": ANCHORS,
            "reg_max": 4,
            "loss_cls": {"type": "QualityFocalLoss"},
            "loss_bbox": GIOU,
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
        },
        names=("loss_cls", "loss_bbox", "loss_dfl"),
    ),
    "VFNetHead": Row(
        {
            "type": "VFNetHead",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "anchor_generator": ANCHORS,
            "loss_cls": {"type": "VarifocalLoss"},
            "loss_bbox": GIOU,
            "loss_bbox_refine": GIOU,
        },
        names=("loss_cls", "loss_bbox", "loss_bbox_rf"),
        fields=("loss_cls", "loss_cls_fl", "loss_bbox", "loss_bbox_refine"),
    ),
    "YOLOXHead": Row(
        {
            "type": "YOLOXHead",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"},
            "loss_bbox": {"type": "IoULoss", "mode": "square", "eps": 1e-16, "reduction": "sum"},
            "use_l1": True,
        },
        names=("loss_cls", "loss_bbox", "loss_obj", "loss_l1"),
        train_cfg={"assigner": {"type": "SimOTAAssigner"}},
        of_all=("loss_obj", "objectnesses"),
    ),
    "TOODHead": Row(
        {
            "type": "TOODHead",
            "num_classes": CLASSES,
            "anchor_generator": ANCHORS,
            "loss_cls": {"type": "QualityFocalLoss", "activated": True},
            "loss_bbox": GIOU,
        },
        names=("loss_cls", "loss_bbox"),
        fields=("loss_cls", "initial_loss_cls", "loss_bbox"),
        # So that no epoch has to be given. For both phases see test_tood.py.
        train_cfg={"assigner": {"type": "TaskAlignedAssigner"}, "initial_epoch": 0},
    ),
    "RTMDetHead": Row(
        {
            "type": "RTMDetHead",
            "num_classes": CLASSES,
            "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16]},
            "loss_cls": {"type": "QualityFocalLoss"},
            "loss_bbox": GIOU,
        },
        names=("loss_cls", "loss_bbox"),
        train_cfg={"assigner": {"type": "DynamicSoftLabelAssigner"}},
    ),
    "YOLORTMDetHead": Row(
        {
            "type": "YOLORTMDetHead",
            "num_classes": CLASSES,
            "anchor_generator": {"type": "MlvlPointGenerator", "offset": 0, "strides": [8, 16]},
            "loss_cls": {"type": "QualityFocalLoss"},
            "loss_bbox": GIOU,
        },
        names=("loss_cls", "loss_bbox"),
        train_cfg={"assigner": {"type": "BatchDynamicSoftLabelAssigner"}},
    ),
    "YOLOv8Head": Row(
        {
            "type": "YOLOv8Head",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "reg_max": 4,
            "loss_cls": {"type": "FocalLoss"},
            "loss_bbox": {"type": "IoULoss", "iou_mode": "ciou", "bbox_format": "xyxy"},
        },
        names=("loss_cls", "loss_bbox", "loss_dfl"),
        train_cfg={"assigner": {"type": "BatchTaskAlignedAssigner"}},
    ),
    "YOLOv5Head": Row(
        {
            "type": "YOLOv5Head",
            "num_classes": CLASSES,
            "prior_generator": {
                "type": "YOLOAnchorGenerator",
                "strides": [8, 16],
                "base_sizes": [[[10, 13], [24, 20]], [[30, 20], [14, 24]]],
            },
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "mmyolo.IoULoss"},
            "obj_level_weights": [4.0, 1.0],
        },
        names=("loss_cls", "loss_obj", "loss_bbox"),
        train_cfg=None,
        of_all=("loss_obj", "objectnesses"),
    ),
    "CenterNetUpdateHead": Row(
        {
            "type": "CenterNetUpdateHead",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "regress_ranges": [[0, 20], [14, 1e8]],
            "loss_cls": HEATMAP,
            "loss_bbox": GIOU,
        },
        names=("loss_cls", "loss_bbox"),
        train_cfg=None,
    ),
    "YOLOHead": Row(
        {
            "type": "YOLOHead",
            "num_classes": CLASSES,
            "strides": [8, 16],
            "reg_max": 4,
            "loss_cls": {"type": "FocalLoss"},
            "loss_bbox": {"type": "YOLOIoULoss", "bbox_format": "xyxy"},
        },
        names=("loss_cls", "loss_bbox", "loss_dfl"),
        train_cfg=None,
        fields=("loss_cls", "loss_bbox", "loss_dfl", "loss_l1"),
    ),
}

SOFTMAX = {
    "type": "CrossEntropyLoss",
    "bg_cls_weight": 0.1,
    "use_sigmoid": False,
    "loss_weight": 1.0,
    "class_weight": 1.0,
}
COSTS = [
    {"type": "FocalLossCost", "weight": 2.0},
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
]
DETR = {
    "num_classes": CLASSES,
    "embed_dims": 256,
    "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
    "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
}
LAYER_NAMES = ("loss_cls", "loss_bbox", "loss_iou", "d0.loss_cls", "d0.loss_bbox", "d0.loss_iou")

# The heads on queries, after a decoder of two layers with five queries.
QUERY_ROWS = {
    "DETRHead": Row({"type": "DETRHead", "loss_cls": SOFTMAX, **DETR}, LAYER_NAMES, None),
    "DeformableDETRHead": Row(
        {
            "type": "DeformableDETRHead",
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 2.0},
            "sync_cls_avg_factor": True,
            "as_two_stage": True,
            **DETR,
        },
        LAYER_NAMES,
        {"assigner": {"type": "HungarianAssigner", "match_costs": COSTS}},
    ),
}
STAGE_NAMES = tuple(
    f"s{stage}.{name}" for stage in range(LAYERS) for name in ("loss_cls", "loss_bbox", "loss_iou")
)
# The heads whose regions go from stage to stage, in two stages with five regions.
STAGE_ROWS = {
    "SparseRoIHead": Row(
        {
            "type": "SparseRoIHead",
            "num_classes": CLASSES,
            "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 2.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
            "loss_iou": GIOU,
            "stage_loss_weights": [1, 0.5],
        },
        STAGE_NAMES,
        {"assigner": {"type": "HungarianAssigner", "match_costs": COSTS}, "pos_weight": 1},
        fields=("loss_cls", "loss_bbox", "loss_iou"),
    ),
}
L1 = {"type": "L1Loss", "loss_weight": 5.0}


def names_of(losses, *layers):
    """The names of losses in layers, by what stands behind them."""
    return tuple(f"loss_{loss}{layer}" for layer in layers for loss in losses)


OF_BOXES = ("bbox", "giou")
OF_DFINE = ("", "_aux_0", "_pre", "_enc_0", "_dn_0", "_dn_1", "_dn_pre")
OF_SIDES = ("loss_fgl", "loss_fgl_aux_0", "loss_ddf_aux_0", "loss_fgl_dn_0", "loss_ddf_dn_0")
FIELDS = ("loss_cls", "loss_bbox", "loss_iou")

# The criteria that are no heads of mmdet.
CRITERION_ROWS = {
    "RTDETRCriterion": Row(
        {"type": "RTDETRCriterion", "num_classes": CLASSES, "loss_bbox": L1},
        names_of(("vfl", *OF_BOXES), "", "_aux_0", "_enc_0", "_dn_0", "_dn_1"),
        None,
        FIELDS,
        ("loss_vfl", "cls_scores"),
    ),
    "DFINECriterion": Row(
        {"type": "DFINECriterion", "num_classes": CLASSES, "loss_bbox": L1, "reg_max": 4},
        (
            *names_of(("vfl", *OF_BOXES), *OF_DFINE),
            *(*OF_SIDES, "loss_fgl_dn_1", "loss_ddf_dn_1"),
        ),
        None,
        (*FIELDS, "loss_fgl", "loss_ddf"),
        ("loss_vfl", "cls_scores"),
    ),
    "DEIMCriterion": Row(
        {"type": "DEIMCriterion", "num_classes": CLASSES, "loss_bbox": L1, "reg_max": 4},
        (*names_of(("mal", *OF_BOXES), *OF_DFINE), *OF_SIDES, "loss_fgl_dn_1"),
        None,
        (*FIELDS, "loss_fgl", "loss_ddf"),
        ("loss_mal", "cls_scores"),
    ),
    "RFDETRCriterion": Row(
        {"type": "RFDETRCriterion", "num_classes": CLASSES, "loss_bbox": L1, "group_detr": 1},
        names_of(("ce", *OF_BOXES), "", "_0", "_enc"),
        None,
        FIELDS,
        ("loss_ce", "cls_scores"),
    ),
}

# The heads on one feature map, with cells of 4 x 4 pixels.
CENTER_ROWS = {
    "CenterNetHead": Row(
        {
            "type": "CenterNetHead",
            "num_classes": CLASSES,
            "loss_center_heatmap": {"type": "GaussianFocalLoss"},
            "loss_wh": {"type": "L1Loss", "loss_weight": 0.1},
            "loss_offset": {"type": "L1Loss"},
        },
        names=("loss_center_heatmap", "loss_wh", "loss_offset"),
        train_cfg=None,
        of_all=("loss_center_heatmap", "cls_scores"),
        of_boxes=("loss_wh", "wh_preds"),
    ),
}
EVERY_ROW = ROWS | QUERY_ROWS | CRITERION_ROWS | STAGE_ROWS | CENTER_ROWS

# Heads whose losses are another's, which has a row: their networks differ.
SAME_LOSSES = {
    "NASFCOSHead": "FCOSHead",
    "RTMDetSepBNHead": "RTMDetHead",
    "ConditionalDETRHead": "DeformableDETRHead",
    "DABDETRHead": "DeformableDETRHead",
    "DINOHead": "DeformableDETRHead",  # With denoising queries: test_dino.py.
    "RTDETRCriterionv2": "RTDETRCriterion",
}

# Heads that need masks or texts too, and are asked the laws in test_rtmdet_ins.py and test_dino.py.
NEED_MORE = ("RTMDetInsHead", "RTMDetInsSepBNHead", "GroundingDINOHead")


def outputs_for(head, batch=2, dtype=np.float32, seed=0, sizes=SIZES, layers=LAYERS):
    """What a network might give for the head: random logits, and boxes in the head's own form."""
    rng = np.random.default_rng(seed)

    def queries(*shape):
        center, size = rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))
        logits = rng.normal(0, 1, (*shape, head.channels["cls_scores"])).astype(dtype)
        return logits, np.concatenate([center, size], axis=-1).astype(dtype)

    if isinstance(head, QueryHead):
        of_decoder = queries(layers, batch, QUERIES)
        of_encoder = named("enc_", queries(batch, QUERIES))
    if isinstance(head, DETRHead):
        return DETROutputs(*of_decoder)
    if isinstance(head, SparseRoIHead):
        logits, boxes = of_decoder
        in_pixels = np.asarray(convert_boxes(boxes, "cxcywh", "xyxy")) * (IMAGE[::-1] * 2)
        return SparseRoIOutputs(logits, in_pixels.astype(dtype))
    if isinstance(head, RFDETRCriterion):
        return RFDETROutputs(*of_decoder, **of_encoder)
    if isinstance(head, RTDETRCriterion):
        of_both = of_encoder | named("dn_", queries(layers, batch, DENOISING))
        of_both["dn_gt_inds"] = np.tile(np.array([1, 0, 2, -1], np.int32), (batch, 1))
        if not isinstance(head, DFINECriterion):
            return DETROutputs(*of_decoder, **of_both)
        for part, count in (("", QUERIES), ("dn_", DENOISING)):
            of_both |= named(f"{part}pre_", queries(batch, count))
            shape = (layers, batch, count, 4 * (head.reg_max + 1))
            of_both[f"{part}corners"] = rng.normal(0, 1, shape).astype(dtype)
            of_both[f"{part}ref_points"] = queries(batch, count)[1]
        of_both |= {"up": np.asarray(0.5, dtype), "reg_scale": np.asarray(4, dtype)}
        return DFINEOutputs(*of_decoder, **of_both)

    if isinstance(head, CenterNetHead):
        sizes = [(IMAGE[0] // 4, IMAGE[1] // 4)]

    def maps(channels):
        shape = (getattr(head, "num_base_priors", 1) * channels,)
        return tuple(rng.normal(0, 1, (batch, *size, *shape)).astype(dtype) for size in sizes)

    parts = {name: maps(channels) for name, channels in head.channels.items()}
    if isinstance(head, FCOSHead | RTMDetHead | VFNetHead):  # Distances are positive.
        for name in {"bbox_preds", getattr(head, "detected_boxes", "bbox_preds")}:
            parts[name] = tuple(np.abs(8 * x).astype(dtype) for x in parts[name])
    if isinstance(head, TOODHead):  # Probabilities, and boxes in strides.
        parts["cls_scores"] = tuple(1 / (1 + np.exp(-x)) for x in parts["cls_scores"])
        parts["bbox_preds"] = tuple(map(boxes_around_cells, parts["bbox_preds"]))
    if isinstance(head, YOLORTMDetHead | CenterNetUpdateHead):  # In strides.
        parts["bbox_preds"] = tuple(np.abs(x) for x in parts["bbox_preds"])
    return HeadOutputs(**parts)


def named(part, queries):
    """The outputs of a part's queries by name."""
    return dict(zip((f"{part}cls_scores", f"{part}bbox_preds"), queries, strict=True))


def boxes_around_cells(x):
    """Boxes (B, H, W, 4) of numbers of that shape, in strides."""
    rows, columns = np.mgrid[: x.shape[1], : x.shape[2]].astype(x.dtype)
    middle = np.stack([columns, rows], axis=-1)
    return np.concatenate([middle - np.abs(x[..., :2]), middle + np.abs(x[..., 2:])], axis=-1)


def floats_changed(change, outputs):
    """The outputs with their floats changed; denoising queries have integers too."""
    return jax.tree.map(lambda x: x if x.dtype == np.int32 else change(x), outputs)


def with_boxes_in_order(outputs, order):
    """The outputs for boxes in another order: denoising queries know theirs by its number."""
    if getattr(outputs, "dn_gt_inds", None) is None:
        return outputs
    inds, places = outputs.dn_gt_inds, np.argsort(order).astype(np.int32)
    moved = np.where(inds > 0, places[np.maximum(inds - 1, 0)] + 1, inds)
    return outputs._replace(dn_gt_inds=moved)


def boxes_for(counts, rows, dtype=np.float32, seed=0):
    """(boxes, labels) of images with so many boxes each, padded to `rows` with NaN."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 20, (len(counts), rows, 2)), rng.uniform(10, 26, (1, rows, 2))
    boxes = np.concatenate([corner, corner + size], axis=-1)
    exists = np.arange(rows) < np.array(counts)[:, None]
    labels = np.where(exists, rng.integers(0, CLASSES, exists.shape), -1).astype(np.int32)
    return np.where(exists[..., None], boxes, np.nan).astype(dtype), labels


def shapes_for(batch):
    """The height and width of each image."""
    return np.tile(np.array(IMAGE, np.int32), (batch, 1))


def batch_for(head, counts=(3, 1), rows=4, dtype=np.float32):
    """Arguments of every head's `loss`: outputs, boxes, labels and image shapes."""
    truth = boxes_for(counts, rows, dtype)
    return outputs_for(head, len(counts), dtype), *truth, shapes_for(len(counts))


def sharding_specs(head, axis="data"):
    """How the arguments of `batch_for` are spread over a mesh axis: image by image."""
    outputs = outputs_for(head)
    if isinstance(outputs, HeadOutputs):
        return (P(axis),) * 4
    of_layers = ("cls_scores", "bbox_preds", "corners")
    known = {f"{part}{name}": P(None, axis) for part in ("", "dn_") for name in of_layers}
    known |= {"up": P(), "reg_scale": P()}
    specs = {
        name: None if x is None else known.get(name, P(axis))
        for name, x in outputs._asdict().items()
    }
    return type(outputs)(**specs), P(axis), P(axis), P(axis)


def total(losses):
    return sum(losses.values())


def without_integers(outputs):
    """(the outputs, with None for what has no gradient; that, by name)"""
    integers = {"dn_gt_inds": outputs.dn_gt_inds} if hasattr(outputs, "dn_gt_inds") else {}
    return outputs._replace(**dict.fromkeys(integers)), integers


def value_and_gradient(head, axis_name=None):
    """A function of outputs and ground truth: ((sum, losses), gradient by the outputs)."""

    def value_and_gradient(outputs, *ground_truth):
        floats, integers = without_integers(outputs)

        def value(floats):
            outputs = floats._replace(**integers)
            losses = head.loss(outputs, *ground_truth, axis_name=axis_name)
            return total(losses), losses

        return jax.value_and_grad(value, has_aux=True)(floats)

    return value_and_gradient


@functools.cache
def compiled(head, kind="usual"):
    """Jitted once for all tests: (losses, gradient of their sum by the outputs) of a batch.

    Give another `kind` where the arguments have other shapes or types: the compilations of the
    usual ones are counted.
    """

    def losses_and_gradient(outputs, *ground_truth):
        (_, losses), gradient = value_and_gradient(head)(outputs, *ground_truth)
        return losses, gradient

    return jax.jit(losses_and_gradient)
