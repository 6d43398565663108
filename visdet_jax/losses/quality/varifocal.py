"""Varifocal loss, of VarifocalNet."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    floats_and_quality,
    is_positive,
    of_classes,
)
from visdet_jax.reduction import spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def varifocal_loss(
    pred,
    target,
    weight=None,
    *,
    alpha=0.75,
    gamma: Exponent = 2.0,
    iou_weighted=True,
    detached=False,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy with an IoU as its target, less of it for easy negatives only.

    w BCE(p, t), p = sigmoid(pred), with w = t for positives (1 without `iou_weighted`) and
    w = alpha |p - t|^gamma elsewhere.

    The gradient flows through w too, as in the reference, and is finite for every gamma ≥ 0;
    `detached` makes w and t constants, as RT-DETR and D-FINE have it.

    Args:
      pred: logits (..., C).
      target: the IoU at an object's class and 0 elsewhere, (..., C), whose positives are those
        above 0; or (label, score), class indices (...) and IoUs (...), where a row's class is
        positive whatever its score. Labels outside [0, C) are background.
      alpha: share of the negatives; ≥ 0.
      gamma: how much less for negatives that are classified well.
      iou_weighted: positives count by their IoU.
      detached: no gradient flows through w, nor into the target.
    Returns: values of pred's shape, before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Zhang et al. 2021, https://arxiv.org/abs/2008.13367
    """
    pred, quality = floats_and_quality(pred, target)
    alpha, gamma = as_dtype(pred.dtype, alpha, gamma)
    if weight is not None:
        weight = spread_weight(weight, pred.shape).astype(pred.dtype)
    if detached:
        quality = jax.lax.stop_gradient(quality)
    weighed = closed_form(
        functools.partial(_value, iou_weighted=iou_weighted),
        functools.partial(
            _detached_derivative if detached else _derivative, iou_weighted=iou_weighted
        ),
    )
    values = weighed(weight, pred, alpha, gamma, *quality)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _value(pred, alpha, gamma, *quality, iou_weighted):
    t = of_classes(pred, *quality)
    _, p, not_p, tail = sigmoid_parts(pred)
    gap = p * (1 - t) - not_p * t  # p - t, without losing digits near 1
    negative = alpha * power(jnp.abs(gap), gamma)
    focal = jnp.where(is_positive(pred, *quality), t if iou_weighted else 1, negative)
    return focal * ((jnp.maximum(pred, 0) - t * pred) + tail)


def _derivative(pred, alpha, gamma, *quality, iou_weighted):
    t = of_classes(pred, *quality)
    _, p, not_p, tail = sigmoid_parts_in_derivative(pred)
    gap = p * (1 - t) - not_p * t
    bce = (jnp.maximum(pred, 0) - t * pred) + tail
    focal, by_gap = power_and_derivative(jnp.abs(gap), gamma)
    negative = alpha * (focal * gap + by_gap * jnp.sign(gap) * p * not_p * bce)
    return jnp.where(is_positive(pred, *quality), (t if iou_weighted else 1) * gap, negative)


def _detached_derivative(pred, alpha, gamma, *quality, iou_weighted):
    t = of_classes(pred, *quality)
    _, p, not_p, _ = sigmoid_parts_in_derivative(pred)
    gap = p * (1 - t) - not_p * t
    negative = alpha * power(jax.lax.stop_gradient(jnp.abs(gap)), gamma)
    return jnp.where(is_positive(pred, *quality), t if iou_weighted else 1, negative) * gap


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class VarifocalLoss(QualityLoss):
    """Flax shim of `varifocal_loss`; RT-DETR's and D-FINE's form is `detached=True`."""

    alpha: float = 0.75
    gamma: float = 2.0
    iou_weighted: bool = True
    detached: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.alpha, jax.Array) and self.alpha < 0:
            raise self.value_error(f"alpha must be ≥ 0, got {self.alpha!r}")

    def compute(self, pred, target, weight, **reduce):
        return varifocal_loss(
            pred,
            target,
            weight,
            alpha=self.alpha,
            gamma=self.gamma,
            iou_weighted=self.iou_weighted,
            detached=self.detached,
            **reduce,
        )
