"""Matchability-aware loss, of DEIM."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    cross_entropy_of_quality,
    floats_and_quality,
    weight_column,
)
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def matchability_aware_loss(
    pred: jax.Array,
    target: Any,
    weight: jax.Array | None = None,
    *,
    gamma: Exponent = 2.0,
    alpha: NonNegative | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy with a power of the IoU as its target, so that poor matches count as well.

    Σ over classes of BCE(p, q^gamma) at a row's class, with q its IoU, and of
    alpha p^gamma BCE(p, 0) elsewhere, with p = sigmoid(pred). Varifocal loss, which weights the
    first by q, hardly learns from a match whose IoU is small.

    The factor p^gamma and q are constants to the gradient.

    Args:
      pred: Logits (..., C).
      target: (label, score), class indices (...) and IoUs (...), every label outside [0, C) being
        background; or the IoU at an object's class and 0 elsewhere, (..., C), whose positives are
        those above 0.
      weight: (...).
      gamma: Focusing exponent of the negatives and exponent of the IoU, at least 0. Larger values
        down-weight easy negatives more, and lower the targets.
      alpha: Weight of the negatives, at least 0; DEIM's `mal_alpha`. None is 1.

    Returns: (...), summed over the classes, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit.
    Source: Huang et al. 2024 (DEIM), https://arxiv.org/abs/2412.04234
    """
    pred, (*label, score) = floats_and_quality(pred, target)
    gamma, alpha = as_dtype(pred.dtype, gamma, 1.0 if alpha is None else alpha)
    score = jax.lax.stop_gradient(score)
    quality = *label, jnp.where(score > 0, power(score, gamma), 0)
    values = cross_entropy_of_quality(
        weight_column(weight, pred), pred, quality, alpha, gamma, detached=True
    )
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MatchabilityAwareLoss(QualityLoss, function=matchability_aware_loss):
    """Matchability-aware loss: `matchability_aware_loss`; DEIM's configs set gamma=1.5."""

    gamma: float = 2.0
    alpha: float | None = None
