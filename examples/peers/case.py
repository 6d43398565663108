"""A case of the benchmark, and the inputs and formulas that several cases share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

AVG_FACTOR = 1000.0

Inputs = tuple[np.ndarray, ...]
JaxFunction = Callable[..., jax.Array]


@dataclass(frozen=True)
class Case:
    """A loss at training size.

    Args:
      name: Its name in the tables.
      inputs: `(rng, scale, wide=False)` returns the inputs. `scale` multiplies the number of rows,
        and `wide` draws predictions from -100 to 100. Where `rows_of` is set, `classes` may be
        given too.
      ours: The loss of this package.
      plain: The formula written in jnp.
      torch: The same in torch, called with the module torch and tensors.
      optax: The same in optax, if it has the loss.
      rows_of: The number of rows at scale 1; 0 if the cost by number of rows is not measured.
    """

    name: str
    inputs: Callable[..., Inputs]
    ours: JaxFunction
    plain: JaxFunction
    torch: Callable[..., Any]
    optax: JaxFunction | None = None
    rows_of: int = 0


def row_count(count: int, scale: float) -> int:
    """A scaled number of rows, at least 8."""
    return max(int(count * scale), 8)


def random_logits(
    rng: np.random.Generator, shape: tuple[int, ...], wide: bool = False
) -> np.ndarray:
    """Logits of an untrained network, or from -100 to 100."""
    if wide:
        return rng.uniform(-100, 100, shape).astype(np.float32)
    return (rng.standard_normal(shape, np.float32) * 2 - 2).astype(np.float32)


def random_labels(
    rng: np.random.Generator, count: int, classes: int, positive_fraction: float = 0.01
) -> np.ndarray:
    """Class indices (count,), most of which are background."""
    positive = rng.uniform(size=count) < positive_fraction
    return np.where(positive, rng.integers(classes, size=count), classes).astype(np.int32)


def random_weight(rng: np.random.Generator, count: int) -> np.ndarray:
    """Weights (count,) of 0 and, for most rows, 1."""
    return (rng.uniform(size=count) < 0.98).astype(np.float32)


def bce(x: jax.Array, t: jax.Array) -> jax.Array:
    """Binary cross entropy of logits x and targets t."""
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def weighted_mean(values: Any, weight: Any) -> Any:
    """Values (N, C) with weights (N,), summed and divided by AVG_FACTOR."""
    return (values * weight[:, None]).sum() / AVG_FACTOR


def ours(function: JaxFunction, **options: Any) -> JaxFunction:
    """A loss of this package, with its avg_factor and options."""

    def call(*inputs: jax.Array) -> jax.Array:
        return function(*inputs, avg_factor=AVG_FACTOR, **options)

    return call


def case_of_pairs(
    name: str,
    function: JaxFunction,
    formula: Callable[..., Any],
    inputs: Callable[..., Inputs],
    optax: JaxFunction | None = None,
) -> Case:
    """The case of a loss of (pred, target, weight).

    `formula(xp, pred, target)` returns the values, where xp is torch or jnp.
    """

    def plain(pred: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
        return (formula(jnp, pred, target) * weight).sum() / AVG_FACTOR

    def torch_form(torch: Any, pred: Any, target: Any, weight: Any) -> Any:
        return (formula(torch, pred, target) * weight).sum() / AVG_FACTOR

    return Case(name, inputs, ours(function), plain, torch_form, optax, rows_of=200_000)
