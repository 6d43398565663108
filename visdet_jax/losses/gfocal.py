"""Quality focal and distribution focal loss, of Generalized Focal Loss."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import LOGITS, UNIT, Expected, Rule, classes
from visdet_jax.closed_form import closed_form
from visdet_jax.function import (
    as_dtype,
    check_array,
    check_same_shape,
    class_mask,
    compute_dtype,
    jitted,
)
from visdet_jax.module import Loss
from visdet_jax.numerics import (
    bce_with_probs,
    bce_with_probs_slope,
    logistic,
    logistic_of_slope,
    power,
    power_slope,
)
from visdet_jax.reduction import spread_weight, weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES
from visdet_jax.softmax import log_sum_exp, softmax


@functools.partial(jitted, exponents=("beta",))
def quality_focal_loss(
    pred, target, weight=None, *, beta=2.0, activated=False, reduction="mean", avg_factor=None
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
    Returns: (...), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    if isinstance(target, tuple | list):
        if len(target) != 2:
            raise ValueError(f"target must be (label, score) or an array, got {len(target)} parts")
        label, score = target
        dtype = compute_dtype(pred=pred, score=score)
        check_array("label", label)
        for name, part in (("label", label), ("score", score)):
            if part.shape != pred.shape[:-1]:
                raise ValueError(f"{name} must have shape {pred.shape[:-1]}, got {part.shape}")
        # Labels may be floats, as in the reference: those in [0, C) are truncated.
        index = jnp.where(label < 0, -1, label).astype(jnp.int32)
        quality: tuple[jax.Array, ...] = (index[..., None], score.astype(dtype)[..., None])
    else:
        dtype = compute_dtype(pred=pred, target=target)
        check_same_shape(pred, target)
        quality = (target.astype(dtype),)
    pred, beta = pred.astype(dtype), as_dtype(dtype, beta)
    if weight is not None:
        rows = spread_weight(weight, pred.shape[:-1]).astype(dtype)
        weight = jnp.broadcast_to(rows, pred.shape[:-1])[..., None]
    values = (_of_probabilities if activated else _of_logits)(weight, pred, beta, *quality)
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


def _quality(pred, target, score=None):
    """The score at each class: `target` itself, or where it is class indices (..., 1), `score`."""
    if score is None:
        return target
    return jnp.where(class_mask(target[..., 0], pred.shape[-1]), score, 0)


def _value(pred, beta, *quality):
    q = _quality(pred, *quality)
    p, not_p, tail = logistic(pred)
    gap = p * (1 - q) - not_p * q  # p - q, without losing digits near 1
    return power(jnp.abs(gap), beta) * ((jnp.maximum(pred, 0) - q * pred) + tail)


def _slope(pred, beta, *quality):
    q = _quality(pred, *quality)
    p, not_p, tail = logistic_of_slope(pred)
    gap = p * (1 - q) - not_p * q
    bce = (jnp.maximum(pred, 0) - q * pred) + tail
    of_gap = power_slope(jnp.abs(gap), beta) * jnp.sign(gap)
    return power(jnp.abs(gap), beta) * gap + of_gap * p * not_p * bce


def _value_of_probabilities(pred, beta, *quality):
    q = _quality(pred, *quality)
    return power(jnp.abs(q - pred), beta) * bce_with_probs(pred, q)


def _slope_of_probabilities(pred, beta, *quality):
    q = _quality(pred, *quality)
    gap = jnp.abs(q - pred)
    of_gap = power_slope(gap, beta) * jnp.sign(pred - q)
    return power(gap, beta) * bce_with_probs_slope(pred, q) + of_gap * bce_with_probs(pred, q)


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
    # Clamped: at the last bin the right share is 0.
    bins = (jnp.clip(left + i, 0, pred.shape[-1] - 1).astype(jnp.int32) for i in range(2))
    at_left, at_right = (
        jnp.take_along_axis(pred, i, axis=-1, mode="promise_in_bounds") - m for i in bins
    )
    share = target - left
    return (log_sum - ((1 - share) * at_left + share * at_right)).squeeze(-1)


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


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class QualityFocalLoss(Loss):
    """Flax shim of `quality_focal_loss`."""

    use_sigmoid: bool = True
    beta: float = 2.0
    activated: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.refuse_softmax(self.use_sigmoid)

    def rules(self, pred, target, **extra):
        of_pred = Expected("pred", pred, UNIT if self.activated else LOGITS)
        if not isinstance(target, tuple | list):
            return [of_pred, Expected("target", target, UNIT)]
        label, score = target
        # -1 is background here, not a mark for rows to skip.
        labels = classes(pred.shape[-1], background=True)._replace(ignored=None)
        return [of_pred, Expected("label", label, labels), Expected("score", score, UNIT)]

    def compute(self, pred, target, weight, **reduce):
        return quality_focal_loss(
            pred, target, weight, beta=self.beta, activated=self.activated, **reduce
        )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DistributionFocalLoss(Loss):
    """Flax shim of `distribution_focal_loss`."""

    def rules(self, pred, target, **extra):
        last = pred.shape[-1] - 1
        bins = Rule(
            lambda x: ~((x >= 0) & (x <= last) | (x <= -1)),
            f"must be from 0 to {last}, the last bin, or -1 to be ignored",
            ignored=lambda x: x <= -1,
        )
        return [Expected("pred", pred, LOGITS), Expected("target", target, bins)]

    def compute(self, pred, target, weight, **reduce):
        return distribution_focal_loss(pred, target, weight, **reduce)
