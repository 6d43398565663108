"""What the match costs by focal loss share."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.power import power
from visdet_jax.core.sigmoid import sigmoid_parts


def focal_costs(pred: jax.Array, alpha: Any, gamma: Any, eps: Any) -> tuple[jax.Array, jax.Array]:
    """What each logit costs as a positive, and what it costs as a negative.

    -alpha (1 - p)^gamma log(p + eps), and -(1 - alpha) p^gamma log(1 - p + eps), p = sigmoid(pred).
    """
    dtype = compute_dtype(pred=pred)
    alpha, gamma, eps = as_dtype(dtype, alpha, gamma, eps)
    sigmoid = sigmoid_parts(pred.astype(dtype))
    positive = alpha * power(sigmoid.not_p, gamma) * _cost(sigmoid.p, sigmoid.minus_log_p, eps)
    negative = _cost(sigmoid.not_p, sigmoid.minus_log_not_p, eps)
    return positive, (1 - alpha) * power(sigmoid.p, gamma) * negative


def _cost(p: jax.Array, minus_log_p: jax.Array, eps: jax.Array) -> jax.Array:
    """-log(p + eps). For p = 0 and eps = 0 it is finite too: -log p as the logit has it."""
    total = p + eps
    return jnp.where(total > 0, -jnp.log(jnp.where(total > 0, total, 1)), minus_log_p)
