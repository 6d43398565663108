"""From a network's raw outputs and padded ground truth to the losses of a whole detector."""

from visdet_jax.detectors.anchor_head import AnchorHead, PseudoSampler
from visdet_jax.detectors.assigner import Assigner, Assignment, BboxOverlaps2D
from visdet_jax.detectors.atss import ATSSHead
from visdet_jax.detectors.atss_assigner import ATSSAssigner, atss_assign
from visdet_jax.detectors.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from visdet_jax.detectors.criterion import Criterion
from visdet_jax.detectors.fcos import FCOSHead, fcos_assign
from visdet_jax.detectors.gfl import GFLHead
from visdet_jax.detectors.head import Head
from visdet_jax.detectors.max_iou_assigner import MaxIoUAssigner, max_iou_assign
from visdet_jax.detectors.priors import (
    AnchorGenerator,
    Grid,
    MlvlPointGenerator,
    inside_flags,
    valid_flags,
)
from visdet_jax.detectors.registry import HEADS, NETWORK_KEYS, TASK_UTILS, build_head
from visdet_jax.detectors.retina import RetinaHead
from visdet_jax.detectors.structures import Detections, HeadOutputs, HeadTargets, Rows

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
