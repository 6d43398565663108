"""Equalization loss v2, for classes of very different frequency."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.devices import reduce_sum, replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Count, Finite, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.sigmoid import bce_with_logits
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import (
    Reduction,
    weight_reduce_loss,
    weight_without,
    zero_where_unweighted,
)
from visdet_jax.registry import LOSSES


@exportable
class EQLV2State(NamedTuple):
    """What equalization loss v2 remembers, (num_classes,) each.

    pos_grad, neg_grad: Sums of the absolute gradients that a class got as positive and as negative
      so far. They only grow: in float32, as in mmdet, what is below 6e-8 of a sum is not added.
    pos_neg: pos_grad / (neg_grad + 1e-10); 100 before the first batch, so that all weights are 1.
    """

    pos_grad: jax.Array
    neg_grad: jax.Array
    pos_neg: jax.Array


@jitted
def eqlv2_statistics(
    state: EQLV2State,
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    mu: Finite = 0.8,
    alpha: NonNegative = 4.0,
    gamma: NonNegative = 12.0,
    axis_name: str | tuple[str, ...] | None = None,
) -> EQLV2State:
    """The next state of `eqlv2_loss`.

    Adds the absolute gradients of the rows' losses to the sums of their classes. A row counts
    once, whatever its weight, unless that is 0. A row whose index is no class does not count.

    Args:
      state: The state before this batch.
      pred, target, weight, mu, alpha, gamma: As in `eqlv2_loss`.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: the next state.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    """
    dtype, target = _dtype_and_labels(state, pred, target)
    weight = weight_without((target < 0) | (target >= pred.shape[1]), weight, target.shape)
    counts = (weight != 0)[:, None]
    pred = jax.lax.stop_gradient(zero_where_unweighted(pred.astype(dtype), weight))
    own = is_at(target[:, None], pred, 1)
    as_positive, as_negative = _class_weights(state, mu, alpha, gamma, dtype)
    pos = jnp.where(own & counts, jax.nn.sigmoid(-pred) * as_positive, 0).sum(0)
    neg = jnp.where(~own & counts, jax.nn.sigmoid(pred) * as_negative, 0).sum(0)
    pos, neg = replicated(pos)[:-1], replicated(neg)[:-1]  # The state is whole on every device.
    pos_grad = state.pos_grad + reduce_sum(pos, axis_name).astype(state.pos_grad.dtype)
    neg_grad = state.neg_grad + reduce_sum(neg, axis_name).astype(state.neg_grad.dtype)
    # Without a row the initial 100 must stay: 0 / (0 + 1e-10) is another ratio.
    any_row = reduce_sum(counts.sum(), axis_name) > 0
    pos_neg = jnp.where(any_row, pos_grad / (neg_grad + 1e-10), state.pos_neg)
    return EQLV2State(pos_grad, neg_grad, pos_neg)


@jitted
def eqlv2_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    state: EQLV2State,
    mu: Finite = 0.8,
    alpha: NonNegative = 4.0,
    gamma: NonNegative = 12.0,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Binary cross entropy that makes up for classes whose gradients were mostly negative.

    Σ_c w_c BCE(sigmoid(pred_c), [c = target]), with w_c = 1 + alpha (1 - r_c) for the row's class
    and w_c = r_c for the others; r_c = sigmoid(gamma (pos_neg_c - mu)), and r = 1 in the last
    channel, objectness. The weights w are constants to the gradient.

    Args:
      pred: Logits (N, C + 1), the last channel for background.
      target: Class indices (N,), C for background. A negative index costs 0, one above C makes
        the loss NaN.
      weight: (N,).
      state: `EQLV2State` before this batch: the loss is taken at the old weights.
      mu: The ratio of positive to negative gradients at which a class has weight 1/2 as a
        negative. Larger values lower the weights of negatives and raise those of positives.
      alpha: Range of the weights of positives, at least 0: they lie from 1 to 1 + alpha.
      gamma: Steepness of the map from the ratio of gradients to the weights, at least 0. With
        larger values it comes closer to a step at mu; with 0 all negatives have weight 1/2.

    Returns: (N,), summed over the classes, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Tan et al. 2021, https://arxiv.org/abs/2012.08548
    """
    dtype, target = _dtype_and_labels(state, pred, target)
    weight = weight_without(target < 0, weight, target.shape)
    pred = zero_where_unweighted(pred.astype(dtype), weight)
    own = is_at(target[:, None], pred, 1)
    as_positive, as_negative = _class_weights(state, mu, alpha, gamma, dtype)
    bce = bce_with_logits(pred, own.astype(dtype))
    values = (jnp.where(own, as_positive, as_negative) * bce).sum(1)
    values = jnp.where(target >= pred.shape[1], jnp.nan, values)
    return weight_reduce_loss(values, weight, reduction, avg_factor)


def _dtype_and_labels(
    state: EQLV2State, pred: jax.Array, target: jax.Array
) -> tuple[Any, jax.Array]:
    """The type to compute in, and the checked class indices (N,)."""
    dtype = compute_dtype(pred=pred)
    channels = len(state.pos_neg) + 1
    if pred.ndim != 2 or pred.shape[1] != channels:
        raise ValueError(f"pred must have shape (N, {channels}), got {pred.shape}")
    return dtype, as_labels("target", target, pred.shape[:1])


def _class_weights(
    state: EQLV2State, mu: Number, alpha: Number, gamma: Number, dtype: Any
) -> tuple[jax.Array, jax.Array]:
    """The weights (1, C + 1) of each channel: where it is the row's class, and where it is not."""
    mu, alpha, gamma = as_dtype(dtype, mu, alpha, gamma)
    x = gamma * (jax.lax.stop_gradient(state.pos_neg).astype(dtype) - mu)
    objectness = jnp.ones(1, dtype)
    as_positive = jnp.concatenate([1 + alpha * jax.nn.sigmoid(-x), objectness])
    as_negative = jnp.concatenate([jax.nn.sigmoid(x), objectness])
    return as_positive[None], as_negative[None]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EQLV2Loss(StatefulLoss, function=(eqlv2_loss, eqlv2_statistics)):
    """Equalization loss v2: `eqlv2_loss`, and after it `eqlv2_statistics` for the next batch.

    Args:
      num_classes: Number of foreground classes, at least 1.
      test_with_obj: `get_activation` multiplies by the probability of an object.
      use_sigmoid, class_weight, vis_grad: A key of mmdet that has no effect on its numbers, nor on
        ours.
      use_distributed: A key of mmdet without effect. Over several devices write
        `update(..., axis_name="data")`.
    """

    use_sigmoid: bool = True
    class_weight: tuple[float, ...] | None = None
    num_classes: Count = 1203
    use_distributed: bool = False
    mu: float = 0.8
    alpha: float = 4.0
    gamma: float = 12.0
    vis_grad: bool = False
    test_with_obj: bool = True

    def init(self) -> EQLV2State:
        # Each its own buffer, or the state could not be donated.
        classes = self.num_classes
        return EQLV2State(jnp.zeros(classes), jnp.zeros(classes), jnp.full(classes, 100.0))

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        labels = classes(self.num_classes, background=True)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def step(
        self,
        state: EQLV2State,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
        **reduce: Any,
    ) -> tuple[jax.Array, EQLV2State]:
        value = eqlv2_loss(pred, target, weight, state=state, **self.settings, **reduce)
        batch = state, pred, target, weight
        return value, eqlv2_statistics(*batch, **self.settings, axis_name=axis_name)

    def get_channel_num(self, num_classes: int) -> int:
        """The channels of a classifier of `num_classes` classes: one more, for background."""
        return num_classes + 1

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores (N, num_classes + 1) of outputs of that shape.

        Sigmoids; those of the classes times 1 - that of background, with `test_with_obj`.
        """
        scores = jax.nn.sigmoid(cls_score)
        if not self.test_with_obj:
            return scores
        return jnp.concatenate([scores[:, :-1] * (1 - scores[:, -1:]), scores[:, -1:]], axis=1)
