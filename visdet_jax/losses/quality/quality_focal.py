"""Quality focal loss, of Generalized Focal Loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, as_dtype_or_none
from visdet_jax.core.hyperparameters import Exponent, Fraction, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.core.sigmoid import (
    bce_with_probs,
    d_bce_with_probs,
    sigmoid_parts,
    sigmoid_parts_in_derivative,
)
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    floats_and_quality,
    quality_of_classes,
    weight_column,
)
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def quality_focal_loss(
    pred: jax.Array,
    target: Any,
    weight: jax.Array | None = None,
    *,
    beta: Exponent = 2.0,
    alpha: Fraction | None = None,
    activated: bool = False,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Focal loss towards a quality score instead of 1: class and localization in one.

    Σ over classes of |q - p|^beta BCE(p, q), p = sigmoid(pred), with q the score (such as the
    IoU) at a row's class and 0 elsewhere.

    Gradients are finite for every beta ≥ 0 (mmdet's are NaN for beta < 1 at p = q).

    Args:
      pred: Logits (..., C), or probabilities where `activated`.
      target: (label, score), class indices (...) and floats (...) in [0, 1], every label outside
        [0, C) being background; or q itself, (..., C), as one array.
      weight: (...).
      beta: Focusing exponent, at least 0. Larger values down-weight more what is near its score;
        0 is binary cross entropy.
      alpha: Weight of the entries with a q above 0, in [0, 1]; the others have 1 - alpha. None
        gives both weight 1. rf-detr's position supervised loss is this one, with scores divided by
        the largest of their image.
      activated: `pred` holds probabilities.

    Returns: (...), summed over the classes, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit.
    Source: Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    pred, quality = floats_and_quality(pred, target)
    focal = _focal_of_probabilities if activated else _focal_of_logits
    values = focal(
        weight_column(weight, pred),
        pred,
        as_dtype(pred.dtype, beta),
        as_dtype_or_none(pred.dtype, alpha),
        *quality,
    )
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


def _alpha_weighted(q: jax.Array, alpha: Any, x: jax.Array) -> jax.Array:
    return x if alpha is None else jnp.where(q > 0, alpha, 1 - alpha) * x


def _value(pred: jax.Array, beta: Any, alpha: Any, *quality: jax.Array) -> jax.Array:
    q, sigmoid = quality_of_classes(pred, *quality), sigmoid_parts(pred)
    miss = jnp.abs(sigmoid.d_bce(q))  # |p - q|, with all its digits
    return _alpha_weighted(q, alpha, power(miss, beta) * sigmoid.bce(q))


def _derivative(pred: jax.Array, beta: Any, alpha: Any, *quality: jax.Array) -> jax.Array:
    q, sigmoid = quality_of_classes(pred, *quality), sigmoid_parts_in_derivative(pred)
    gap = sigmoid.d_bce(q)
    d_miss = jnp.sign(gap) * sigmoid.d_p
    focal, d_focal = power_and_derivative(jnp.abs(gap), beta)
    return _alpha_weighted(q, alpha, focal * gap + d_focal * d_miss * sigmoid.bce(q))


def _value_of_probabilities(
    pred: jax.Array, beta: Any, alpha: Any, *quality: jax.Array
) -> jax.Array:
    q = quality_of_classes(pred, *quality)
    return _alpha_weighted(q, alpha, power(jnp.abs(pred - q), beta) * bce_with_probs(pred, q))


def _derivative_of_probabilities(
    pred: jax.Array, beta: Any, alpha: Any, *quality: jax.Array
) -> jax.Array:
    q = quality_of_classes(pred, *quality)
    focal, d_focal = power_and_derivative(jnp.abs(pred - q), beta)
    d_value = focal * d_bce_with_probs(pred, q)
    d_value += d_focal * jnp.sign(pred - q) * bce_with_probs(pred, q)
    return _alpha_weighted(q, alpha, d_value)


_focal_of_logits = closed_form(_value, _derivative)
_focal_of_probabilities = closed_form(_value_of_probabilities, _derivative_of_probabilities)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class QualityFocalLoss(QualityLoss, function=quality_focal_loss):
    """Quality focal loss: `quality_focal_loss` with its hyperparameters as fields."""

    beta: float = 2.0
    activated: bool = False
    alpha: float | None = None

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        of_pred, *others = super().rules(pred, target, **extra)
        return [of_pred._replace(rule=UNIT) if self.activated else of_pred, *others]
