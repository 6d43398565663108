"""From a network's raw outputs and padded ground truth to the losses of a whole detector."""

from visdet_jax.detectors.anchor_head import AnchorHead, PseudoSampler
from visdet_jax.detectors.assigners import (
    Assigner,
    Assignment,
    ATSSAssigner,
    BboxOverlaps2D,
    MaxIoUAssigner,
    atss_assign,
    fcos_assign,
    max_iou_assign,
)
from visdet_jax.detectors.atss import ATSSHead
from visdet_jax.detectors.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from visdet_jax.detectors.fcos import FCOSHead
from visdet_jax.detectors.gfl import GFLHead
from visdet_jax.detectors.head import (
    Criterion,
    Detections,
    Head,
    HeadOutputs,
    HeadTargets,
    Rows,
    build_head,
)
from visdet_jax.detectors.priors import (
    AnchorGenerator,
    Grid,
    MlvlPointGenerator,
    inside_flags,
    valid_flags,
)
from visdet_jax.detectors.registry import HEADS, NETWORK_KEYS, TASK_UTILS
from visdet_jax.detectors.retina import RetinaHead

__all__ = [
    "HEADS",
    "NETWORK_KEYS",
    "TASK_UTILS",
    "ATSSAssigner",
    "ATSSHead",
    "AnchorGenerator",
    "AnchorHead",
    "Assigner",
    "Assignment",
    "BboxOverlaps2D",
    "Criterion",
    "DeltaXYWHBBoxCoder",
    "Detections",
    "DistancePointBBoxCoder",
    "FCOSHead",
    "GFLHead",
    "Grid",
    "Head",
    "HeadOutputs",
    "HeadTargets",
    "MaxIoUAssigner",
    "MlvlPointGenerator",
    "PseudoSampler",
    "RetinaHead",
    "Rows",
    "atss_assign",
    "build_head",
    "fcos_assign",
    "inside_flags",
    "max_iou_assign",
    "valid_flags",
]
