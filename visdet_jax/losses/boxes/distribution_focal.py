"""Distribution focal loss, of Generalized Focal Loss."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses.boxes._bins import bins_of, logits_around
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES


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


def _distribution_value(pred, target, alone=False):
    m, log_sum = log_sum_exp(pred, -1, alone)
    left = jnp.trunc(jax.lax.stop_gradient(target))
    at_left, at_right = (x - m for x in logits_around(pred, left))
    share = target - left
    return (log_sum - ((1 - share) * at_left + share * at_right)).squeeze(-1)


def _distribution_derivative(pred, target):
    # The shares of all bins as a hat around the target: compares of bins take twice the time.
    bins = jnp.arange(pred.shape[-1], dtype=pred.dtype).reshape((1,) * (pred.ndim - 1) + (-1,))
    hat = jnp.maximum(1 - jnp.abs(bins - jnp.maximum(target, 0)), 0)
    # Below 0, where the formula extrapolates: 1 - target and target.
    beyond = jnp.where(bins == 0, -1, jnp.where(bins == 1, 1, 0)).astype(pred.dtype)
    return softmax(pred, axis=-1) - (hat + jnp.minimum(target, 0) * beyond)


_distribution_focal = closed_form(
    _distribution_value,
    _distribution_derivative,
    axis=-1,
    has_alone=True,
)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DistributionFocalLoss(Loss):
    """Flax shim of `distribution_focal_loss`."""

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, LOGITS), Expected("target", target, bins_of(pred))]

    def compute(self, pred, target, weight, **reduce):
        return distribution_focal_loss(pred, target, weight, **reduce)
