"""Cross entropy of rows that have any number of right classes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.rules import LOGITS, Expected, Rule
from visdet_jax.core.sigmoid import softplus
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


@weighted_loss
def multi_pos_cross_entropy(pred, target):
    """Each right class of a row against each wrong one.

    log(1 + Σ_n Σ_p exp(pred_n - pred_p)) over the wrong n and the right p, in O(C) memory as
    softplus(logsumexp_n pred_n + logsumexp_p(-pred_p)). A row without right or without wrong
    classes costs 0.

    Args:
      pred: logits (N, C).
      target: pred's shape, 1 (or more) for right, 0 for wrong. What is neither counts as one of
        each, of logit 0, as in the reference.
    Returns: (N,), before the weight and the reduction.
    Raises: ValueError where the shapes differ or have another number of axes.
    Pang et al. 2021 (Quasi-Dense), https://arxiv.org/abs/2006.06664
    """
    check_same_shape(pred, target)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, C), got {pred.shape}")
    right, wrong = target >= 1, target == 0
    logit = jnp.where(right | wrong, pred, 0)
    both = (~wrong).any(1, keepdims=True) & (~right).any(1, keepdims=True)
    # An empty logsumexp has no gradient: rows that lack one side are summed whole, and dropped.
    over_wrong = jnp.where(right & both, -jnp.inf, logit)
    over_right = jnp.where(wrong & both, -jnp.inf, -logit)
    total = _logsumexp(over_wrong) + _logsumexp(over_right)
    return jnp.where(both[:, 0], softplus(total), 0)


def _logsumexp(x):
    return jax.nn.logsumexp(x, axis=1) if x.shape[1] else x.sum(1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MultiPosCrossEntropyLoss(Loss):
    """Flax shim of `multi_pos_cross_entropy`."""

    def rules(self, pred, target, **extra):
        right = Rule(lambda x: (x != 0) & ~(x >= 1), "must be 0 or 1")
        return [Expected("pred", pred, LOGITS), Expected("target", target, right)]

    def compute(self, pred, target, weight, **reduce):
        return multi_pos_cross_entropy(pred, target, weight, **reduce)
