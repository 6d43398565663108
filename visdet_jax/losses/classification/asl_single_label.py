"""Asymmetric loss of one class a row."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import exponentials
from visdet_jax.losses._class_targets import class_mask, weight_of_rows
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def asl_single_label(
    pred,
    target,
    weight=None,
    *,
    gamma_pos: Exponent = 0.0,
    gamma_neg: Exponent = 4.0,
    eps=0.1,
    reduction="mean",
    avg_factor=None,
):
    """Asymmetric loss of one class a row: smoothed cross entropy of a softmax, focused.

    -Σ_c t_c m_c log p_c, p = softmax(pred), with t_y = 1 - eps + eps / C and
    m_y = (1 - p_y)^gamma_pos for the class y, t_c = eps / C and m_c = p_c^gamma_neg for the others.

    The gradient flows through m too, as the authors'.

    Args:
      pred: logits (..., C).
      target: class indices (...). A negative one costs 0, one of C or more makes the row's loss
        NaN.
      gamma_pos: how much less for a class that is classified well.
      gamma_neg: the same for the other classes.
      eps: label smoothing, in [0, 1).
    Returns: (...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Ben-Baruch et al. 2021, https://arxiv.org/abs/2009.14119
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    rows, channels = pred.shape[:-1], pred.shape[-1]
    target = as_labels("target", target, rows)
    weight = weight_of_rows(target, target < 0, weight, rows, channels, dtype)
    numbers = as_dtype(dtype, gamma_pos, gamma_neg, eps)
    values = _single_label(weight, pred, target[..., None], *numbers)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _of_classes(pred, target, eps):
    """Which class is the row's, its share t, and -log p, p and 1 - p of each."""
    own = class_mask(target[..., 0], pred.shape[-1])
    share = jnp.where(own, 1 - eps, 0) + eps / pred.shape[-1]
    m, e, total = exponentials(pred, -1)
    cost = jnp.log(total) - (pred - m)
    return own, share, cost, e * (1 / total), -jnp.expm1(-cost)


def _single_label_value(pred, target, gamma_pos, gamma_neg, eps):
    own, share, cost, p, not_p = _of_classes(pred, target, eps)
    return (share * jnp.where(own, power(not_p, gamma_pos), power(p, gamma_neg)) * cost).sum(-1)


def _single_label_derivative(pred, target, gamma_pos, gamma_neg, eps):
    own, share, cost, p, not_p = _of_classes(pred, target, eps)
    of_own, by_not_p = power_and_derivative(not_p, gamma_pos)
    of_others, by_p = power_and_derivative(p, gamma_neg)
    by_cost = share * (
        jnp.where(own, of_own, of_others) + jnp.where(own, by_not_p, -by_p) * p * cost
    )
    return p * by_cost.sum(-1, keepdims=True) - by_cost


_single_label = closed_form(_single_label_value, _single_label_derivative, axis=-1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class ASLSingleLabel(Loss):
    """Flax shim of `asl_single_label`."""

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    eps: float = 0.1

    def rules(self, pred, target, **extra):
        labels = classes(pred.shape[-1] - 1)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(self, pred, target, weight, **reduce):
        return asl_single_label(
            pred,
            target,
            weight,
            gamma_pos=self.gamma_pos,
            gamma_neg=self.gamma_neg,
            eps=self.eps,
            **reduce,
        )
