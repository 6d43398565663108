"""Detection losses for JAX: pure jitted functions, a registry of configs, Flax modules.

Every public name stands here once; `boxes`, `detectors`, `registry`, `configs` and `dfine` are
imported by their own names.
"""

from visdet_jax import configs as configs
from visdet_jax import dfine as dfine
from visdet_jax.boxes.overlap import bbox_overlaps as bbox_overlaps
from visdet_jax.checked import Checked as Checked
from visdet_jax.checked import checked as checked
from visdet_jax.core.devices import reduce_mean as reduce_mean
from visdet_jax.core.devices import reduce_sum as reduce_sum
from visdet_jax.losses.boxes.alpha_iou import AlphaIoULoss as AlphaIoULoss
from visdet_jax.losses.boxes.alpha_iou import alpha_iou_loss as alpha_iou_loss
from visdet_jax.losses.boxes.bounded_iou import BoundedIoULoss as BoundedIoULoss
from visdet_jax.losses.boxes.bounded_iou import bounded_iou_loss as bounded_iou_loss
from visdet_jax.losses.boxes.box_loss import BoxLoss as BoxLoss
from visdet_jax.losses.boxes.box_loss import box_loss as box_loss
from visdet_jax.losses.boxes.diou import CIoULoss as CIoULoss
from visdet_jax.losses.boxes.diou import DIoULoss as DIoULoss
from visdet_jax.losses.boxes.diou import ciou_loss as ciou_loss
from visdet_jax.losses.boxes.diou import diou_loss as diou_loss
from visdet_jax.losses.boxes.distribution_focal import (
    DistributionFocalLoss as DistributionFocalLoss,
)
from visdet_jax.losses.boxes.distribution_focal import (
    distribution_focal_loss as distribution_focal_loss,
)
from visdet_jax.losses.boxes.efficient_iou import EfficientIoULoss as EfficientIoULoss
from visdet_jax.losses.boxes.efficient_iou import efficient_iou_loss as efficient_iou_loss
from visdet_jax.losses.boxes.eiou import EIoULoss as EIoULoss
from visdet_jax.losses.boxes.eiou import eiou_loss as eiou_loss
from visdet_jax.losses.boxes.fine_grained import (
    DecoupledDistillationFocalLoss as DecoupledDistillationFocalLoss,
)
from visdet_jax.losses.boxes.fine_grained import (
    FineGrainedLocalizationLoss as FineGrainedLocalizationLoss,
)
from visdet_jax.losses.boxes.fine_grained import (
    decoupled_distillation_focal_loss as decoupled_distillation_focal_loss,
)
from visdet_jax.losses.boxes.fine_grained import (
    fine_grained_localization_loss as fine_grained_localization_loss,
)
from visdet_jax.losses.boxes.iou import GIoULoss as GIoULoss
from visdet_jax.losses.boxes.iou import IoULoss as IoULoss
from visdet_jax.losses.boxes.iou import giou_loss as giou_loss
from visdet_jax.losses.boxes.iou import iou_loss as iou_loss
from visdet_jax.losses.boxes.mpdiou import MPDIoULoss as MPDIoULoss
from visdet_jax.losses.boxes.mpdiou import mpdiou_loss as mpdiou_loss
from visdet_jax.losses.boxes.shape_iou import ShapeIoULoss as ShapeIoULoss
from visdet_jax.losses.boxes.shape_iou import shape_iou_loss as shape_iou_loss
from visdet_jax.losses.boxes.siou import SIoULoss as SIoULoss
from visdet_jax.losses.boxes.siou import siou_loss as siou_loss
from visdet_jax.losses.boxes.wasserstein import WassersteinLoss as WassersteinLoss
from visdet_jax.losses.boxes.wasserstein import wasserstein_loss as wasserstein_loss
from visdet_jax.losses.boxes.wiou import WIoULoss as WIoULoss
from visdet_jax.losses.boxes.wiou import WIoUState as WIoUState
from visdet_jax.losses.boxes.wiou import wiou_loss as wiou_loss
from visdet_jax.losses.boxes.wiou import wiou_statistics as wiou_statistics
from visdet_jax.losses.boxes.yolo_iou import YOLOIoULoss as YOLOIoULoss
from visdet_jax.losses.boxes.yolo_iou import yolo_iou_loss as yolo_iou_loss
from visdet_jax.losses.classification.accuracy import Accuracy as Accuracy
from visdet_jax.losses.classification.accuracy import accuracy as accuracy
from visdet_jax.losses.classification.asl_single_label import ASLSingleLabel as ASLSingleLabel
from visdet_jax.losses.classification.asl_single_label import asl_single_label as asl_single_label
from visdet_jax.losses.classification.asymmetric import AsymmetricLoss as AsymmetricLoss
from visdet_jax.losses.classification.asymmetric import asymmetric_loss as asymmetric_loss
from visdet_jax.losses.classification.binary_cross_entropy import (
    binary_cross_entropy as binary_cross_entropy,
)
from visdet_jax.losses.classification.binary_cross_entropy import (
    mask_cross_entropy as mask_cross_entropy,
)
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from visdet_jax.losses.classification.cross_entropy import cross_entropy as cross_entropy
from visdet_jax.losses.classification.custom_cross_entropy import (
    CrossEntropyCustomLoss as CrossEntropyCustomLoss,
)
from visdet_jax.losses.classification.distillation import (
    KnowledgeDistillationKLDivLoss as KnowledgeDistillationKLDivLoss,
)
from visdet_jax.losses.classification.distillation import (
    knowledge_distillation_kl_div_loss as knowledge_distillation_kl_div_loss,
)
from visdet_jax.losses.classification.eqlv2 import EQLV2Loss as EQLV2Loss
from visdet_jax.losses.classification.eqlv2 import EQLV2State as EQLV2State
from visdet_jax.losses.classification.eqlv2 import eqlv2_loss as eqlv2_loss
from visdet_jax.losses.classification.eqlv2 import eqlv2_statistics as eqlv2_statistics
from visdet_jax.losses.classification.federated import federated_class_mask as federated_class_mask
from visdet_jax.losses.classification.focal import FocalCustomLoss as FocalCustomLoss
from visdet_jax.losses.classification.focal import FocalLoss as FocalLoss
from visdet_jax.losses.classification.focal import sigmoid_focal_loss as sigmoid_focal_loss
from visdet_jax.losses.classification.gaussian_focal import GaussianFocalLoss as GaussianFocalLoss
from visdet_jax.losses.classification.gaussian_focal import (
    gaussian_focal_loss as gaussian_focal_loss,
)
from visdet_jax.losses.classification.gaussian_focal import (
    gaussian_focal_loss_with_pos_inds as gaussian_focal_loss_with_pos_inds,
)
from visdet_jax.losses.classification.ghm import GHMC as GHMC
from visdet_jax.losses.classification.ghm import GHMR as GHMR
from visdet_jax.losses.classification.ghm import GHMState as GHMState
from visdet_jax.losses.classification.ghm import ghmc_loss as ghmc_loss
from visdet_jax.losses.classification.ghm import ghmc_statistics as ghmc_statistics
from visdet_jax.losses.classification.ghm import ghmr_loss as ghmr_loss
from visdet_jax.losses.classification.ghm import ghmr_statistics as ghmr_statistics
from visdet_jax.losses.classification.multipos_cross_entropy import (
    MultiPosCrossEntropyLoss as MultiPosCrossEntropyLoss,
)
from visdet_jax.losses.classification.multipos_cross_entropy import (
    multi_pos_cross_entropy as multi_pos_cross_entropy,
)
from visdet_jax.losses.classification.seesaw import SeesawLoss as SeesawLoss
from visdet_jax.losses.classification.seesaw import SeesawState as SeesawState
from visdet_jax.losses.classification.seesaw import seesaw_ce_loss as seesaw_ce_loss
from visdet_jax.losses.classification.seesaw import seesaw_loss as seesaw_loss
from visdet_jax.losses.classification.seesaw import seesaw_statistics as seesaw_statistics
from visdet_jax.losses.classification.softmax_focal import SoftmaxFocalLoss as SoftmaxFocalLoss
from visdet_jax.losses.classification.softmax_focal import softmax_focal_loss as softmax_focal_loss
from visdet_jax.losses.embeddings.associative_embedding import (
    AssociativeEmbeddingLoss as AssociativeEmbeddingLoss,
)
from visdet_jax.losses.embeddings.associative_embedding import (
    associative_embedding_loss as associative_embedding_loss,
)
from visdet_jax.losses.embeddings.margin_l2 import L2Loss as L2Loss
from visdet_jax.losses.embeddings.margin_l2 import MarginL2Loss as MarginL2Loss
from visdet_jax.losses.embeddings.margin_l2 import margin_l2_loss as margin_l2_loss
from visdet_jax.losses.embeddings.triplet import TripletLoss as TripletLoss
from visdet_jax.losses.embeddings.triplet import triplet_loss as triplet_loss
from visdet_jax.losses.loss import Loss as Loss
from visdet_jax.losses.loss import StatefulLoss as StatefulLoss
from visdet_jax.losses.masks.dice import DiceLoss as DiceLoss
from visdet_jax.losses.masks.dice import dice_loss as dice_loss
from visdet_jax.losses.masks.dice import dice_loss_with_logits as dice_loss_with_logits
from visdet_jax.losses.masks.tversky import TverskyLoss as TverskyLoss
from visdet_jax.losses.masks.tversky import tversky_loss as tversky_loss
from visdet_jax.losses.quality._quality import QualityLoss as QualityLoss
from visdet_jax.losses.quality.iou_aware_bce import IoUAwareBCELoss as IoUAwareBCELoss
from visdet_jax.losses.quality.iou_aware_bce import iou_aware_bce_loss as iou_aware_bce_loss
from visdet_jax.losses.quality.iou_aware_bce import iou_aware_quality as iou_aware_quality
from visdet_jax.losses.quality.iou_aware_bce import rank_weight as rank_weight
from visdet_jax.losses.quality.matchability_aware import (
    MatchabilityAwareLoss as MatchabilityAwareLoss,
)
from visdet_jax.losses.quality.matchability_aware import (
    matchability_aware_loss as matchability_aware_loss,
)
from visdet_jax.losses.quality.quality_focal import QualityFocalLoss as QualityFocalLoss
from visdet_jax.losses.quality.quality_focal import quality_focal_loss as quality_focal_loss
from visdet_jax.losses.quality.varifocal import VarifocalLoss as VarifocalLoss
from visdet_jax.losses.quality.varifocal import varifocal_loss as varifocal_loss
from visdet_jax.losses.regression.balanced_l1 import BalancedL1Loss as BalancedL1Loss
from visdet_jax.losses.regression.balanced_l1 import balanced_l1_loss as balanced_l1_loss
from visdet_jax.losses.regression.mse import MSELoss as MSELoss
from visdet_jax.losses.regression.mse import mse_loss as mse_loss
from visdet_jax.losses.regression.smooth_l1 import L1Loss as L1Loss
from visdet_jax.losses.regression.smooth_l1 import SmoothL1Loss as SmoothL1Loss
from visdet_jax.losses.regression.smooth_l1 import l1_loss as l1_loss
from visdet_jax.losses.regression.smooth_l1 import smooth_l1_loss as smooth_l1_loss
from visdet_jax.losses.rotated.gaussian_distance import GDLoss as GDLoss
from visdet_jax.losses.rotated.gaussian_distance import gd_loss as gd_loss
from visdet_jax.losses.rotated.gaussian_distance_v1 import GDLoss_v1 as GDLoss_v1
from visdet_jax.losses.rotated.gaussian_distance_v1 import gd_loss_v1 as gd_loss_v1
from visdet_jax.losses.rotated.kfiou import KFLoss as KFLoss
from visdet_jax.losses.rotated.kfiou import kfiou_loss as kfiou_loss
from visdet_jax.losses.rotated.probiou import ProbIoULoss as ProbIoULoss
from visdet_jax.losses.rotated.probiou import probiou_loss as probiou_loss
from visdet_jax.reduction import reduce_loss as reduce_loss
from visdet_jax.reduction import weight_reduce_loss as weight_reduce_loss
from visdet_jax.reduction import weighted_loss as weighted_loss
from visdet_jax.registry import LOSSES as LOSSES
from visdet_jax.registry import MODELS as MODELS
from visdet_jax.registry import Registry as Registry
from visdet_jax.registry import build_loss as build_loss
