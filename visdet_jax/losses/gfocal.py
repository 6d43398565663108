"""Quality focal and distribution focal loss, of Generalized Focal Loss."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import LOGITS, UNIT, Expected, Rule
from visdet_jax.closed_form import closed_form
from visdet_jax.function import as_dtype, compute_dtype, jitted
from visdet_jax.losses.quality_loss import (
    QualityLoss,
    floats_and_quality,
    of_classes,
    weight_of_rows,
)
from visdet_jax.module import Loss
from visdet_jax.numerics import (
    bce_with_probs,
    bce_with_probs_slope,
    logistic,
    logistic_of_slope,
    power,
    power_and_slope,
)
from visdet_jax.reduction import weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES
from visdet_jax.softmax import log_sum_exp, softmax


@functools.partial(jitted, exponents=("beta",))
def quality_focal_loss(
    pred,
    target,
    weight=None,
    *,
    beta=2.0,
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
    p, not_p, tail = logistic(pred)
    gap = p * (1 - q) - not_p * q  # p - q, without losing digits near 1
    values = power(jnp.abs(gap), beta) * ((jnp.maximum(pred, 0) - q * pred) + tail)
    return _shared(values, alpha, q)


def _slope(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    p, not_p, tail = logistic_of_slope(pred)
    gap = p * (1 - q) - not_p * q
    bce = (jnp.maximum(pred, 0) - q * pred) + tail
    focal, by_gap = power_and_slope(jnp.abs(gap), beta)
    return _shared(focal * gap + by_gap * jnp.sign(gap) * p * not_p * bce, alpha, q)


def _value_of_probabilities(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    return _shared(power(jnp.abs(q - pred), beta) * bce_with_probs(pred, q), alpha, q)


def _slope_of_probabilities(pred, beta, alpha, *quality):
    q = of_classes(pred, *quality)
    focal, by_gap = power_and_slope(jnp.abs(q - pred), beta)
    slope = focal * bce_with_probs_slope(pred, q)
    return _shared(slope + by_gap * jnp.sign(pred - q) * bce_with_probs(pred, q), alpha, q)


_of_logits = closed_form(_value, _slope)
_of_probabilities = closed_form(_value_of_probabilities, _slope_of_probabilities)


@jitted
def distribution_focal_loss(pred, target, weight=None, *, reduction="mean", avg_factor=None):
    """Cross entropy with the two bins around a continuous target, by their nearness.

    (right - target) CE(pred, left) + (target - left) CE(pred, right), left = trunc(target),
    right = left + 1.

    Args:
      pred: logits of the bins 0 to n, (..., n + 1).
      target: (...) in [0, n], in bins: a distance over its stride. At -1 and below the row is
        ignored, above n its loss is NaN: no bins are there. (Between -1 and 0 the formula
        extrapolates, as the reference's.)
    Returns: (...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if target.shape != pred.shape[:-1]:
        raise ValueError(f"target must have shape {pred.shape[:-1]}, got {target.shape}")
    weight = weight_without(target <= -1, weight, target.shape)
    weight = jnp.where((target > pred.shape[-1] - 1) & (weight != 0), jnp.nan, weight)
    values = _distribution_focal(weight.astype(dtype), pred, target[..., None])
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _distribution_value(pred, target, beside_slope=True):
    m, log_sum = log_sum_exp(pred, -1, beside_slope)
    left = jnp.trunc(jax.lax.stop_gradient(target))
    at_left, at_right = (x - m for x in logits_around(pred, left))
    share = target - left
    return (log_sum - ((1 - share) * at_left + share * at_right)).squeeze(-1)


def logits_around(pred, left):
    """The logits (..., 1) of the bins `left` (..., 1) and `left` + 1, or of the last there is."""
    bins = (jnp.clip(left + i, 0, pred.shape[-1] - 1).astype(jnp.int32) for i in range(2))
    return [jnp.take_along_axis(pred, i, axis=-1, mode="promise_in_bounds") for i in bins]


def _distribution_slope(pred, target):
    # The shares of all bins as a hat around the target: compares of bins take twice the time.
    bins = jnp.arange(pred.shape[-1], dtype=pred.dtype).reshape((1,) * (pred.ndim - 1) + (-1,))
    hat = jnp.maximum(1 - jnp.abs(bins - jnp.maximum(target, 0)), 0)
    # Below 0, where the formula extrapolates: 1 - target and target.
    beyond = jnp.where(bins == 0, -1, jnp.where(bins == 1, 1, 0)).astype(pred.dtype)
    return softmax(pred, axis=-1) - (hat + jnp.minimum(target, 0) * beyond)


_distribution_focal = closed_form(
    _distribution_value,
    _distribution_slope,
    axis=-1,
    alone=functools.partial(_distribution_value, beside_slope=False),
)


def bins_of(pred):
    """What a place among the bins of `pred` must be."""
    last = pred.shape[-1] - 1
    return Rule(
        lambda x: ~((x >= 0) & (x <= last) | (x <= -1)),
        f"must be from 0 to {last}, the last bin, or -1 to be ignored",
        ignored=lambda x: x <= -1,
    )


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


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DistributionFocalLoss(Loss):
    """Flax shim of `distribution_focal_loss`."""

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, LOGITS), Expected("target", target, bins_of(pred))]

    def compute(self, pred, target, weight, **reduce):
        return distribution_focal_loss(pred, target, weight, **reduce)
