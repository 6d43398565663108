"""Squared error of similarities in [0, 1], with margins and a bound on the negatives."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.hyperparameters import Finite, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, UNIT, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import (
    Reduction,
    check_reduction,
    spread_weight,
    weight_reduce_loss,
    zero_where_unweighted,
)
from visdet_jax.registry import LOSSES

P = ParamSpec("P")


def _raising_without_key(loss: Callable[P, jax.Array]) -> Callable[P, jax.Array]:
    """Decorator that raises where negatives are to be drawn and no key is given.

    It stands outside the jit: inside it `neg_pos_ub` is not known.
    """

    @functools.wraps(loss)
    def call(*args: P.args, **options: P.kwargs) -> jax.Array:
        bound: Any = options.get("neg_pos_ub", -1)
        drawn = isinstance(bound, jax.Array) or bound > 0
        if drawn and not options.get("hard_mining", False) and options.get("key") is None:
            raise ValueError(
                f"{loss.__name__}: neg_pos_ub={bound} draws negatives: give a key, such as "
                "key=jax.random.key(step), or hard_mining=True for the costliest"
            )
        return loss(*args, **options)

    return call


@_raising_without_key
@jitted
def margin_l2_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    neg_pos_ub: int | jax.Array = -1,
    pos_margin: Finite = -1.0,
    neg_margin: Finite = -1.0,
    hard_mining: bool = False,
    key: jax.Array | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Squared error of what is left of similarities after a margin, for some of the negatives.

    (clamp(pred - margin, 0, 1) - target)², margin being `pos_margin` where target is 1,
    `neg_margin` where it is 0, and 0 elsewhere.

    With `neg_pos_ub` = k > 0 at most k negatives (targets 0 of positive weight) count for each
    positive: the costliest with `hard_mining`, the earlier of equals, or a random choice by `key`.
    The weight of the others becomes 0.

    Args:
      pred: Similarities, any shape.
      target: pred's shape, 1 for positives, 0 for negatives.
      weight: Of pred's shape or of its leading part.
      neg_pos_ub: Largest number k of negatives that count for each positive, an integer. 0 and less
        counts all negatives.
      pos_margin: Subtracted from the similarity of positives: at their target 1 they still cost
        pos_margin². 0 and less means none.
      neg_margin: Subtracted from the similarity of negatives: those that are less similar cost
        nothing. 0 and less means none.
      hard_mining: Keeps the costliest negatives instead of random ones.
      key: A JAX random key; needed where negatives are drawn.
      avg_factor: Without effect, as in mmdet: the mean is over what has a weight above 0 (0 of
        nothing).

    Returns: values of pred's shape, reduced.
    Raises: ValueError where shapes do not fit, and where negatives are drawn without a key.
    Source: mmdet, for Quasi-Dense tracking: Pang et al. 2021, https://arxiv.org/abs/2006.06664
    """
    check_reduction(reduction, avg_factor)
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if weight is None:
        weight = jnp.ones_like(pred)
    else:
        weight = spread_weight(weight, pred.shape).astype(dtype)
        pred = zero_where_unweighted(pred, weight)
        target = zero_where_unweighted(target, weight)
        weight = jnp.broadcast_to(weight, pred.shape)
    positive = (target == 1) & (weight > 0)
    negative = (target == 0) & (weight > 0)
    pos_margin, neg_margin = as_dtype(dtype, pos_margin, neg_margin)
    for chosen, margin in ((positive, pos_margin), (negative, neg_margin)):
        pred = pred - jnp.where(chosen & (margin > 0), margin, 0)
    values = (clamp(pred, 0, 1) - target) ** 2
    if hard_mining or key is not None:
        scores = values
        if key is not None and not hard_mining:
            scores = jax.random.uniform(key, values.shape, jnp.float32)
        rank = _rank(jax.lax.stop_gradient(scores), negative)
        # No more than there are, so that the product stays in int32's range.
        positives = positive.sum()
        bound = jnp.minimum(neg_pos_ub, values.size // jnp.maximum(positives, 1) + 1)
        is_dropped = negative & (rank >= positives * bound) & (neg_pos_ub > 0)
        weight = jnp.where(is_dropped, 0, weight)
    count = (weight > 0).sum() if reduction == "mean" else None
    return weight_reduce_loss(values, weight, reduction, count)


def _rank(scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """The place of each chosen score among them, the highest first, the earlier of equals first."""
    keys = replicated(jnp.where(chosen, -scores, jnp.inf)).reshape(-1)
    return jnp.argsort(jnp.argsort(keys)).reshape(scores.shape)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MarginL2Loss(Loss, function=margin_l2_loss):
    """Squared error with margins: `margin_l2_loss`; `key=` is a keyword of the call."""

    neg_pos_ub: int = -1
    pos_margin: float = -1.0
    neg_margin: float = -1.0
    hard_mining: bool = False

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, FINITE), Expected("target", target, UNIT)]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class L2Loss(MarginL2Loss):
    """mmdet's other name of `MarginL2Loss`: the same numbers."""
