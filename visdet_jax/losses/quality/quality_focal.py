"""Quality focal and distribution focal loss, of Generalized Focal Loss."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import UNIT
from visdet_jax.core.sigmoid import (
    bce_with_probs,
    d_bce_with_probs,
    sigmoid_parts,
    sigmoid_parts_in_derivative,
)
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    floats_and_quality,
    of_classes,
    weight_of_rows,
)
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def quality_focal_loss(
    pred,
    target,
    weight=None,
    *,
    beta: Exponent = 2.0,
    alpha=None,
    activated=False,
    reduction="mean",
    avg_factor=None,
):
    """Focal loss towards a quality score instead of 1: class and localization in one.

    Σ over classes of |q - p|^beta BCE(p, q), p = sigmoid(pred), with q the score (the IoU, say)
    at a row's class and 0 elsewhere.

    Gradients are finite for every beta ≥ 0 (the reference's are NaN for beta < 1 at p = q).

    Args:
      pred: logits (..., C); probabilities where `activated`.
      target: (label, score), class indices (...) and floats (...) in [0, 1], every label outside
        [0, C) being background; or q itself, (..., C), as one array.
      beta: how much less for what is near its score.
      alpha: share of the entries with a q above 0, 1 - alpha being that of the others; None for
        both to count as they are. rf-detr's position supervised loss is this one, with scores
        divided by the largest of their image.
    Returns: (...), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    pred, quality = floats_and_quality(pred, target)
    beta = as_dtype(pred.dtype, beta)
    alpha = None if alpha is None else as_dtype(pred.dtype, alpha)
    weighed = _of_probabilities if activated else _of_logits
    values = weighed(weight_of_rows(weight, pred), pred, beta, alpha, *quality)
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


def _shared(values, alpha, q):
    return values if alpha is None else jnp.where(q > 0, alpha, 1 - alpha) * values


def _value(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    _, p, not_p, tail = sigmoid_parts(pred)
    gap = p * (1 - q) - not_p * q  # p - q, without losing digits near 1
    values = power(jnp.abs(gap), beta) * ((jnp.maximum(pred, 0) - q * pred) + tail)
    return _shared(values, alpha, q)


def _derivative(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    _, p, not_p, tail = sigmoid_parts_in_derivative(pred)
    gap = p * (1 - q) - not_p * q
    bce = (jnp.maximum(pred, 0) - q * pred) + tail
    focal, by_gap = power_and_derivative(jnp.abs(gap), beta)
    return _shared(focal * gap + by_gap * jnp.sign(gap) * p * not_p * bce, alpha, q)


def _value_of_probabilities(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    return _shared(power(jnp.abs(q - pred), beta) * bce_with_probs(pred, q), alpha, q)


def _derivative_of_probabilities(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    focal, by_gap = power_and_derivative(jnp.abs(q - pred), beta)
    slope = focal * d_bce_with_probs(pred, q)
    return _shared(slope + by_gap * jnp.sign(pred - q) * bce_with_probs(pred, q), alpha, q)


_of_logits = closed_form(_value, _derivative)
_of_probabilities = closed_form(_value_of_probabilities, _derivative_of_probabilities)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class QualityFocalLoss(QualityLoss):
    """Flax shim of `quality_focal_loss`."""

    beta: float = 2.0
    activated: bool = False
    alpha: float | None = None

    def rules(self, pred, target, **extra):
        of_pred, *others = super().rules(pred, target, **extra)
        return [of_pred._replace(rule=UNIT) if self.activated else of_pred, *others]

    def compute(self, pred, target, weight, **reduce):
        return quality_focal_loss(
            pred,
            target,
            weight,
            beta=self.beta,
            alpha=self.alpha,
            activated=self.activated,
            **reduce,
        )
