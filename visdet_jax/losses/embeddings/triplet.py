"""Triplet loss of the hardest examples in a batch."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Finite, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import (
    Reduction,
    spread_weight,
    weight_reduce_loss,
    zero_where_unweighted,
)
from visdet_jax.registry import LOSSES


@jitted
def triplet_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    margin: Finite = 0.3,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Each row should be nearer to the furthest of its class than to the nearest of another.

    max(furthest - nearest + margin, 0), of Euclidean distances of at least 1e-6.

    A row alone in its class is its own furthest, 1e-6 away. A row that has no other class in the
    batch costs 0 (mmdet raises).

    Args:
      pred: Embeddings (N, D).
      target: Classes (N,), any integers.
      weight: (N,). A row of weight 0 takes no part: it is nobody's furthest or nearest.
      margin: How much nearer, in the unit of the embeddings. Larger values push classes further
        apart; a negative margin tolerates rows that are nearer to another class.

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for classes that are floats.
    Source: Hermans et al. 2017, https://arxiv.org/abs/1703.07737
    """
    dtype = compute_dtype(pred=pred)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, D), got {pred.shape}")
    # Checked, but not widened: classes are only compared, and uint32 ones beyond int32's range
    # would all become the same class.
    as_labels("target", target, pred.shape[:1])
    target = jnp.asarray(target)
    pred = pred.astype(dtype)
    takes_part = jnp.ones_like(target, bool)
    if weight is not None:
        weight = spread_weight(weight, pred.shape[:1])
        pred, takes_part = zero_where_unweighted(pred, weight), weight != 0
    everyone, takes_part = replicated(pred), replicated(takes_part)[None, :]
    same = target[:, None] == replicated(target)[None, :]
    other = ~same & takes_part
    same &= takes_part
    square = (pred * pred).sum(1)
    # Keep the highest precision. By default a TPU multiplies in bfloat16 and a GPU in TF32, and
    # the difference of squares below would have one digit left, or none.
    product = jnp.matmul(pred, everyone.T, precision=jax.lax.Precision.HIGHEST)
    square = square[:, None] + replicated(square)[None, :] - 2 * product
    # A row's distance to itself is 0, without the rounding of a difference of squares.
    row = jnp.arange(target.shape[0])
    itself = row[:, None] == row[None, :]
    distance = jnp.sqrt(clamp_min(jnp.where(itself, 0, square), 1e-12))
    furthest = jnp.max(jnp.where(same, distance, 0), axis=1, initial=0)
    nearest = jnp.min(jnp.where(other, distance, jnp.inf), axis=1, initial=jnp.inf)
    has_other = other.any(1)
    excess = furthest - jnp.where(has_other, nearest, 0) + as_dtype(dtype, margin)
    values = jnp.where(has_other, clamp_min(excess, 0), 0)
    return weight_reduce_loss(values, weight, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class TripletLoss(Loss, function=triplet_loss):
    """Triplet loss: `triplet_loss` with its margin as a field.

    Args:
      hard_mining: Must be True.
    """

    margin: float = 0.3
    hard_mining: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hard_mining:
            raise self.value_error("hard_mining must be True: there is no other form")

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, FINITE)]
