"""From a network's raw outputs and padded ground truth to the losses of a whole detector."""

from visdet_jax.boxes.nms import KeptDetections as KeptDetections
from visdet_jax.detectors.assigners.assigner import Assigner as Assigner
from visdet_jax.detectors.assigners.assigner import Assignment as Assignment
from visdet_jax.detectors.assigners.atss import ATSSAssigner as ATSSAssigner
from visdet_jax.detectors.assigners.atss import atss_assign as atss_assign
from visdet_jax.detectors.assigners.dynamic_soft_label import (
    BatchDynamicSoftLabelAssigner as BatchDynamicSoftLabelAssigner,
)
from visdet_jax.detectors.assigners.dynamic_soft_label import (
    DynamicSoftLabelAssigner as DynamicSoftLabelAssigner,
)
from visdet_jax.detectors.assigners.dynamic_soft_label import (
    batch_dynamic_soft_label_assign as batch_dynamic_soft_label_assign,
)
from visdet_jax.detectors.assigners.dynamic_soft_label import (
    dynamic_soft_label_assign as dynamic_soft_label_assign,
)
from visdet_jax.detectors.assigners.fcos import fcos_assign as fcos_assign
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner as HungarianAssigner
from visdet_jax.detectors.assigners.hungarian import hungarian as hungarian
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D as BboxOverlaps2D
from visdet_jax.detectors.assigners.max_iou import MaxIoUAssigner as MaxIoUAssigner
from visdet_jax.detectors.assigners.max_iou import max_iou_assign as max_iou_assign
from visdet_jax.detectors.assigners.predictions import PredictionAssigner as PredictionAssigner
from visdet_jax.detectors.assigners.sim_ota import SimOTAAssigner as SimOTAAssigner
from visdet_jax.detectors.assigners.sim_ota import sim_ota_assign as sim_ota_assign
from visdet_jax.detectors.assigners.task_aligned import (
    BatchTaskAlignedAssigner as BatchTaskAlignedAssigner,
)
from visdet_jax.detectors.assigners.task_aligned import TaskAlignedAssigner as TaskAlignedAssigner
from visdet_jax.detectors.assigners.task_aligned import (
    YOLOTaskAlignedAssigner as YOLOTaskAlignedAssigner,
)
from visdet_jax.detectors.assigners.task_aligned import (
    batch_task_aligned_assign as batch_task_aligned_assign,
)
from visdet_jax.detectors.assigners.task_aligned import task_aligned_assign as task_aligned_assign
from visdet_jax.detectors.assigners.task_aligned import (
    yolo_task_aligned_assign as yolo_task_aligned_assign,
)
from visdet_jax.detectors.coders import BoxCoder as BoxCoder
from visdet_jax.detectors.coders import DeltaXYWHBBoxCoder as DeltaXYWHBBoxCoder
from visdet_jax.detectors.coders import DistancePointBBoxCoder as DistancePointBBoxCoder
from visdet_jax.detectors.coders import LegacyDeltaXYWHBBoxCoder as LegacyDeltaXYWHBBoxCoder
from visdet_jax.detectors.coders import TBLRBBoxCoder as TBLRBBoxCoder
from visdet_jax.detectors.costs.boxes import BBoxL1Cost as BBoxL1Cost
from visdet_jax.detectors.costs.boxes import IoUCost as IoUCost
from visdet_jax.detectors.costs.boxes import bbox_l1_cost as bbox_l1_cost
from visdet_jax.detectors.costs.boxes import iou_cost as iou_cost
from visdet_jax.detectors.costs.classes import BinaryFocalLossCost as BinaryFocalLossCost
from visdet_jax.detectors.costs.classes import ClassificationCost as ClassificationCost
from visdet_jax.detectors.costs.classes import FocalLossCost as FocalLossCost
from visdet_jax.detectors.costs.classes import binary_focal_loss_cost as binary_focal_loss_cost
from visdet_jax.detectors.costs.classes import classification_cost as classification_cost
from visdet_jax.detectors.costs.classes import focal_loss_cost as focal_loss_cost
from visdet_jax.detectors.costs.masks import CrossEntropyLossCost as CrossEntropyLossCost
from visdet_jax.detectors.costs.masks import DiceCost as DiceCost
from visdet_jax.detectors.costs.masks import cross_entropy_loss_cost as cross_entropy_loss_cost
from visdet_jax.detectors.costs.masks import dice_cost as dice_cost
from visdet_jax.detectors.costs.masks import mask_focal_loss_cost as mask_focal_loss_cost
from visdet_jax.detectors.costs.match_cost import Instances as Instances
from visdet_jax.detectors.costs.match_cost import MatchCost as MatchCost
from visdet_jax.detectors.denoising import DenoisingNoise as DenoisingNoise
from visdet_jax.detectors.denoising import DenoisingQueries as DenoisingQueries
from visdet_jax.detectors.denoising import dn_queries as dn_queries
from visdet_jax.detectors.heads.anchor_head import AnchorHead as AnchorHead
from visdet_jax.detectors.heads.atss import ATSSHead as ATSSHead
from visdet_jax.detectors.heads.bbox_head import BBoxHead as BBoxHead
from visdet_jax.detectors.heads.bbox_head import ConvFCBBoxHead as ConvFCBBoxHead
from visdet_jax.detectors.heads.bbox_head import DoubleConvFCBBoxHead as DoubleConvFCBBoxHead
from visdet_jax.detectors.heads.bbox_head import Shared2FCBBoxHead as Shared2FCBBoxHead
from visdet_jax.detectors.heads.bbox_head import Shared4Conv1FCBBoxHead as Shared4Conv1FCBBoxHead
from visdet_jax.detectors.heads.cascade import CascadeRoIHead as CascadeRoIHead
from visdet_jax.detectors.heads.centernet import CenterNetHead as CenterNetHead
from visdet_jax.detectors.heads.centernet import PeakConfig as PeakConfig
from visdet_jax.detectors.heads.centernet_update import CenterNetUpdateHead as CenterNetUpdateHead
from visdet_jax.detectors.heads.criterion import Criterion as Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead as DenseHead
from visdet_jax.detectors.heads.detr import ConditionalDETRHead as ConditionalDETRHead
from visdet_jax.detectors.heads.detr import DABDETRHead as DABDETRHead
from visdet_jax.detectors.heads.detr import DeformableDETRHead as DeformableDETRHead
from visdet_jax.detectors.heads.detr import DETRHead as DETRHead
from visdet_jax.detectors.heads.dfine import DEIMCriterion as DEIMCriterion
from visdet_jax.detectors.heads.dfine import DFINECriterion as DFINECriterion
from visdet_jax.detectors.heads.dfine import union_of_matchings as union_of_matchings
from visdet_jax.detectors.heads.dino import DINOHead as DINOHead
from visdet_jax.detectors.heads.dino import GroundingDINOHead as GroundingDINOHead
from visdet_jax.detectors.heads.fcos import FCOSHead as FCOSHead
from visdet_jax.detectors.heads.fcos import FCOSRPNHead as FCOSRPNHead
from visdet_jax.detectors.heads.fcos import NASFCOSHead as NASFCOSHead
from visdet_jax.detectors.heads.gfl import GFLHead as GFLHead
from visdet_jax.detectors.heads.head import BaseHead as BaseHead
from visdet_jax.detectors.heads.head import Head as Head
from visdet_jax.detectors.heads.mask2former import Mask2FormerHead as Mask2FormerHead
from visdet_jax.detectors.heads.mask_head import FCNMaskHead as FCNMaskHead
from visdet_jax.detectors.heads.maskformer import MaskFormerHead as MaskFormerHead
from visdet_jax.detectors.heads.panoptic_fpn import PanopticFPNHead as PanopticFPNHead
from visdet_jax.detectors.heads.query_head import QueryHead as QueryHead
from visdet_jax.detectors.heads.retina import RetinaHead as RetinaHead
from visdet_jax.detectors.heads.retina import RetinaSepBNHead as RetinaSepBNHead
from visdet_jax.detectors.heads.rfdetr import RFDETRCriterion as RFDETRCriterion
from visdet_jax.detectors.heads.roi_head import DoubleHeadRoIHead as DoubleHeadRoIHead
from visdet_jax.detectors.heads.roi_head import StandardRoIHead as StandardRoIHead
from visdet_jax.detectors.heads.roi_head import TridentRoIHead as TridentRoIHead
from visdet_jax.detectors.heads.rpn import RPNHead as RPNHead
from visdet_jax.detectors.heads.rtdetr import RTDETRCriterion as RTDETRCriterion
from visdet_jax.detectors.heads.rtmdet import RTMDetHead as RTMDetHead
from visdet_jax.detectors.heads.rtmdet import RTMDetSepBNHead as RTMDetSepBNHead
from visdet_jax.detectors.heads.rtmdet_ins import RTMDetInsHead as RTMDetInsHead
from visdet_jax.detectors.heads.rtmdet_ins import RTMDetInsSepBNHead as RTMDetInsSepBNHead
from visdet_jax.detectors.heads.rtmdet_yolo import YOLORTMDetHead as YOLORTMDetHead
from visdet_jax.detectors.heads.sparse_roi import DynamicMaskHead as DynamicMaskHead
from visdet_jax.detectors.heads.sparse_roi import EmbeddingRPNHead as EmbeddingRPNHead
from visdet_jax.detectors.heads.sparse_roi import SparseRoIHead as SparseRoIHead
from visdet_jax.detectors.heads.tood import TOODHead as TOODHead
from visdet_jax.detectors.heads.vfnet import VFNetHead as VFNetHead
from visdet_jax.detectors.heads.yolo import EndToEndHead as EndToEndHead
from visdet_jax.detectors.heads.yolo import YOLOHead as YOLOHead
from visdet_jax.detectors.heads.yolo import end_to_end_weights as end_to_end_weights
from visdet_jax.detectors.heads.yolov5 import YOLOv5Head as YOLOv5Head
from visdet_jax.detectors.heads.yolov8 import YOLOv8Head as YOLOv8Head
from visdet_jax.detectors.heads.yolox import YOLOXHead as YOLOXHead
from visdet_jax.detectors.postprocessing import NMS as NMS
from visdet_jax.detectors.postprocessing import ProposalConfig as ProposalConfig
from visdet_jax.detectors.postprocessing import QueryTestConfig as QueryTestConfig
from visdet_jax.detectors.postprocessing import SoftNMS as SoftNMS
from visdet_jax.detectors.postprocessing import TestConfig as TestConfig
from visdet_jax.detectors.priors import AnchorGenerator as AnchorGenerator
from visdet_jax.detectors.priors import Grid as Grid
from visdet_jax.detectors.priors import LegacyAnchorGenerator as LegacyAnchorGenerator
from visdet_jax.detectors.priors import MlvlPointGenerator as MlvlPointGenerator
from visdet_jax.detectors.priors import YOLOAnchorGenerator as YOLOAnchorGenerator
from visdet_jax.detectors.priors import inside_flags as inside_flags
from visdet_jax.detectors.priors import valid_flags as valid_flags
from visdet_jax.detectors.registry import BRANCHES as BRANCHES
from visdet_jax.detectors.registry import HEADS as HEADS
from visdet_jax.detectors.registry import NETWORK_KEYS as NETWORK_KEYS
from visdet_jax.detectors.registry import TASK_UTILS as TASK_UTILS
from visdet_jax.detectors.registry import build_detector as build_detector
from visdet_jax.detectors.registry import build_head as build_head
from visdet_jax.detectors.samplers.combined import CombinedSampler as CombinedSampler
from visdet_jax.detectors.samplers.instance_balanced import (
    InstanceBalancedPosSampler as InstanceBalancedPosSampler,
)
from visdet_jax.detectors.samplers.iou_balanced import (
    IoUBalancedNegSampler as IoUBalancedNegSampler,
)
from visdet_jax.detectors.samplers.ohem import OHEMSampler as OHEMSampler
from visdet_jax.detectors.samplers.pseudo import PseudoSampler as PseudoSampler
from visdet_jax.detectors.samplers.random import RandomSampler as RandomSampler
from visdet_jax.detectors.samplers.sampler import Sampler as Sampler
from visdet_jax.detectors.structures import Candidates as Candidates
from visdet_jax.detectors.structures import Detections as Detections
from visdet_jax.detectors.structures import DETROutputs as DETROutputs
from visdet_jax.detectors.structures import DFINEOutputs as DFINEOutputs
from visdet_jax.detectors.structures import HeadOutputs as HeadOutputs
from visdet_jax.detectors.structures import HeadTargets as HeadTargets
from visdet_jax.detectors.structures import Image as Image
from visdet_jax.detectors.structures import MaskFormerOutputs as MaskFormerOutputs
from visdet_jax.detectors.structures import MaskPoints as MaskPoints
from visdet_jax.detectors.structures import Masks as Masks
from visdet_jax.detectors.structures import MaskTargets as MaskTargets
from visdet_jax.detectors.structures import Proposals as Proposals
from visdet_jax.detectors.structures import RFDETROutputs as RFDETROutputs
from visdet_jax.detectors.structures import RoIOutputs as RoIOutputs
from visdet_jax.detectors.structures import Rows as Rows
from visdet_jax.detectors.structures import Samples as Samples
from visdet_jax.detectors.structures import SparseRoIOutputs as SparseRoIOutputs
