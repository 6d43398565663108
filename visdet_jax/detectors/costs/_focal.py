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
    positive = -alpha * power(sigmoid.not_p, gamma) * jnp.log(sigmoid.p + eps)
    return positive, -(1 - alpha) * power(sigmoid.p, gamma) * jnp.log(sigmoid.not_p + eps)
