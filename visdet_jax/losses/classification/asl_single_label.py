"""Asymmetric loss of one class a row."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent, FractionBelowOne, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import entry_at, is_at
from visdet_jax.core.power import WholeExponent, power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import exponentials
from visdet_jax.losses._class_targets import weight_of_labels
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def asl_single_label(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    gamma_pos: Exponent = 0.0,
    gamma_neg: Exponent = 4.0,
    eps: FractionBelowOne = 0.1,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Asymmetric loss of one class a row: smoothed cross entropy of a softmax, focused.

    -Σ_c t_c m_c log p_c, p = softmax(pred), with t_y = 1 - eps + eps / C and
    m_y = (1 - p_y)^gamma_pos for the class y, t_c = eps / C and m_c = p_c^gamma_neg for the others.

    The gradient flows through m too, as in the authors' code.

    Args:
      pred: Logits (..., C).
      target: Class indices (...). A negative one costs 0, one of C or more makes the row's loss
        NaN.
      weight: (...).
      gamma_pos: Focusing exponent of the row's class, at least 0. Larger values down-weight it
        more where it is classified well.
      gamma_neg: The same for the other classes.
      eps: Label smoothing, in [0, 1). Larger values give the other classes more of the target; 0
        smooths nothing.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Ben-Baruch et al. 2021, https://arxiv.org/abs/2009.14119
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    rows, channels = pred.shape[:-1], pred.shape[-1]
    target = as_labels("target", target, rows)
    weight = weight_of_labels(target, target < 0, weight, rows, channels, dtype)
    numbers = as_dtype(dtype, gamma_pos, gamma_neg, eps)
    values = _single_label(weight, pred, target[..., None], *numbers)
    return weight_reduce_loss(values, None, reduction, avg_factor)


class _Parts(NamedTuple):
    """What value and derivative are made of. All but `e` and `shift` are numbers of a row (..., 1).

    p^g = e^g / total^g, so that the terms of the other classes are sums of functions of x - m
    alone. Keep this form: the sums need nothing but the largest logit, so a GPU reads pred once for
    all of them, where sums of p and log p need the total of the exponentials first.
    """

    own: jax.Array  # Whether an entry is the row's class.
    shift: jax.Array  # m - x, at least 0.
    e: jax.Array  # exp(x - m)
    scale: jax.Array  # 1 / Σ e
    log_total: jax.Array  # log Σ e
    others: jax.Array  # Σ p^gamma_neg over the other classes
    cost_of_others: jax.Array  # Σ p^gamma_neg (-log p) over them
    cost: jax.Array  # -log p of the row's class


def _parts(pred: jax.Array, labels: jax.Array, gamma_neg: Any) -> _Parts:
    own = is_at(labels, pred, -1)
    m, e, total = exponentials(pred, -1)
    scale, log_total, shift = 1 / total, jnp.log(total), m - pred
    focus = jnp.where(own, 0, power(e, gamma_neg))
    of_row = power(scale, gamma_neg)
    others = focus.sum(-1, keepdims=True)
    cost_of_others = log_total * others + (focus * shift).sum(-1, keepdims=True)
    cost = log_total - entry_at(pred, labels, -1, minus=m)
    return _Parts(own, shift, e, scale, log_total, of_row * others, of_row * cost_of_others, cost)


def _targets(pred: jax.Array, eps: Any) -> tuple[Any, Any]:
    """The smoothed one-hot t: of the row's class, and of any other."""
    smoothed = eps / pred.shape[-1]
    return 1 - eps + smoothed, smoothed


def _value(
    pred: jax.Array, labels: jax.Array, gamma_pos: Any, gamma_neg: Any, eps: Any
) -> jax.Array:
    parts = _parts(pred, labels, gamma_neg)
    target_of_own, target = _targets(pred, eps)
    of_own = power(-jnp.expm1(-parts.cost), gamma_pos) * parts.cost
    return (target_of_own * of_own + target * parts.cost_of_others).squeeze(-1)


def _derivative(
    pred: jax.Array, labels: jax.Array, gamma_pos: Any, gamma_neg: Any, eps: Any
) -> jax.Array:
    parts = _parts(pred, labels, gamma_neg)
    target_of_own, target = _targets(pred, eps)
    # The derivatives of the terms by -log p; p has -p and 1 - p has p, so that of p^g is -g p^g.
    g = gamma_neg.value if isinstance(gamma_neg, WholeExponent) else gamma_neg
    focus, d_focus = power_and_derivative(-jnp.expm1(-parts.cost), gamma_pos)
    d_own = target_of_own * (focus + d_focus * jnp.exp(-parts.cost) * parts.cost)
    d_others = target * (parts.others - g * parts.cost_of_others)
    p = parts.e * parts.scale
    d_other = target * power(p, gamma_neg) * (1 - g * (parts.log_total + parts.shift))
    return p * (d_own + d_others) - jnp.where(parts.own, d_own, d_other)


_single_label = closed_form(_value, _derivative, axis=-1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class ASLSingleLabel(Loss, function=asl_single_label):
    """Asymmetric loss of one class a row: `asl_single_label` with its numbers as fields."""

    gamma_pos: float = 0.0
    gamma_neg: float = 4.0
    eps: float = 0.1

    def rules(self, pred: jax.Array, target: jax.Array, **extra: Any) -> list[Expected]:
        labels = classes(pred.shape[-1] - 1)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]
