"""Costs of each prediction with each ground truth that are sums over entries: pixels or tokens."""

import math

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import compute_dtype


def flatten_entries(pred: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Predictions (Q, ...) and targets (G, ...) as (Q, n) and (G, n), in one type.

    Only the numbers of entries have to be equal: mmdet's predicted masks may have one axis more.
    """
    dtype = compute_dtype(pred=pred, target=target)
    shapes = f"got {pred.shape} and {target.shape}"
    if pred.ndim < 2 or target.ndim < 2:
        raise ValueError(f"pred and target must have shapes (Q, ...) and (G, ...), {shapes}")
    pred, target = (
        x.astype(dtype).reshape(x.shape[0], math.prod(x.shape[1:])) for x in (pred, target)
    )
    if pred.shape[1] != target.shape[1]:
        raise ValueError(f"pred and target must have the same size, {shapes}")
    return pred, target


def pairwise_sum(positive: jax.Array, negative: jax.Array, target: jax.Array) -> jax.Array:
    """Σ positive t + negative (1 - t) over the entries of (Q, n), with each t of (G, n): (Q, G)."""
    return pairwise_product(positive - negative, target) + negative.sum(1)[:, None]


def pairwise_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a bᵀ, (Q, n) with (G, n).

    Keep the precision. Without it accelerators round the factors to bfloat16 or TF32.
    """
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
