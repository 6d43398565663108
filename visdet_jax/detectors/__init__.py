"""From a network's raw outputs and padded ground truth to the losses of a whole detector."""

from visdet_jax.detectors.anchor_head import AnchorHead, PseudoSampler
from visdet_jax.detectors.assigner import Assigner, Assignment, BboxOverlaps2D
from visdet_jax.detectors.atss import ATSSHead
from visdet_jax.detectors.atss_assigner import ATSSAssigner, atss_assign
from visdet_jax.detectors.box_costs import BBoxL1Cost, IoUCost, bbox_l1_cost, iou_cost
from visdet_jax.detectors.class_costs import (
    BinaryFocalLossCost,
    ClassificationCost,
    FocalLossCost,
    binary_focal_loss_cost,
    classification_cost,
    focal_loss_cost,
    mask_focal_loss_cost,
)
from visdet_jax.detectors.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from visdet_jax.detectors.criterion import Criterion
from visdet_jax.detectors.dense_head import DenseHead
from visdet_jax.detectors.detr import DeformableDETRHead, DETRHead
from visdet_jax.detectors.fcos import FCOSHead, fcos_assign
from visdet_jax.detectors.gfl import GFLHead
from visdet_jax.detectors.head import Head
from visdet_jax.detectors.hungarian import HungarianAssigner, hungarian
from visdet_jax.detectors.mask_costs import (
    CrossEntropyLossCost,
    DiceCost,
    cross_entropy_loss_cost,
    dice_cost,
)
from visdet_jax.detectors.match_cost import Instances, MatchCost
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
from visdet_jax.detectors.structures import Detections, DETROutputs, HeadOutputs, HeadTargets, Rows

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
    "BBoxL1Cost",
    "BboxOverlaps2D",
    "BinaryFocalLossCost",
    "ClassificationCost",
    "Criterion",
    "CrossEntropyLossCost",
    "DETRHead",
    "DETROutputs",
    "DeformableDETRHead",
    "DeltaXYWHBBoxCoder",
    "DenseHead",
    "Detections",
    "DiceCost",
    "DistancePointBBoxCoder",
    "FCOSHead",
    "FocalLossCost",
    "GFLHead",
    "Grid",
    "Head",
    "HeadOutputs",
    "HeadTargets",
    "HungarianAssigner",
    "Instances",
    "IoUCost",
    "MatchCost",
    "MaxIoUAssigner",
    "MlvlPointGenerator",
    "PseudoSampler",
    "RetinaHead",
    "Rows",
    "atss_assign",
    "bbox_l1_cost",
    "binary_focal_loss_cost",
    "build_head",
    "classification_cost",
    "cross_entropy_loss_cost",
    "dice_cost",
    "fcos_assign",
    "focal_loss_cost",
    "hungarian",
    "inside_flags",
    "iou_cost",
    "mask_focal_loss_cost",
    "max_iou_assign",
    "valid_flags",
]
