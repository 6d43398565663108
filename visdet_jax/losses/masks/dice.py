"""Dice: overlap of masks."""

from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import NonNegative
from visdet_jax.core.rules import LOGITS, UNIT, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, weighted_loss
from visdet_jax.registry import LOSSES


def _d_dice(pred: jax.Array, target: jax.Array, *, naive_dice: bool, eps: Any) -> jax.Array:
    values, divisor = (
        jnp.expand_dims(x, range(1, pred.ndim)) for x in _dice(pred, target, naive_dice, eps)
    )
    d_divisor = 1 if naive_dice else 2 * pred
    return ((1 - values) * d_divisor - 2 * target) * divide(jnp.ones_like(divisor), divisor)


def _d_dice_with_logits(
    pred: jax.Array, target: jax.Array, *, naive_dice: bool, eps: Any
) -> jax.Array:
    p = jax.nn.sigmoid(pred)
    return _d_dice(p, target, naive_dice=naive_dice, eps=eps) * (p * (1 - p))


@weighted_loss(derivative=_d_dice, axis=slice(1, None))
def dice_loss(
    pred: jax.Array,
    target: jax.Array,
    *,
    naive_dice: bool = False,
    eps: NonNegative = 1e-3,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the Dice coefficient of each mask.

    1 - 2 Σ p t / (Σ p² + eps + Σ t² + eps), V-Net's form: nothing against nothing costs 1.
    Naive: 1 - (2 Σ p t + eps) / (Σ p + Σ t + eps): nothing against nothing costs 0.
    Both hold for eps = 0.

    Args:
      pred: Probabilities (N, ...), summed over all axes but the first.
      target: Masks of the same shape, in [0, 1].
      weight: (N,).
      naive_dice: Divides by sums instead of sums of squares.
      eps: Keeps the divisor above 0, at least 0. Larger values make the gradients of small masks
        smaller.

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or have one axis only.
    Source: Milletari et al. 2016 (V-Net), https://arxiv.org/abs/1606.04797
    """
    return _dice(pred, target, naive_dice, eps)[0]


@weighted_loss(derivative=_d_dice_with_logits, axis=slice(1, None))
def dice_loss_with_logits(
    pred: jax.Array,
    target: jax.Array,
    *,
    naive_dice: bool = False,
    eps: NonNegative = 1e-3,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """`dice_loss` of sigmoid(pred).

    Args:
      pred: Logits (N, ...), summed over all axes but the first.
      target, weight, naive_dice, eps: As in `dice_loss`.

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or have one axis only.
    """
    return _dice(jax.nn.sigmoid(pred), target, naive_dice, eps)[0]


def _dice(
    pred: jax.Array, target: jax.Array, naive_dice: bool, eps: Any
) -> tuple[jax.Array, jax.Array]:
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
class DiceLoss(Loss, function=(dice_loss, dice_loss_with_logits)):
    """Dice loss: `dice_loss_with_logits`, or `dice_loss` where `activate` is False.

    Args:
      use_sigmoid: Must be True, unless `activate` is False.
      activate: `pred` holds logits; probabilities otherwise.
    """

    use_sigmoid: bool = True
    activate: bool = True
    naive_dice: bool = False
    eps: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activate and not self.use_sigmoid:
            raise self.value_error(
                "use_sigmoid=False needs activate=False: there is no other activation"
            )

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        of_pred = LOGITS if self.activate else UNIT
        return [Expected("pred", pred, of_pred), Expected("target", target, UNIT)]

    def compute(
        self, pred: jax.Array, target: Any, weight: jax.Array | None, **options: Any
    ) -> jax.Array:
        loss = dice_loss_with_logits if self.activate else dice_loss
        return loss(pred, target, weight, **self.settings, **options)
