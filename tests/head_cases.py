"""The heads, each as a small one with two levels, three classes and images of 32 x 48 pixels."""

from dataclasses import dataclass, field

import jax
import numpy as np

from visdet_jax.detectors import HeadOutputs, build_head

CLASSES = 3
SIZES = ((4, 6), (2, 3))
IMAGE = (32, 48)
ATSS = {"type": "ATSSAssigner", "topk": 4}
MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0}
ANCHORS = {"type": "AnchorGenerator", "ratios": [1.0], "scales": [3], "strides": [8, 16]}
FOCAL = {"type": "FocalLoss", "loss_weight": 1.0}
CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True}
GIOU = {"type": "GIoULoss", "loss_weight": 2.0}
STDS = {"type": "DeltaXYWHBBoxCoder", "target_stds": [0.1, 0.1, 0.2, 0.2]}


@dataclass
class Row:
    """A head's config, and which losses it gives."""

    config: dict
    names: tuple = ("loss_cls", "loss_bbox", "loss_centerness")
    train_cfg: dict = field(default_factory=lambda: {"assigner": ATSS})

    def head(self, **changes):
        return build_head({**self.config, **changes}, self.train_cfg)

    def anchors(self):
        return "anchor_generator" in self.config


# A head without a row here fails test_every_registered_head_has_a_row.
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
}


def outputs_for(head, batch=2, dtype=np.float32, seed=0):
    """Random maps of the head's channels; distances are positive, as a network's."""
    rng = np.random.default_rng(seed)

    def maps(channels):
        shape = (head.num_base_priors * channels,)
        return tuple(rng.normal(0, 1, (batch, *size, *shape)).astype(dtype) for size in SIZES)

    parts = {name: maps(channels) for name, channels in head.channels.items()}
    if type(head).__name__ == "FCOSHead":
        parts["bbox_preds"] = tuple(np.abs(8 * x).astype(dtype) for x in parts["bbox_preds"])
    return HeadOutputs(**parts)


def boxes_for(counts, rows, dtype=np.float32, seed=0):
    """(boxes, labels) of images with so many boxes each, padded to `rows` with NaN."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 20, (len(counts), rows, 2)), rng.uniform(10, 26, (1, rows, 2))
    boxes = np.concatenate([corner, corner + size], axis=-1)
    exists = np.arange(rows) < np.array(counts)[:, None]
    labels = np.where(exists, rng.integers(0, CLASSES, exists.shape), -1).astype(np.int32)
    return np.where(exists[..., None], boxes, np.nan).astype(dtype), labels


def total(losses):
    return sum(losses.values())


def value_and_gradient(head, axis_name=None):
    """A function of outputs and ground truth: ((sum, losses), gradient by the outputs)."""

    def value(outputs, *ground_truth):
        losses = head.loss(outputs, *ground_truth, axis_name=axis_name)
        return total(losses), losses

    return jax.value_and_grad(value, has_aux=True)
