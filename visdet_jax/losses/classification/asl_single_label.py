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
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.power import power, power_and_derivative
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


class _Classes(NamedTuple):
    """What the loss is made of, each (..., C)."""

    own: jax.Array  # Whether it is the row's class.
    target: jax.Array  # The smoothed one-hot t.
    minus_log_p: jax.Array
    p: jax.Array
    not_p: jax.Array  # 1 - p, with as many digits as p has.


def _classes(pred: jax.Array, labels: jax.Array, eps: Any) -> _Classes:
    own = is_at(labels, pred, -1)
    target = jnp.where(own, 1 - eps, 0) + eps / pred.shape[-1]
    m, e, total = exponentials(pred, -1)
    minus_log_p = jnp.log(total) - (pred - m)
    return _Classes(own, target, minus_log_p, e * (1 / total), -jnp.expm1(-minus_log_p))


def _value(
    pred: jax.Array, labels: jax.Array, gamma_pos: Any, gamma_neg: Any, eps: Any
) -> jax.Array:
    own, target, minus_log_p, p, not_p = _classes(pred, labels, eps)
    focus = jnp.where(own, power(not_p, gamma_pos), power(p, gamma_neg))
    return (target * focus * minus_log_p).sum(-1)


def _derivative(
    pred: jax.Array, labels: jax.Array, gamma_pos: Any, gamma_neg: Any, eps: Any
) -> jax.Array:
    own, target, minus_log_p, p, not_p = _classes(pred, labels, eps)
    focus_of_own, d_focus_of_own = power_and_derivative(not_p, gamma_pos)
    focus_of_others, d_focus_of_others = power_and_derivative(p, gamma_neg)
    focus = jnp.where(own, focus_of_own, focus_of_others)
    # The derivatives of the focus and of the summed terms by -log p; p has -p and 1 - p has p.
    d_focus = jnp.where(own, d_focus_of_own, -d_focus_of_others) * p
    d_terms = target * (focus + d_focus * minus_log_p)
    return p * d_terms.sum(-1, keepdims=True) - d_terms


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
