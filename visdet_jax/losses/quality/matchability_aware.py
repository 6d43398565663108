"""Matchability-aware loss, of DEIM."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    floats_and_quality,
    is_positive,
    of_classes,
    weight_of_rows,
)
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def matchability_aware_loss(
    pred,
    target,
    weight=None,
    *,
    gamma: Exponent = 2.0,
    alpha=None,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy with a power of the IoU as its target, so that poor matches count as well.

    Σ over classes of BCE(p, q^gamma) at a row's class, with q its IoU, and
    alpha p^gamma BCE(p, 0) elsewhere, p = sigmoid(pred). Varifocal loss, which weighs the first
    by q, hardly learns from a match whose IoU is small.

    The factor p^gamma and q are constants to the gradient.

    Args:
      pred: logits (..., C).
      target: (label, score), class indices (...) and IoUs (...), every label outside [0, C) being
        background; or the IoU at an object's class and 0 elsewhere, (..., C), whose positives are
        those above 0.
      gamma: how much less for negatives that are classified well, and the power of the IoU; ≥ 0.
      alpha: share of the negatives, None for 1; DEIM's `mal_alpha`.
    Returns: (...), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Huang et al. 2024 (DEIM), https://arxiv.org/abs/2412.04234
    """
    pred, (*label, score) = floats_and_quality(pred, target)
    gamma, alpha = as_dtype(pred.dtype, gamma, 1.0 if alpha is None else alpha)
    score = jax.lax.stop_gradient(score)
    quality = *label, jnp.where(score > 0, power(score, gamma), 0)
    values = _weighed(weight_of_rows(weight, pred), pred, gamma, alpha, *quality)
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


def _value(pred, gamma, alpha, *quality):
    t = of_classes(pred, *quality)
    _, p, _, tail = sigmoid_parts(pred)
    focal = jnp.where(is_positive(pred, *quality), 1, alpha * power(p, gamma))
    return focal * ((jnp.maximum(pred, 0) - t * pred) + tail)


def _derivative(pred, gamma, alpha, *quality):
    t = of_classes(pred, *quality)
    _, p, not_p, _ = sigmoid_parts_in_derivative(pred)
    focal = alpha * power(jax.lax.stop_gradient(p), gamma)
    return jnp.where(is_positive(pred, *quality), 1, focal) * (p * (1 - t) - not_p * t)


_weighed = closed_form(_value, _derivative)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MatchabilityAwareLoss(QualityLoss):
    """Flax shim of `matchability_aware_loss`; DEIM's configs set gamma=1.5."""

    gamma: float = 2.0
    alpha: float | None = None

    def compute(self, pred, target, weight, **reduce):
        return matchability_aware_loss(
            pred, target, weight, gamma=self.gamma, alpha=self.alpha, **reduce
        )
