"""Cross entropy of rows that have any number of right classes."""

from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.rules import LOGITS, Expected, Rule
from visdet_jax.core.sigmoid import softplus
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, weighted_loss
from visdet_jax.registry import LOSSES


@weighted_loss
def multi_pos_cross_entropy(
    pred: jax.Array, target: jax.Array, **reduce: Unpack[Reduce]
) -> jax.Array:
    """Compares each right class of a row with each wrong one.

    log(1 + Σ_n Σ_p exp(pred_n - pred_p)) over the wrong n and the right p, in O(C) memory as
    softplus(logsumexp_n pred_n + logsumexp_p(-pred_p)). A row without right or without wrong
    classes costs 0.

    Args:
      pred: Logits (N, C).
      target: pred's shape, 1 (or more) for right classes, 0 for wrong ones. A class that is
        neither counts as one of each, of logit 0, as in mmdet.
      weight: (N,).

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or have another number of axes.
    Source: Pang et al. 2021 (Quasi-Dense), https://arxiv.org/abs/2006.06664
    """
    check_same_shape(pred, target)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, C), got {pred.shape}")
    right, wrong = target >= 1, target == 0
    logits = jnp.where(right | wrong, pred, 0)
    has_both = (~wrong).any(1, keepdims=True) & (~right).any(1, keepdims=True)
    # The second derivative of the logsumexp of nothing is NaN. So rows that lack one side are
    # summed whole, and their sums are thrown away.
    of_wrong = jax.nn.logsumexp(jnp.where(right & has_both, -jnp.inf, logits), axis=1)
    of_right = jax.nn.logsumexp(jnp.where(wrong & has_both, -jnp.inf, -logits), axis=1)
    return jnp.where(has_both[:, 0], softplus(of_wrong + of_right), 0)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MultiPosCrossEntropyLoss(Loss, function=multi_pos_cross_entropy):
    """Cross entropy of any number of right classes: `multi_pos_cross_entropy`."""

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        is_right = Rule(lambda x: (x != 0) & ~(x >= 1), "must be 0 or 1")
        return [Expected("pred", pred, LOGITS), Expected("target", target, is_right)]
