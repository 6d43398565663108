"""Top-k accuracy, the metric beside the losses."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, overload

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Count, Finite, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, Expected, classes
from visdet_jax.registry import LOSSES


@overload
def accuracy(
    pred: jax.Array, target: jax.Array, topk: int = 1, thresh: Number | None = None
) -> jax.Array: ...


@overload
def accuracy(
    pred: jax.Array, target: jax.Array, topk: tuple[int, ...], thresh: Number | None = None
) -> list[jax.Array]: ...


def accuracy(
    pred: jax.Array,
    target: jax.Array,
    topk: Count | tuple[int, ...] = 1,
    thresh: Finite | None = None,
) -> Any:
    """Percentage of rows whose class is among the k highest scores.

    100 / N · Σ [target is among the k highest of pred, with a score above thresh]

    Args:
      pred: Scores (N, C).
      target: Class indices (N,). An index outside [0, C) is never right.
      topk: The number k of scores that count, from 1 to C, or a tuple of such numbers. Larger
        numbers count more rows as right.
      thresh: A score at or below it does not count. None counts every score.

    Returns: (1,) in percent, or a list of them for a tuple of k; scalars 0 for N = 0.
    Raises: ValueError where shapes do not fit or k exceeds C, TypeError for another topk and for
      class indices that are floats.
    """
    ks = topk if isinstance(topk, tuple) else (topk,)
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in ks):
        raise TypeError(f"accuracy: topk must be an integer or a tuple of them, got {topk!r}")
    percentages = _accuracy_of(ks)(pred, target, thresh)
    return percentages if isinstance(topk, tuple) else percentages[0]


@functools.cache
def _accuracy_of(ks: tuple[int, ...]) -> Callable[..., list[jax.Array]]:
    """The compiled accuracy for these k, under the name that its errors show."""

    def accuracy(
        pred: jax.Array, target: jax.Array, thresh: Finite | None = None
    ) -> list[jax.Array]:
        dtype = compute_dtype(pred=pred)
        if pred.ndim != 2:
            raise ValueError(f"pred must have shape (N, C), got {pred.shape}")
        if pred.shape[0] == 0:
            return [jnp.zeros((), dtype) for _ in ks]
        rows = jnp.ones(pred.shape[:1], bool)
        return [_percentage(pred, target, rows, k, thresh) for k in ks]

    return jitted(accuracy)


@jitted
def masked_accuracy(pred: jax.Array, target: jax.Array, rows: jax.Array) -> jax.Array:
    """Top-1 accuracy (1,) in percent over the rows where `rows` is true; 0 of none."""
    return _percentage(pred, target, rows, 1, None)


def _percentage(
    pred: jax.Array, target: jax.Array, rows: jax.Array, k: int, thresh: Number | None
) -> jax.Array:
    """Top-k accuracy (1,) in percent over the rows where `rows` is true; 0 of none."""
    dtype = compute_dtype(pred=pred)
    target = as_labels("target", target, pred.shape[:1])
    if not 0 < k <= pred.shape[1]:
        raise ValueError(f"topk {k} must be from 1 to the {pred.shape[1]} classes of pred")
    if (name := jax.typeof(pred).sharding.spec[1]) is not None:
        raise ValueError(
            f"the classes of pred are sharded over {name!r}, and they are sorted here: "
            "jax.sharding.reshard them first"
        )
    scores, labels = jax.lax.top_k(pred, k)
    hits = labels.astype(target.dtype) == target[:, None]
    if thresh is not None:
        hits &= scores.astype(dtype) > as_dtype(dtype, thresh)
    right = (hits & rows[:, None]).sum().astype(dtype)
    return (right * (100 / jnp.maximum(rows.sum().astype(dtype), 1))).reshape(1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class Accuracy(FrozenModule, function=accuracy):
    """Top-k accuracy, called with (pred, target): `accuracy` with its arguments as fields."""

    topk: int | tuple[int, ...] = (1,)
    thresh: float | None = None

    def expects(self, pred: jax.Array, target: jax.Array) -> list[Expected]:
        """See `Loss.expects`."""
        labels = classes(pred.shape[1] - 1)
        return [Expected("pred", pred, FINITE), Expected("target", target, labels)]

    def __call__(self, pred: jax.Array, target: jax.Array) -> jax.Array | list[jax.Array]:
        return accuracy(pred, target, **self.settings)
