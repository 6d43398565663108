"""Varifocal loss, of VarifocalNet."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import LOGITS, UNIT, Expected
from visdet_jax.function import check_same_shape
from visdet_jax.module import Loss
from visdet_jax.numerics import logistic, logistic_of_slope, power, power_slope
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


def _slope(pred, target, *, alpha, gamma, iou_weighted):
    p, not_p, tail = logistic_of_slope(pred)
    gap = p * (1 - target) - not_p * target
    bce = (jnp.maximum(pred, 0) - target * pred) + tail
    miss, of_gap = jnp.abs(gap), jnp.sign(gap) * p * not_p
    negative = alpha * (power(miss, gamma) * gap + power_slope(miss, gamma) * of_gap * bce)
    return jnp.where(target > 0, (target if iou_weighted else 1) * gap, negative)


@weighted_loss(slope=_slope, exponents=("gamma",))
def varifocal_loss(pred, target, *, alpha=0.75, gamma=2.0, iou_weighted=True):
    """Cross entropy with an IoU as its target, less of it for easy negatives only.

    w BCE(p, t), p = sigmoid(pred), with w = t where t > 0 (1 without `iou_weighted`) and
    w = alpha |p - t|^gamma elsewhere.

    The gradient flows through w too, as in the reference, and is finite for every gamma ≥ 0.

    Args:
      pred: logits (..., C).
      target: pred's shape: the IoU at an object's class, 0 elsewhere.
      alpha: share of the negatives; ≥ 0.
      gamma: how much less for negatives that are classified well.
      iou_weighted: positives count by their IoU.
    Returns: values of pred's shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    Zhang et al. 2021, https://arxiv.org/abs/2008.13367
    """
    check_same_shape(pred, target)
    p, not_p, tail = logistic(pred)
    gap = p * (1 - target) - not_p * target  # p - target, without losing digits near 1
    negative = alpha * power(jnp.abs(gap), gamma)
    focal = jnp.where(target > 0, target if iou_weighted else 1, negative)
    return focal * ((jnp.maximum(pred, 0) - target * pred) + tail)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class VarifocalLoss(Loss):
    """Flax shim of `varifocal_loss`."""

    use_sigmoid: bool = True
    alpha: float = 0.75
    gamma: float = 2.0
    iou_weighted: bool = True

    def __post_init__(self):
        super().__post_init__()
        self.refuse_softmax(self.use_sigmoid)
        if not isinstance(self.alpha, jax.Array) and self.alpha < 0:
            self.refuse(f"alpha must be ≥ 0, got {self.alpha!r}")

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, LOGITS), Expected("target", target, UNIT)]

    def compute(self, pred, target, weight, **reduce):
        return varifocal_loss(
            pred,
            target,
            weight,
            alpha=self.alpha,
            gamma=self.gamma,
            iou_weighted=self.iou_weighted,
            **reduce,
        )
