"""Distillation: one classifier's outputs as the targets of another."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import AtLeastOne, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected
from visdet_jax.core.softmax import exponentials, log_sum_exp, softmax
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def knowledge_distillation_kl_div_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    T: AtLeastOne = 10.0,
    detach_target: bool = True,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Kullback-Leibler divergence of a student's softened softmax from its teacher's.

    T² / C Σ_c t_c (log t_c - log p_c), with p = softmax(pred / T) and t = softmax(target / T).
    Classes are along axis 1.

    Args:
      pred: Logits of the student, (N, C, ...).
      target: Logits of the teacher, of pred's shape.
      weight: (N, ...).
      T: Temperature, at least 1. Larger values soften both distributions, so that classes of
        small probability count more.
      detach_target: No gradient flows into target.

    Returns: (N, ...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or have one axis only.
    Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531
    """
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred, target, T = pred.astype(dtype), target.astype(dtype), as_dtype(dtype, T)
    if detach_target:
        target = jax.lax.stop_gradient(target)
    if weight is not None:
        weight = spread_weight(weight, pred.shape[:1] + pred.shape[2:]).astype(dtype)
    values: jax.Array = _divergence(weight, pred, target, T)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _value(pred: jax.Array, target: jax.Array, T: jax.Array, alone: bool = False) -> jax.Array:
    factor = T * T / max(pred.shape[1], 1)
    pred, target = pred / T, target / T
    if alone:
        # Keep this form. XLA:CPU stores nothing for it, and two arrays of pred's size for the
        # other one (jax 0.10.2).
        log_p, log_t = (jax.nn.log_softmax(x, axis=1) for x in (pred, target))
        return factor * (jnp.exp(log_t) * (log_t - log_p)).sum(1)
    # Keep this one for the derivative, with which it shares both exponentials: a GPU moves 1.5
    # times as much with the other one (H200, jax 0.12.0.1).
    m, log_sum = log_sum_exp(pred, 1)
    n, e, total = exponentials(target, 1)
    mean = (e * ((target - n) - (pred - m))).sum(1, keepdims=True) / total
    return factor * (mean + (log_sum - jnp.log(total))).squeeze(1)


def _derivative(pred: jax.Array, target: jax.Array, T: jax.Array) -> jax.Array:
    return (T / max(pred.shape[1], 1)) * (softmax(pred / T, 1) - softmax(target / T, 1))


_divergence = closed_form(_value, _derivative, axis=1, has_alone=True)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class KnowledgeDistillationKLDivLoss(Loss, function=knowledge_distillation_kl_div_loss):
    """Distillation loss: `knowledge_distillation_kl_div_loss`, without gradient into target."""

    T: float = 10.0

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, LOGITS), Expected("target", target, LOGITS)]
