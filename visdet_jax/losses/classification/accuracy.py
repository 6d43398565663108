"""Top-k accuracy, the metric beside the losses."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, Expected, classes
from visdet_jax.registry import LOSSES


def accuracy(
    pred: jax.Array,
    target: jax.Array,
    topk: int | tuple[int, ...] = 1,
    thresh: float | None = None,
) -> jax.Array | list[jax.Array]:
    """Percentage of rows whose class is among the k highest scores.

    100 / N · Σ [target among the k highest of pred, with a score above thresh]

    Args:
      pred: scores (N, C).
      target: class indices (N,); one outside [0, C) is never right.
      topk: k, or a tuple of them.
      thresh: a score at or below it does not count.
    Returns: (1,) in percent, or a list of them for a tuple of k; a scalar 0 for N = 0.
    Raises: ValueError where shapes do not fit or k exceeds C, TypeError for another topk.
    """
    ks = topk if isinstance(topk, tuple) else (topk,)
    if not all(isinstance(k, int) and not isinstance(k, bool) for k in ks):
        raise TypeError(f"accuracy: topk must be an integer or a tuple of them, got {topk!r}")
    result = _accuracy_of(ks)(pred, target, thresh)
    return result if isinstance(topk, tuple) else result[0]


@functools.cache
def _accuracy_of(ks):
    """The compiled accuracy for these k, under the name that its errors show."""

    def accuracy(pred, target, thresh=None):
        if pred.ndim != 2:
            raise ValueError(f"pred must have shape (N, C), got {pred.shape}")
        rows = jnp.ones(pred.shape[:1], bool)
        if pred.shape[0] == 0:
            return [jnp.zeros((), compute_dtype(pred=pred)) for _ in ks]
        return [_percent(pred, target, rows, k, thresh) for k in ks]

    return jitted(accuracy)


@jitted
def masked_accuracy(pred, target, rows):
    """Top-1 accuracy (1,) in percent over the rows where `rows` is true; 0 of none."""
    return _percent(pred, target, rows, 1, None)


def _percent(pred, target, rows, k, thresh):
    dtype = compute_dtype(pred=pred)
    target = as_labels("target", target, pred.shape[:1])
    if not 0 < k <= pred.shape[1]:
        raise ValueError(f"topk {k} must be from 1 to the {pred.shape[1]} classes of pred")
    scores, labels = jax.lax.top_k(pred, k)
    hits = labels == target[:, None]
    if thresh is not None:
        hits &= scores.astype(dtype) > as_dtype(dtype, thresh)
    right = (hits & rows[:, None]).sum().astype(dtype)
    return (right * (100 / jnp.maximum(rows.sum().astype(dtype), 1))).reshape(1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class Accuracy(FrozenModule):
    """Flax shim of `accuracy`: a metric, called with (pred, target)."""

    topk: int | tuple[int, ...] = (1,)
    thresh: float | None = None

    def expects(self, pred, target):
        """See `Loss.expects`."""
        labels = classes(pred.shape[1] - 1)
        return [Expected("pred", pred, FINITE), Expected("target", target, labels)]

    def __call__(self, pred, target):
        return accuracy(pred, target, self.topk, self.thresh)
