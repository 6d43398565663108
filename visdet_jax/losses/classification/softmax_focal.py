"""Focal loss over classes that exclude each other."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import softmax
from visdet_jax.losses._class_targets import (
    ClassWeight,
    check_class_weight,
    is_ignored,
    minus_log_p,
    warn_of_ignored,
    weight_of_classes,
    weight_of_labels,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def softmax_focal_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    gamma: Exponent = 2.0,
    class_weight: ClassWeight | None = None,
    ignore_index: jax.Array | int | None = None,
    avg_non_ignore: bool = False,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy of softmax(pred) with a class, weighted down where it is classified well.

    -w_y (1 - p_y)^gamma log p_y for a class y, p = softmax(pred) along axis 1, w `class_weight` or
    1. Where class 0 is background, a focal loss's alpha is class_weight=(1 - alpha, alpha, ...,
    alpha), as in kornia, whose mean counts C values a row.

    Gradients are finite for every gamma ≥ 0.

    Args:
      pred: Logits (N, C, ...).
      target: Class indices (N, ...). A negative one and `ignore_index` cost 0; one of C or more
        makes the loss NaN: there is no such class.
      weight: (N, ...), or its leading part such as (N,).
      gamma: Focusing exponent, at least 0. Larger values down-weight easy rows more; 0 is cross
        entropy.
      class_weight: (C,), the weight of each class, at least 0; None is 1. The mean stays a plain
        mean, it is not divided by the class weights.
      ignore_index: An index that costs 0. None is -100.
      avg_non_ignore: The mean is over the rows that are not ignored (0 if all are).

    Returns: (N, ...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred = pred.astype(dtype)
    rows, channels = pred.shape[:1] + pred.shape[2:], pred.shape[1]
    target = as_labels("target", target, rows)
    ignored = is_ignored(target, ignore_index)
    class_weight = check_class_weight(class_weight, channels, dtype)
    weight = weight_of_labels(target, ignored, weight, rows, channels, dtype, class_weight)
    values = _focal(weight, pred, jnp.expand_dims(target, 1), as_dtype(dtype, gamma))
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = (~ignored).sum()
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _value(pred: jax.Array, label: jax.Array, gamma: Any, alone: bool = False) -> jax.Array:
    cost = minus_log_p(pred, label, alone)
    return (power(-jnp.expm1(-cost), gamma) * cost).squeeze(1)


def _derivative(pred: jax.Array, label: jax.Array, gamma: Any) -> jax.Array:
    cost = minus_log_p(pred, label)
    own = is_at(label, pred, axis=1).astype(pred.dtype)
    d_cost = softmax(pred, axis=1) - own
    focus, d_focus = power_and_derivative(-jnp.expm1(-cost), gamma)
    # The derivative of 1 - p by the cost -log p is p.
    return d_cost * (focus + d_focus * jnp.exp(-cost) * cost)


_focal = closed_form(_value, _derivative, axis=1, has_alone=True)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SoftmaxFocalLoss(Loss, function=softmax_focal_loss):
    """Focal loss of a softmax: `softmax_focal_loss` with its hyperparameters as fields.

    Args:
      class_weight: A number for each class, or one number for all classes, at least 0; None is 1.
        The mean stays a plain mean, it is not divided by the class weights.
    """

    gamma: float = 2.0
    class_weight: float | tuple[float, ...] | None = None
    ignore_index: int | None = None
    avg_non_ignore: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        warn_of_ignored(self)

    def rules(self, pred: jax.Array, target: jax.Array, **extra: Any) -> list[Expected]:
        labels = classes(pred.shape[1] - 1, self.ignore_index)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(
        self, pred: jax.Array, target: jax.Array, weight: jax.Array | None, **reduce: Any
    ) -> jax.Array:
        class_weight = weight_of_classes(self.class_weight, pred, axis=1)
        settings = self.settings | {"class_weight": class_weight}
        return softmax_focal_loss(pred, target, weight, **settings, **reduce)
