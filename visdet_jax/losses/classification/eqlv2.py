"""Equalization loss v2, for classes of very different frequency."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.export import exportable
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.sigmoid import bce_with_logits
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import weight_reduce_loss, weight_without, zero_where_unweighted
from visdet_jax.registry import LOSSES


@exportable
class EQLV2State(NamedTuple):
    """What equalization loss v2 remembers, (num_classes,) each.

    pos_grad, neg_grad: sums of the gradients that a class got as positive and as negative so far.
      They only grow: in float32, as in the reference, what is below 6e-8 of a sum is not added.
    pos_neg: pos_grad / (neg_grad + 1e-10); 100 before the first batch, so that all weights are 1.
    """

    pos_grad: jax.Array
    neg_grad: jax.Array
    pos_neg: jax.Array


@jitted
def eqlv2_statistics(
    state, pred, target, weight=None, *, mu=0.8, alpha=4.0, gamma=12.0, axis_name=None
):
    """The next state of `eqlv2_loss`, whose arguments these are.

    Adds the absolute gradients of the rows' losses to their classes' sums. A row counts once,
    whatever its weight, unless that is 0; a row without a class does not.

    Args:
      axis_name: the mesh axis whose devices hold parts of the batch.
    """
    dtype, rows = _check(state, pred, target)
    weight = weight_without((target < 0) | (target >= pred.shape[1]), weight, rows)
    kept = (weight != 0)[:, None]
    pred = jax.lax.stop_gradient(zero_where_unweighted(pred.astype(dtype), weight))
    own = jax.nn.one_hot(target, pred.shape[1], dtype=bool)
    as_positive, as_negative = _class_weights(state, mu, alpha, gamma, dtype)
    pos = jnp.where(own & kept, jax.nn.sigmoid(-pred) * as_positive, 0).sum(0)[:-1]
    neg = jnp.where(~own & kept, jax.nn.sigmoid(pred) * as_negative, 0).sum(0)[:-1]
    pos_grad = state.pos_grad + reduce_sum(pos, axis_name).astype(state.pos_grad.dtype)
    neg_grad = state.neg_grad + reduce_sum(neg, axis_name).astype(state.neg_grad.dtype)
    # Without a row the initial 100 must stay: 0 / (0 + 1e-10) is another ratio.
    counted = reduce_sum(kept.sum(), axis_name) > 0
    pos_neg = jnp.where(counted, pos_grad / (neg_grad + 1e-10), state.pos_neg)
    return EQLV2State(pos_grad, neg_grad, pos_neg)


@jitted
def eqlv2_loss(
    pred,
    target,
    weight=None,
    *,
    state,
    mu=0.8,
    alpha=4.0,
    gamma=12.0,
    reduction="mean",
    avg_factor=None,
):
    """Binary cross entropy that is fair to classes whose gradients were mostly negative.

    Σ_c w_c BCE(sigmoid(pred_c), [c = target]), w_c = 1 + alpha (1 - r_c) for the row's class and
    r_c for the others, r_c = sigmoid(gamma (pos_neg_c - mu)); r is 1 in the last channel,
    objectness. The weights are constants to the gradient.

    Args:
      pred: logits (N, C + 1), the last channel for background.
      target: class indices (N,), C for background. A negative one costs 0, one above C makes the
        loss NaN.
      weight: (N,).
      state: `EQLV2State` before this batch: the loss is taken at the old weights.
      mu, gamma: centre and slope of the map from the ratio of gradients to weights.
      alpha: how much more positives weigh.
    Returns: (N,), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Tan et al. 2021, https://arxiv.org/abs/2012.08548
    """
    dtype, rows = _check(state, pred, target)
    weight = weight_without(target < 0, weight, rows)
    pred = zero_where_unweighted(pred.astype(dtype), weight)
    own = jax.nn.one_hot(target, pred.shape[1], dtype=bool)
    as_positive, as_negative = _class_weights(state, mu, alpha, gamma, dtype)
    bce = bce_with_logits(pred, own.astype(dtype))
    values = (jnp.where(own, as_positive, as_negative) * bce).sum(1)
    values = jnp.where(target >= pred.shape[1], jnp.nan, values)
    return weight_reduce_loss(values, weight, reduction, avg_factor)


def _check(state, pred, target):
    """The type to compute in and the shape of the rows."""
    dtype = compute_dtype(pred=pred)
    channels = len(state.pos_neg) + 1
    if pred.ndim != 2 or pred.shape[1] != channels:
        raise ValueError(f"pred must have shape (N, {channels}), got {pred.shape}")
    target = as_labels("target", target, pred.shape[:1])
    return dtype, pred.shape[:1]


def _class_weights(state, mu, alpha, gamma, dtype):
    """The weights (1, C + 1) of a channel as a row's class and as another."""
    mu, alpha, gamma = as_dtype(dtype, mu, alpha, gamma)
    x = gamma * (jax.lax.stop_gradient(state.pos_neg).astype(dtype) - mu)
    objectness = jnp.ones(1, dtype)
    as_positive = jnp.concatenate([1 + alpha * jax.nn.sigmoid(-x), objectness])
    as_negative = jnp.concatenate([jax.nn.sigmoid(x), objectness])
    return as_positive[None], as_negative[None]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EQLV2Loss(StatefulLoss):
    """Flax shim of `eqlv2_loss` and of `eqlv2_statistics`, which is called after it.

    Args:
      num_classes: of the foreground.
      test_with_obj: `get_activation` multiplies by the probability of an object.
      use_sigmoid, class_weight, use_distributed, vis_grad: keys of the reference that have no
        effect on its numbers, nor on ours; over devices say `update(..., axis_name="data")`.
    """

    use_sigmoid: bool = True
    class_weight: tuple[float, ...] | None = None
    num_classes: int = 1203
    use_distributed: bool = False
    mu: float = 0.8
    alpha: float = 4.0
    gamma: float = 12.0
    vis_grad: bool = False
    test_with_obj: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("num_classes")

    def init(self):
        # Each its own buffer, or the state could not be donated.
        classes = self.num_classes
        return EQLV2State(jnp.zeros(classes), jnp.zeros(classes), jnp.full(classes, 100.0))

    def rules(self, pred, target, **extra):
        labels = classes(self.num_classes, background=True)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def step(self, state, pred, target, weight, *, axis_name=None, **reduce):
        shape = {"mu": self.mu, "alpha": self.alpha, "gamma": self.gamma}
        value = eqlv2_loss(pred, target, weight, state=state, **shape, **reduce)
        return value, eqlv2_statistics(state, pred, target, weight, **shape, axis_name=axis_name)

    def get_channel_num(self, num_classes: int) -> int:
        """The channels of a classifier of `num_classes` classes: background besides."""
        return num_classes + 1

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores of outputs (N, num_classes + 1): sigmoids, times 1 - background's for classes."""
        scores = jax.nn.sigmoid(cls_score)
        if not self.test_with_obj:
            return scores
        return jnp.concatenate([scores[:, :-1] * (1 - scores[:, -1:]), scores[:, -1:]], axis=1)
