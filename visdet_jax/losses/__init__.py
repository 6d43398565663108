"""The losses, one family a file. Importing this package registers them all."""

from visdet_jax.losses.accuracy import Accuracy, accuracy
from visdet_jax.losses.balanced_l1 import BalancedL1Loss, balanced_l1_loss
from visdet_jax.losses.cross_entropy import (
    CrossEntropyCustomLoss,
    CrossEntropyLoss,
    binary_cross_entropy,
    cross_entropy,
    mask_cross_entropy,
)
from visdet_jax.losses.dice import DiceLoss, dice_loss, dice_loss_with_logits
from visdet_jax.losses.eqlv2 import EQLV2Loss, EQLV2State, eqlv2_loss, eqlv2_statistics
from visdet_jax.losses.focal import FocalLoss, sigmoid_focal_loss
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
from visdet_jax.losses.mse import MSELoss, mse_loss
from visdet_jax.losses.seesaw import (
    SeesawLoss,
    SeesawState,
    seesaw_ce_loss,
    seesaw_loss,
    seesaw_statistics,
)
from visdet_jax.losses.smooth_l1 import L1Loss, SmoothL1Loss, l1_loss, smooth_l1_loss

__all__ = [
    "GHMC",
    "GHMR",
    "Accuracy",
    "BalancedL1Loss",
    "CrossEntropyCustomLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "DistributionFocalLoss",
    "EQLV2Loss",
    "EQLV2State",
    "FocalLoss",
    "GHMState",
    "GIoULoss",
    "GaussianFocalLoss",
    "IoULoss",
    "L1Loss",
    "MSELoss",
    "QualityFocalLoss",
    "SeesawLoss",
    "SeesawState",
    "SmoothL1Loss",
    "accuracy",
    "balanced_l1_loss",
    "binary_cross_entropy",
    "cross_entropy",
    "dice_loss",
    "dice_loss_with_logits",
    "distribution_focal_loss",
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
    "l1_loss",
    "mask_cross_entropy",
    "mse_loss",
    "quality_focal_loss",
    "seesaw_ce_loss",
    "seesaw_loss",
    "seesaw_statistics",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
