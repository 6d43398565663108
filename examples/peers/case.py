"""A case of the benchmark, and what the inputs and the formulas of several share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AVG_FACTOR = 1000.0


@dataclass(frozen=True)
class Case:
    """A loss at training size."""

    name: str
    inputs: Callable[..., tuple]  # (rng, scale of the number of rows, ...)
    ours: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    torch: Callable[..., Any]  # (torch, *tensors)
    optax: Callable[..., jax.Array] | None = None
    rows_of: int = 0  # rows at scale 1, where the cost by the number of rows is measured


def row_count(n, scale):
    return max(int(n * scale), 8)


def random_logits(rng, shape, wide=False):
    if wide:
        return rng.uniform(-100, 100, shape).astype(np.float32)
    return (rng.standard_normal(shape, np.float32) * 2 - 2).astype(np.float32)


def random_labels(rng, n, classes, share=0.01):
    positive = rng.uniform(size=n) < share
    return np.where(positive, rng.integers(classes, size=n), classes).astype(np.int32)


def random_weight(rng, n):
    return (rng.uniform(size=n) < 0.98).astype(np.float32)


def bce(x, t):
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def weighed(values, weight):
    return (values * weight[:, None]).sum() / AVG_FACTOR


def ours(function, **options):
    """Pred, targets and, last, a weight, with avg_factor."""

    def call(pred, *rest):
        return function(pred, *rest, avg_factor=AVG_FACTOR, **options)

    return call


def of_pairs(name, function, formula, inputs, **peers):
    """A loss of pairs (pred, target, weight), whose formula torch and jnp write alike."""

    def plain(pred, target, weight):
        return (formula(jnp, pred, target) * weight).sum() / AVG_FACTOR

    def torch_form(torch, pred, target, weight):
        return (formula(torch, pred, target) * weight).sum() / AVG_FACTOR

    return Case(name, inputs, ours(function), plain, torch_form, rows_of=200_000, **peers)
