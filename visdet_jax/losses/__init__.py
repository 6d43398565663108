"""The losses, one family a file. Importing this package registers them all."""

from visdet_jax.losses.accuracy import Accuracy, accuracy
from visdet_jax.losses.alpha_iou import AlphaIoULoss, alpha_iou_loss
from visdet_jax.losses.asl_single_label import ASLSingleLabel, asl_single_label
from visdet_jax.losses.associative_embedding import (
    AssociativeEmbeddingLoss,
    associative_embedding_loss,
)
from visdet_jax.losses.asymmetric import AsymmetricLoss, asymmetric_loss
from visdet_jax.losses.balanced_l1 import BalancedL1Loss, balanced_l1_loss
from visdet_jax.losses.binary_cross_entropy import binary_cross_entropy, mask_cross_entropy
from visdet_jax.losses.bounded_iou import BoundedIoULoss, bounded_iou_loss
from visdet_jax.losses.cross_entropy import CrossEntropyLoss, cross_entropy
from visdet_jax.losses.custom_cross_entropy import CrossEntropyCustomLoss
from visdet_jax.losses.dice import DiceLoss, dice_loss, dice_loss_with_logits
from visdet_jax.losses.diou import CIoULoss, DIoULoss, ciou_loss, diou_loss
from visdet_jax.losses.distillation import (
    KnowledgeDistillationKLDivLoss,
    knowledge_distillation_kl_div_loss,
)
from visdet_jax.losses.efficient_iou import EfficientIoULoss, efficient_iou_loss
from visdet_jax.losses.eiou import EIoULoss, eiou_loss
from visdet_jax.losses.eqlv2 import EQLV2Loss, EQLV2State, eqlv2_loss, eqlv2_statistics
from visdet_jax.losses.federated import federated_class_mask
from visdet_jax.losses.fine_grained import (
    DecoupledDistillationFocalLoss,
    FineGrainedLocalizationLoss,
    decoupled_distillation_focal_loss,
    fine_grained_localization_loss,
)
from visdet_jax.losses.focal import FocalCustomLoss, FocalLoss, sigmoid_focal_loss
from visdet_jax.losses.gaussian_distance import GDLoss, gd_loss
from visdet_jax.losses.gaussian_distance_v1 import GDLoss_v1, gd_loss_v1
from visdet_jax.losses.gaussian_focal import (
    GaussianFocalLoss,
    gaussian_focal_loss,
    gaussian_focal_loss_with_pos_inds,
)
from visdet_jax.losses.gfocal import (
    DistributionFocalLoss,
    QualityFocalLoss,
    distribution_focal_loss,
    quality_focal_loss,
)
from visdet_jax.losses.ghm import (
    GHMC,
    GHMR,
    GHMState,
    ghmc_loss,
    ghmc_statistics,
    ghmr_loss,
    ghmr_statistics,
)
from visdet_jax.losses.iou import GIoULoss, IoULoss, giou_loss, iou_loss
from visdet_jax.losses.iou_aware_bce import (
    IoUAwareBCELoss,
    iou_aware_bce_loss,
    iou_aware_quality,
    rank_weight,
)
from visdet_jax.losses.kfiou import KFLoss, kfiou_loss
from visdet_jax.losses.l2 import L2Loss, MarginL2Loss, margin_l2_loss
from visdet_jax.losses.matchability_aware import MatchabilityAwareLoss, matchability_aware_loss
from visdet_jax.losses.mpdiou import MPDIoULoss, mpdiou_loss
from visdet_jax.losses.mse import MSELoss, mse_loss
from visdet_jax.losses.multipos_cross_entropy import (
    MultiPosCrossEntropyLoss,
    multi_pos_cross_entropy,
)
from visdet_jax.losses.probiou import ProbIoULoss, probiou_loss
from visdet_jax.losses.quality_loss import QualityLoss
from visdet_jax.losses.seesaw import (
    SeesawLoss,
    SeesawState,
    seesaw_ce_loss,
    seesaw_loss,
    seesaw_statistics,
)
from visdet_jax.losses.shape_iou import ShapeIoULoss, shape_iou_loss
from visdet_jax.losses.siou import SIoULoss, siou_loss
from visdet_jax.losses.smooth_l1 import L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from visdet_jax.losses.softmax_focal import SoftmaxFocalLoss, softmax_focal_loss
from visdet_jax.losses.triplet import TripletLoss, triplet_loss
from visdet_jax.losses.tversky import TverskyLoss, tversky_loss
from visdet_jax.losses.varifocal import VarifocalLoss, varifocal_loss
from visdet_jax.losses.wasserstein import WassersteinLoss, wasserstein_loss
from visdet_jax.losses.wiou import WIoULoss, WIoUState, wiou_loss, wiou_statistics

__all__ = [
    "GHMC",
    "GHMR",
    "ASLSingleLabel",
    "Accuracy",
    "AlphaIoULoss",
    "AssociativeEmbeddingLoss",
    "AsymmetricLoss",
    "BalancedL1Loss",
    "BoundedIoULoss",
    "CIoULoss",
    "CrossEntropyCustomLoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DecoupledDistillationFocalLoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "EQLV2Loss",
    "EQLV2State",
    "EfficientIoULoss",
    "FineGrainedLocalizationLoss",
    "FocalCustomLoss",
    "FocalLoss",
    "GDLoss",
    "GDLoss_v1",
    "GHMState",
    "GIoULoss",
    "GaussianFocalLoss",
    "IoUAwareBCELoss",
    "IoULoss",
    "KFLoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "L2Loss",
    "MPDIoULoss",
    "MSELoss",
    "MarginL2Loss",
    "MatchabilityAwareLoss",
    "MultiPosCrossEntropyLoss",
    "ProbIoULoss",
    "QualityFocalLoss",
    "QualityLoss",
    "SIoULoss",
    "SeesawLoss",
    "SeesawState",
    "ShapeIoULoss",
    "SmoothL1Loss",
    "SoftmaxFocalLoss",
    "TripletLoss",
    "TverskyLoss",
    "VarifocalLoss",
    "WIoULoss",
    "WIoUState",
    "WassersteinLoss",
    "accuracy",
    "alpha_iou_loss",
    "asl_single_label",
    "associative_embedding_loss",
    "asymmetric_loss",
    "balanced_l1_loss",
    "binary_cross_entropy",
    "bounded_iou_loss",
    "ciou_loss",
    "cross_entropy",
    "decoupled_distillation_focal_loss",
    "dice_loss",
    "dice_loss_with_logits",
    "diou_loss",
    "distribution_focal_loss",
    "efficient_iou_loss",
    "eiou_loss",
    "eqlv2_loss",
    "eqlv2_statistics",
    "federated_class_mask",
    "fine_grained_localization_loss",
    "gaussian_focal_loss",
    "gaussian_focal_loss_with_pos_inds",
    "gd_loss",
    "gd_loss_v1",
    "ghmc_loss",
    "ghmc_statistics",
    "ghmr_loss",
    "ghmr_statistics",
    "giou_loss",
    "iou_aware_bce_loss",
    "iou_aware_quality",
    "iou_loss",
    "kfiou_loss",
    "knowledge_distillation_kl_div_loss",
    "l1_loss",
    "margin_l2_loss",
    "mask_cross_entropy",
    "matchability_aware_loss",
    "mpdiou_loss",
    "mse_loss",
    "multi_pos_cross_entropy",
    "probiou_loss",
    "quality_focal_loss",
    "rank_weight",
    "seesaw_ce_loss",
    "seesaw_loss",
    "seesaw_statistics",
    "shape_iou_loss",
    "sigmoid_focal_loss",
    "siou_loss",
    "smooth_l1_loss",
    "softmax_focal_loss",
    "triplet_loss",
    "tversky_loss",
    "varifocal_loss",
    "wasserstein_loss",
    "wiou_loss",
    "wiou_statistics",
]
