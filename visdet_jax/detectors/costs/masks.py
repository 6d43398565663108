"""Match costs of masks: Dice, cross entropy and focal loss of each with each."""

from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import Exponent, Fraction, NonNegative
from visdet_jax.core.jitted import jitted
from visdet_jax.core.sigmoid import softplus
from visdet_jax.detectors.costs._focal import focal_costs
from visdet_jax.detectors.costs._pairwise import flatten_entries, pairwise_product, pairwise_sum
from visdet_jax.detectors.costs.match_cost import Instances, MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def dice_cost(
    pred: jax.Array,
    target: jax.Array,
    *,
    pred_act: bool = False,
    eps: NonNegative = 1e-3,
    naive_dice: bool = True,
) -> jax.Array:
    """One minus the Dice coefficient of each predicted mask with each ground truth's.

    1 - (2 Σ p t + eps) / (Σ p + Σ t + eps), of squares in the denominator without `naive_dice`.

    Args:
      pred: Probabilities (Q, ...), or logits where `pred_act`.
      target: Masks (G, ...), 0 and 1.
      pred_act: `pred` holds logits, of which the sigmoid is taken.
      eps: Added to both sides of the fraction, at least 0. Larger values make small masks cost
        less. Nothing against nothing costs 0, for eps = 0 too.
      naive_dice: Whether the denominator adds the probabilities or their squares.

    Returns: (Q, G), from 0 (equal) to 1 (no overlap).
    Raises: ValueError where the masks have different sizes.
    Source: Milletari et al. 2016, https://arxiv.org/abs/1606.04797; mmdet's `DiceCost`.
    """
    pred, target = flatten_entries(pred, target)
    if pred_act:
        pred = jax.nn.sigmoid(pred)
    both = pairwise_product(pred, target)
    pred_part, target_part = (pred, target) if naive_dice else (pred**2, target**2)
    sums = pred_part.sum(1)[:, None] + target_part.sum(1)[None]
    return divide(sums - 2 * both, sums + as_dtype(sums.dtype, eps))


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DiceCost(MatchCost, function=dice_cost):
    """Match cost by Dice: `dice_cost` with its hyperparameters as fields."""

    pred_act: bool = False
    eps: float = 1e-3
    naive_dice: bool = True

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        return dice_cost(*self.parts(pred_masks=pred.masks, gt_masks=gt.masks), **self.settings)


@jitted
def cross_entropy_loss_cost(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Binary cross entropy of each predicted mask with each ground truth's, the mean over pixels.

    Args:
      pred: Logits (Q, ...).
      target: Masks (G, ...), in [0, 1].

    Returns: (Q, G), at least 0.
    Raises: ValueError where the masks have different sizes.
    Source: Cheng et al. 2022 (Mask2Former), https://arxiv.org/abs/2112.01527; mmdet's
      `CrossEntropyLossCost`.
    """
    pred, target = flatten_entries(pred, target)
    return pairwise_sum(softplus(-pred), softplus(pred), target) / max(pred.shape[1], 1)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class CrossEntropyLossCost(MatchCost, function=cross_entropy_loss_cost):
    """Match cost by binary cross entropy: `cross_entropy_loss_cost`.

    Args:
      use_sigmoid: Must be True.
    """

    use_sigmoid: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.use_sigmoid:
            raise self.value_error("use_sigmoid must be True: there is no softmax form")

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        return cross_entropy_loss_cost(*self.parts(pred_masks=pred.masks, gt_masks=gt.masks))


@jitted
def mask_focal_loss_cost(
    pred: jax.Array,
    target: jax.Array,
    *,
    alpha: Fraction = 0.25,
    gamma: Exponent = 2.0,
    eps: NonNegative = 1e-12,
) -> jax.Array:
    """Focal loss of each predicted mask with each ground truth's, the mean over the pixels.

    Args:
      pred: Logits (Q, ...).
      target: Masks (G, ...), 0 and 1.
      alpha: Weight of the pixels inside the mask, in [0, 1]; those outside have 1 - alpha.
      gamma: Focusing exponent, at least 0; see `focal_loss_cost`.
      eps: Added to the probabilities before the logarithm, at least 0; see `focal_loss_cost`.

    Returns: (Q, G), at least 0 but for eps.
    Raises: ValueError where the masks have different sizes.
    Source: Cheng et al. 2021 (MaskFormer), https://arxiv.org/abs/2107.06278; mmdet's
      `FocalLossCost` with `binary_input`.
    """
    pred, target = flatten_entries(pred, target)
    positive, negative = focal_costs(pred, alpha, gamma, eps)
    return pairwise_sum(positive, negative, target) / max(pred.shape[1], 1)
