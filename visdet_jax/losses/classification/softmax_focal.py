"""Focal loss over classes that exclude each other."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses._class_targets import (
    check_class_weight,
    class_mask,
    is_ignored,
    warn_of_ignored,
    weight_of_classes,
    weight_of_rows,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def softmax_focal_loss(
    pred,
    target,
    weight=None,
    *,
    gamma: Exponent = 2.0,
    class_weight=None,
    ignore_index=None,
    avg_non_ignore=False,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of softmax(pred) with a class, less of it for what is classified well.

    -w_y (1 - p_y)^gamma log p_y for a class y, p = softmax(pred) along axis 1, w `class_weight` or
    1. Where class 0 is background, a focal loss's alpha is class_weight=(1 - alpha, alpha, ...,
    alpha), as in kornia, whose mean counts C values a row.

    Gradients are finite for every gamma ≥ 0.

    Args:
      pred: logits (N, C, ...).
      target: class indices (N, ...). A negative one and `ignore_index` cost 0; one of C or more
        makes the loss NaN: there is no such class.
      gamma: how much less; 0 is cross entropy.
      class_weight: (C,). The mean stays a plain mean, it is not divided by the class weights.
      ignore_index: an index that costs 0.
      avg_non_ignore: the mean is over the rows that are not ignored (0 if all are).
    Returns: (N, ...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred = pred.astype(dtype)
    rows, channels = pred.shape[:1] + pred.shape[2:], pred.shape[1]
    target = as_labels("target", target, rows)
    ignored = is_ignored(target, ignore_index)
    class_weight = check_class_weight(class_weight, channels, dtype)
    weight = weight_of_rows(target, ignored, weight, rows, channels, dtype, class_weight)
    values = _focal(weight, pred, jnp.expand_dims(target, 1), as_dtype(dtype, gamma))
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = (~ignored).sum()
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _cost(pred, target, alone):
    """-log p of the class, with axis 1 of size 1."""
    m, log_sum = log_sum_exp(pred, 1, alone)
    index = jnp.clip(target, 0, pred.shape[1] - 1)
    own = jnp.take_along_axis(pred, index, axis=1, mode="promise_in_bounds")
    return log_sum - (own - m)


def _value(pred, target, gamma, alone=False):
    cost = _cost(pred, target, alone)
    return (power(-jnp.expm1(-cost), gamma) * cost).squeeze(1)


def _derivative(pred, target, gamma):
    cost = _cost(pred, target, alone=False)
    miss = -jnp.expm1(-cost)
    focal, by_miss = power_and_derivative(miss, gamma)
    by_cost = focal + by_miss * jnp.exp(-cost) * cost
    own = jnp.moveaxis(class_mask(target.squeeze(1), pred.shape[1]), -1, 1).astype(pred.dtype)
    return (softmax(pred, axis=1) - own) * by_cost


_focal = closed_form(_value, _derivative, axis=1, has_alone=True)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SoftmaxFocalLoss(Loss):
    """Flax shim of `softmax_focal_loss`.

    A single number as `class_weight` is every class's.
    """

    gamma: float = 2.0
    class_weight: float | tuple[float, ...] | None = None
    ignore_index: int | None = None
    avg_non_ignore: bool = False

    def __post_init__(self):
        super().__post_init__()
        warn_of_ignored(self)

    def rules(self, pred, target, **extra):
        labels = classes(pred.shape[1] - 1, self.ignore_index)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(self, pred, target, weight, **reduce):
        return softmax_focal_loss(
            pred,
            target,
            weight,
            gamma=self.gamma,
            class_weight=weight_of_classes(self.class_weight, pred, axis=1),
            ignore_index=self.ignore_index,
            avg_non_ignore=self.avg_non_ignore,
            **reduce,
        )
