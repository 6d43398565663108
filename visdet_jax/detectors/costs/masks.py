"""Match costs of masks: Dice and cross entropy of each with each."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.jitted import jitted
from visdet_jax.core.sigmoid import softplus
from visdet_jax.detectors.costs.match_cost import MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def dice_cost(pred, target, *, pred_act=False, eps=1e-3, naive_dice=True):
    """One minus the Dice coefficient of each predicted mask with each ground truth's.

    1 - (2 Σ p t + eps) / (Σ p + Σ t + eps), of squares in the denominator without `naive_dice`.

    Args:
      pred: probabilities (Q, ...), logits with `pred_act`; target: masks (G, ...), 0 and 1.
      eps: nothing against nothing costs 0, for eps = 0 too.
    Returns: (Q, G).
    Raises: ValueError where the masks have different sizes.
    Milletari et al. 2016, https://arxiv.org/abs/1606.04797; mmdet's `DiceCost`.
    """
    pred, target = flat_masks(pred, target)
    if pred_act:
        pred = jax.nn.sigmoid(pred)
    both = masks_product(pred, target)
    of_pred, of_target = (pred, target) if naive_dice else (pred**2, target**2)
    sums = of_pred.sum(1)[:, None] + of_target.sum(1)[None]
    return divide(sums - 2 * both, sums + as_dtype(sums.dtype, eps))


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DiceCost(MatchCost):
    """Flax shim of `dice_cost`."""

    pred_act: bool = False
    eps: float = 1e-3
    naive_dice: bool = True

    def compute(self, pred, gt, image_shape):
        parts = self.parts(pred_masks=pred.masks, gt_masks=gt.masks)
        options = {"eps": self.eps, "naive_dice": self.naive_dice}
        return dice_cost(*parts, pred_act=self.pred_act, **options)


@jitted
def cross_entropy_loss_cost(pred, target):
    """Binary cross entropy of each predicted mask against each ground truth's, the pixels' mean.

    Args:
      pred: logits (Q, ...); target: masks (G, ...), in [0, 1].
    Returns: (Q, G).
    Raises: ValueError where the masks have different sizes.
    Cheng et al. 2022 (Mask2Former), https://arxiv.org/abs/2112.01527; mmdet's
    `CrossEntropyLossCost`.
    """
    pred, target = flat_masks(pred, target)
    return of_both(softplus(-pred), softplus(pred), target) / max(pred.shape[1], 1)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class CrossEntropyLossCost(MatchCost):
    """Flax shim of `cross_entropy_loss_cost`."""

    use_sigmoid: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid)

    def compute(self, pred, gt, image_shape):
        return cross_entropy_loss_cost(*self.parts(pred_masks=pred.masks, gt_masks=gt.masks))


def flat_masks(pred, target):
    """Masks (Q, n) and (G, n) in one type; mmdet's predictions may have a channel more."""
    dtype = compute_dtype(pred=pred, target=target)
    shapes = f"got {pred.shape} and {target.shape}"
    if pred.ndim < 2 or target.ndim < 2:
        raise ValueError(f"pred and target must have shapes (Q, ...) and (G, ...), {shapes}")
    pred, target = (x.astype(dtype).reshape(len(x), math.prod(x.shape[1:])) for x in (pred, target))
    if pred.shape[1] != target.shape[1]:
        raise ValueError(f"pred and target must have the same size, {shapes}")
    return pred, target


def of_both(positive, negative, target):
    """Σ positive t + negative (1 - t) of each (Q, n) with each t (G, n)."""
    return masks_product(positive - negative, target) + negative.sum(1)[:, None]


def masks_product(a, b):
    # Accelerators would round the factors to bfloat16 or TF32.
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
