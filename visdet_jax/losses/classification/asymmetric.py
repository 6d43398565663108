"""Asymmetric loss of each class on its own."""

import functools
from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, labels_or_scores
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses._class_targets import dense, of_each_class
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def asymmetric_loss(
    pred,
    target,
    weight=None,
    *,
    gamma_neg=4.0,
    gamma_pos=1.0,
    clip=0.05,
    eps=1e-8,
    detached=True,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of each class on its own, less of it for easy negatives than for positives.

    -m^g (y log max(p, eps) + (1 - y) log max(q, eps)), p = sigmoid(pred), q = min(1 - p + clip, 1),
    m = y (1 - p) + (1 - y) max(p - clip, 0), g = gamma_pos y + gamma_neg (1 - y). Negatives with
    p ≤ clip cost 0. No gradient flows through m^g where `detached`.

    The authors sum over a batch (reduction="sum"). Their faster class has the gradient through
    m^g by default, detached=False. 0^0 is 1, and gradients are finite for every gamma ≥ 0.

    Args:
      pred: logits (..., C).
      target: 0 or 1, or floats in between, (..., C); or class indices (...), C for background,
        negative to ignore the row. An index above C makes the row's loss NaN.
      weight: (...), (..., C), or flat (N·C,) for pred (N, C).
      gamma_neg: how much less for negatives that are classified well.
      gamma_pos: the same for positives.
      clip: probability below which a negative is given up; None for 0.
      eps: floor of the probabilities whose log is taken, without gradient below it.
      detached: the focusing weight is a constant of the gradient.
    Returns: (..., C) before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Ben-Baruch et al. 2021, https://arxiv.org/abs/2009.14119
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    target, weight = of_each_class(pred, target, weight)
    numbers = as_dtype(dtype, gamma_neg, gamma_pos, 0 if clip is None else clip, eps)
    values = (_detached if detached else _attached)(weight, pred, target, *numbers)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _costs(pred, p, not_p, tail, clip, eps):
    """-log max(p, eps) and -log max(q, eps)."""
    # log q by what it lacks of 1 for small p, by itself for large: each has its digits.
    small, lack = p < 0.5, clamp_min(p - clip, 0)
    near = 1 - lack
    q = jnp.where(small, near, jnp.where(clip > 0, jnp.minimum(not_p + clip, 1), 1))
    log_q = jnp.log(q) - jnp.where(small, lack - (1 - near), 0) / q  # what near has lost
    of_negative = jnp.where(clip > 0, -log_q, jnp.maximum(pred, 0) + tail)
    most = -jnp.log(eps)
    return jnp.minimum(jnp.maximum(-pred, 0) + tail, most), jnp.minimum(of_negative, most)


def _cost_derivatives(p, not_p, clip, eps):
    """Those of both by pred: 0 below eps, and for negatives below clip."""
    q = jnp.minimum(not_p + clip, 1)
    share = jnp.where(clip > 0, divide(not_p, q), 1)
    return jnp.where(p >= eps, -not_p, 0), jnp.where((p >= clip) & (q >= eps), p * share, 0)


def _focus(y, p, not_p, gamma_neg, gamma_pos, clip):
    """m and g."""
    miss = y * not_p + (1 - y) * clamp_min(p - clip, 0)
    return miss, gamma_pos * y + gamma_neg * (1 - y)


def _value(pred, target, gamma_neg, gamma_pos, clip, eps):
    y, (_, p, not_p, tail) = dense(pred, target), sigmoid_parts(pred)
    of_positive, of_negative = _costs(pred, p, not_p, tail, clip, eps)
    focus = power(*_focus(y, p, not_p, gamma_neg, gamma_pos, clip))
    return focus * (y * of_positive + (1 - y) * of_negative)


def _derivative(pred, target, gamma_neg, gamma_pos, clip, eps, detached):
    y, (_, p, not_p, tail) = dense(pred, target), sigmoid_parts_in_derivative(pred)
    by_positive, by_negative = _cost_derivatives(p, not_p, clip, eps)
    miss, exponent = _focus(y, p, not_p, gamma_neg, gamma_pos, clip)
    slope = y * by_positive + (1 - y) * by_negative
    if detached:
        return power(miss, exponent) * slope
    focal, by_miss = power_and_derivative(miss, exponent)
    of_positive, of_negative = _costs(pred, p, not_p, tail, clip, eps)
    of_miss = jnp.where(p >= clip, 1 - 2 * y, -y) * p * not_p
    cost = y * of_positive + (1 - y) * of_negative
    return focal * slope + by_miss * of_miss * cost


_detached = closed_form(_value, functools.partial(_derivative, detached=True))
_attached = closed_form(_value, functools.partial(_derivative, detached=False))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class AsymmetricLoss(Loss):
    """Flax shim of `asymmetric_loss`; `detached` is the authors' disable_torch_grad_focal_loss."""

    gamma_neg: float = 4.0
    gamma_pos: float = 1.0
    clip: float | None = 0.05
    eps: float = 1e-8
    detached: bool = True

    def rules(self, pred, target, **extra):
        labels = labels_or_scores(pred, target)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(self, pred, target, weight, **reduce):
        return asymmetric_loss(
            pred,
            target,
            weight,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            clip=self.clip,
            eps=self.eps,
            detached=self.detached,
            **reduce,
        )
