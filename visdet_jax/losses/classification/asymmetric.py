"""Asymmetric loss of each class on its own."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.hyperparameters import Fraction, FractionBelowOne, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, labels_or_scores
from visdet_jax.core.sigmoid import Sigmoid, sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses._class_targets import classwise_target_and_weight, dense_target
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def asymmetric_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    gamma_neg: NonNegative = 4.0,
    gamma_pos: NonNegative = 1.0,
    clip: Fraction | None = 0.05,
    eps: FractionBelowOne = 1e-8,
    detached: bool = True,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Binary cross entropy of each class, weighted down more for easy negatives than positives.

    -m^g (y log max(p, eps) + (1 - y) log max(q, eps)), p = sigmoid(pred), q = min(1 - p + clip, 1),
    m = y (1 - p) + (1 - y) max(p - clip, 0), g = gamma_pos y + gamma_neg (1 - y). Negatives with
    p ≤ clip cost 0. No gradient flows through m^g where `detached`.

    The authors sum over a batch (reduction="sum"). Their faster class has the gradient through
    m^g by default, detached=False. 0^0 is 1, and gradients are finite for every gamma ≥ 0.

    Args:
      pred: Logits (..., C).
      target: 0 or 1, or floats in between, (..., C); or class indices (...). Index C is background,
        a negative index leaves its row out, and an index above C makes the row's loss NaN.
      weight: (...), (..., C), or flat (N·C,) for pred (N, C).
      gamma_neg: Focusing exponent of negatives, at least 0. Larger values down-weight easy
        negatives more.
      gamma_pos: Focusing exponent of positives, at least 0. Larger values down-weight easy
        positives more.
      clip: Probability up to which a negative costs 0, in [0, 1]. Larger values give up more
        negatives. None is 0.
      eps: Floor of the probabilities whose logarithm is taken, in [0, 1). Costs are at most
        -log eps, without gradient below the floor.
      detached: The focusing weight m^g is a constant of the gradient; the authors'
        disable_torch_grad_focal_loss.

    Returns: (..., C), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Ben-Baruch et al. 2021, https://arxiv.org/abs/2009.14119
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    target, weight = classwise_target_and_weight(pred, target, weight)
    numbers = as_dtype(dtype, gamma_neg, gamma_pos, 0 if clip is None else clip, eps)
    values = (_detached if detached else _attached)(weight, pred, target, *numbers)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _bounded_bce(y: jax.Array, sigmoid: Sigmoid, clip: Any, eps: Any) -> jax.Array:
    """-y log max(p, eps) - (1 - y) log max(q, eps)."""
    # One logarithm keeps the digits of log q on both sides. For p ≥ 0.5 it is that of 1 - p + clip.
    # For smaller p it is that of 1 - lack, and what was rounded away there is put back to first
    # order. A `log1p` for small p beside a `log` for large would take 1.15 times as long (XLA:CPU,
    # jax 0.10.2).
    is_small, lack = sigmoid.p < 0.5, clamp_min(sigmoid.p - clip, 0)
    near_1 = 1 - lack
    # Without a clip the last `where` keeps log 0 out of saturated logits.
    far = jnp.where(clip > 0, jnp.minimum(sigmoid.not_p + clip, 1), 1)
    q = jnp.where(is_small, near_1, far)
    log_q = jnp.log(q) - jnp.where(is_small, lack - (1 - near_1), 0) / q
    cost_of_negative = jnp.where(clip > 0, -log_q, sigmoid.minus_log_not_p)
    most = -jnp.log(eps)
    positive, negative = jnp.minimum(sigmoid.minus_log_p, most), jnp.minimum(cost_of_negative, most)
    return y * positive + (1 - y) * negative


def _d_bounded_bce(y: jax.Array, sigmoid: Sigmoid, clip: Any, eps: Any) -> jax.Array:
    """The derivative of `_bounded_bce` by the logit: no part has any below its floor or clip."""
    p, not_p = sigmoid.p, sigmoid.not_p
    q = jnp.minimum(not_p + clip, 1)
    ratio = jnp.where(clip > 0, divide(not_p, q), 1)
    d_positive = jnp.where(p >= eps, -not_p, 0)
    d_negative = jnp.where((p >= clip) & (q >= eps), p * ratio, 0)
    return y * d_positive + (1 - y) * d_negative


def _miss_and_exponent(
    y: jax.Array, sigmoid: Sigmoid, gamma_neg: Any, gamma_pos: Any, clip: Any
) -> tuple[jax.Array, jax.Array]:
    """m and g."""
    miss = y * sigmoid.not_p + (1 - y) * clamp_min(sigmoid.p - clip, 0)
    return miss, gamma_pos * y + gamma_neg * (1 - y)


def _value(
    pred: jax.Array, target: jax.Array, gamma_neg: Any, gamma_pos: Any, clip: Any, eps: Any
) -> jax.Array:
    y, sigmoid = dense_target(pred, target), sigmoid_parts(pred)
    focus = power(*_miss_and_exponent(y, sigmoid, gamma_neg, gamma_pos, clip))
    return focus * _bounded_bce(y, sigmoid, clip, eps)


def _derivative(
    pred: jax.Array,
    target: jax.Array,
    gamma_neg: Any,
    gamma_pos: Any,
    clip: Any,
    eps: Any,
    detached: bool,
) -> jax.Array:
    y, sigmoid = dense_target(pred, target), sigmoid_parts_in_derivative(pred)
    miss, exponent = _miss_and_exponent(y, sigmoid, gamma_neg, gamma_pos, clip)
    d_bce = _d_bounded_bce(y, sigmoid, clip, eps)
    if detached:
        return power(miss, exponent) * d_bce
    focus, d_focus = power_and_derivative(miss, exponent)
    d_miss = jnp.where(sigmoid.p >= clip, 1 - 2 * y, -y) * sigmoid.p * sigmoid.not_p
    return focus * d_bce + d_focus * d_miss * _bounded_bce(y, sigmoid, clip, eps)


_detached = closed_form(_value, functools.partial(_derivative, detached=True))
_attached = closed_form(_value, functools.partial(_derivative, detached=False))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class AsymmetricLoss(Loss, function=asymmetric_loss):
    """Asymmetric loss of sigmoids: `asymmetric_loss` with its hyperparameters as fields."""

    gamma_neg: float = 4.0
    gamma_pos: float = 1.0
    clip: float | None = 0.05
    eps: float = 1e-8
    detached: bool = True

    def rules(self, pred: jax.Array, target: jax.Array, **extra: Any) -> list[Expected]:
        labels = labels_or_scores(pred, target)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]
