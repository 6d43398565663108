"""Dice: overlap of masks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.elementary import divide
from visdet_jax.core.rules import LOGITS, UNIT, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


def _dice_derivative(pred, target, *, naive_dice, eps):
    loss, total = (
        jnp.expand_dims(x, range(1, pred.ndim)) for x in _dice(pred, target, naive_dice, eps)
    )
    own = 1 if naive_dice else 2 * pred
    return ((1 - loss) * own - 2 * target) * divide(jnp.ones_like(total), total)


def _dice_derivative_with_logits(pred, target, *, naive_dice, eps):
    p = jax.nn.sigmoid(pred)
    return _dice_derivative(p, target, naive_dice=naive_dice, eps=eps) * (p * (1 - p))


@weighted_loss(derivative=_dice_derivative, axis=slice(1, None))
def dice_loss(pred, target, *, naive_dice=False, eps=1e-3):
    """One minus the Dice coefficient of each mask.

    1 - 2 Σ p t / (Σ p² + eps + Σ t² + eps), V-Net's form: nothing against nothing costs 1;
    naive: 1 - (2 Σ p t + eps) / (Σ p + Σ t + eps): nothing against nothing costs 0.
    Both hold for eps = 0.

    Args:
      pred: probabilities (N, ...), summed over all axes but the first.
      target: masks of the same shape, in [0, 1].
      naive_dice: sums instead of sums of squares.
      eps: keeps the denominators above 0.
    Returns: (N,), before the weight and the reduction.
    Raises: ValueError where the shapes differ or have one axis only.
    Milletari et al. 2016 (V-Net), https://arxiv.org/abs/1606.04797
    """
    return _dice(pred, target, naive_dice, eps)[0]


@weighted_loss(derivative=_dice_derivative_with_logits, axis=slice(1, None))
def dice_loss_with_logits(pred, target, *, naive_dice=False, eps=1e-3):
    """`dice_loss` of sigmoid(pred): `pred` holds logits, the rest is as there."""
    return _dice(jax.nn.sigmoid(pred), target, naive_dice, eps)[0]


def _dice(pred, target, naive_dice, eps):
    """The values and what they were divided by, both (N,)."""
    check_same_shape(pred, target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, ...), got {pred.shape}")
    axes = tuple(range(1, pred.ndim))
    both = (pred * target).sum(axes)
    if naive_dice:
        sums = pred.sum(axes) + target.sum(axes)
        return divide(sums - 2 * both, sums + eps), sums + eps
    squares = (pred * pred).sum(axes) + (target * target).sum(axes) + 2 * eps
    return 1 - divide(2 * both, squares), squares


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DiceLoss(Loss):
    """Flax shim of `dice_loss_with_logits`, or of `dice_loss` where `activate` is False."""

    use_sigmoid: bool = True
    activate: bool = True
    naive_dice: bool = False
    eps: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if self.activate and not self.use_sigmoid:
            raise self.value_error(
                "use_sigmoid=False needs activate=False: no other activation is there"
            )

    def rules(self, pred, target, **extra):
        of_pred = LOGITS if self.activate else UNIT
        return [Expected("pred", pred, of_pred), Expected("target", target, UNIT)]

    def compute(self, pred, target, weight, **reduce):
        loss = dice_loss_with_logits if self.activate else dice_loss
        return loss(pred, target, weight, naive_dice=self.naive_dice, eps=self.eps, **reduce)
