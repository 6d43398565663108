"""Triplet loss of the hardest examples in a batch."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight, weight_reduce_loss, zero_where_unweighted
from visdet_jax.registry import LOSSES


@jitted
def triplet_loss(pred, target, weight=None, *, margin=0.3, reduction="mean", avg_factor=None):
    """Each row should be nearer to the furthest of its class than to the nearest of another.

    max(furthest - nearest + margin, 0), Euclidean distances of at least 1e-6.

    A row alone in its class is its own furthest, 1e-6 away. A row that has no other class in the
    batch costs 0 (the reference raises).

    Args:
      pred: embeddings (N, D).
      target: classes (N,), any integers.
      weight: (N,). A row of weight 0 takes no part: it is nobody's furthest or nearest.
      margin: how much nearer.
    Returns: (N,), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for classes that are floats.
    Hermans et al. 2017, https://arxiv.org/abs/1703.07737
    """
    dtype = compute_dtype(pred=pred)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, D), got {pred.shape}")
    target = as_labels("target", target, pred.shape[:1])
    pred = pred.astype(dtype)
    part = jnp.ones_like(target, bool)
    if weight is not None:
        weight = spread_weight(weight, pred.shape[:1])
        pred, part = zero_where_unweighted(pred, weight), weight != 0
    everyone = replicated(pred)
    same = target[:, None] == replicated(target)[None, :]
    other = ~same & replicated(part)[None, :]
    same &= replicated(part)[None, :]
    square = (pred * pred).sum(1)
    product = jnp.matmul(pred, everyone.T, precision=jax.lax.Precision.HIGHEST)
    square = square[:, None] + replicated(square)[None, :] - 2 * product
    # A row's distance to itself is 0, without the rounding of a difference of squares.
    row = jnp.arange(target.shape[0])
    itself = row[:, None] == row[None, :]
    distance = jnp.sqrt(clamp_min(jnp.where(itself, 0, square), 1e-12))
    furthest = jnp.max(jnp.where(same, distance, 0), axis=1, initial=0)
    lonely = ~other.any(1)
    nearest = jnp.min(jnp.where(other, distance, jnp.inf), axis=1, initial=jnp.inf)
    hinge = clamp_min(furthest - jnp.where(lonely, 0, nearest) + as_dtype(dtype, margin), 0)
    return weight_reduce_loss(jnp.where(lonely, 0, hinge), weight, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class TripletLoss(Loss):
    """Flax shim of `triplet_loss`."""

    margin: float = 0.3
    hard_mining: bool = True

    def __post_init__(self):
        super().__post_init__()
        if not self.hard_mining:
            raise self.value_error("hard_mining must be True: there is no other form")

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, FINITE)]

    def compute(self, pred, target, weight, **reduce):
        return triplet_loss(pred, target, weight, margin=self.margin, **reduce)
