"""The losses, one family a file. Importing this package registers them all."""

from visdet_jax.losses.accuracy import Accuracy, accuracy
from visdet_jax.losses.associative_embedding import (
    AssociativeEmbeddingLoss,
    associative_embedding_loss,
)
from visdet_jax.losses.balanced_l1 import BalancedL1Loss, balanced_l1_loss
from visdet_jax.losses.bounded_iou import BoundedIoULoss, bounded_iou_loss
from visdet_jax.losses.cross_entropy import (
    CrossEntropyLoss,
    binary_cross_entropy,
    cross_entropy,
    mask_cross_entropy,
)
from visdet_jax.losses.custom_cross_entropy import CrossEntropyCustomLoss
from visdet_jax.losses.dice import DiceLoss, dice_loss, dice_loss_with_logits
from visdet_jax.losses.diou import CIoULoss, DIoULoss, ciou_loss, diou_loss
from visdet_jax.losses.distillation import (
    KnowledgeDistillationKLDivLoss,
    knowledge_distillation_kl_div_loss,
)
from visdet_jax.losses.eiou import EIoULoss, eiou_loss
from visdet_jax.losses.eqlv2 import EQLV2Loss, EQLV2State, eqlv2_loss, eqlv2_statistics
from visdet_jax.losses.focal import FocalCustomLoss, FocalLoss, sigmoid_focal_loss
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
from visdet_jax.losses.l2 import L2Loss, MarginL2Loss, margin_l2_loss
from visdet_jax.losses.mse import MSELoss, mse_loss
from visdet_jax.losses.multipos_cross_entropy import (
    MultiPosCrossEntropyLoss,
    multi_pos_cross_entropy,
)
from visdet_jax.losses.seesaw import (
    SeesawLoss,
    SeesawState,
    seesaw_ce_loss,
    seesaw_loss,
    seesaw_statistics,
)
from visdet_jax.losses.siou import SIoULoss, siou_loss
from visdet_jax.losses.smooth_l1 import L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss
from visdet_jax.losses.triplet import TripletLoss, triplet_loss
from visdet_jax.losses.varifocal import VarifocalLoss, varifocal_loss

__all__ = [
    "GHMC",
    "GHMR",
    "Accuracy",
    "AssociativeEmbeddingLoss",
    "BalancedL1Loss",
    "BoundedIoULoss",
    "CIoULoss",
    "CrossEntropyCustomLoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "EQLV2Loss",
    "EQLV2State",
    "FocalCustomLoss",
    "FocalLoss",
    "GHMState",
    "GIoULoss",
    "GaussianFocalLoss",
    "IoULoss",
    "KnowledgeDistillationKLDivLoss",
    "L1Loss",
    "L2Loss",
    "MSELoss",
    "MarginL2Loss",
    "MultiPosCrossEntropyLoss",
    "QualityFocalLoss",
    "SIoULoss",
    "SeesawLoss",
    "SeesawState",
    "SmoothL1Loss",
    "TripletLoss",
    "VarifocalLoss",
    "accuracy",
    "associative_embedding_loss",
    "balanced_l1_loss",
    "binary_cross_entropy",
    "bounded_iou_loss",
    "ciou_loss",
    "cross_entropy",
    "dice_loss",
    "dice_loss_with_logits",
    "diou_loss",
    "distribution_focal_loss",
    "eiou_loss",
    "eqlv2_loss",
    "eqlv2_statistics",
    "gaussian_focal_loss",
    "gaussian_focal_loss_with_pos_inds",
    "ghmc_loss",
    "ghmc_statistics",
    "ghmr_loss",
    "ghmr_statistics",
    "giou_loss",
    "iou_loss",
    "knowledge_distillation_kl_div_loss",
    "l1_loss",
    "margin_l2_loss",
    "mask_cross_entropy",
    "mse_loss",
    "multi_pos_cross_entropy",
    "quality_focal_loss",
    "seesaw_ce_loss",
    "seesaw_loss",
    "seesaw_statistics",
    "sigmoid_focal_loss",
    "siou_loss",
    "smooth_l1_loss",
    "triplet_loss",
    "varifocal_loss",
]
