"""What the losses share whose target is a quality: a score for the class of each row's box."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, UNIT, Expected, classes
from visdet_jax.core.sigmoid import Sigmoid, sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight

# Scores (..., C) as one array, or class indices and scores, both (..., 1).
Quality = tuple[jax.Array, ...]


def floats_and_quality(pred: Any, target: Any) -> tuple[jax.Array, Quality]:
    """`pred` and the quality it should have, as floats of one type.

    Args:
      pred: (..., C).
      target: (label, score), both (...), every label outside [0, C) being background; or the
        scores (..., C) as one array.

    Raises: ValueError where shapes do not fit, TypeError for what is no array.
    """
    if not isinstance(target, tuple | list):
        dtype = compute_dtype(pred=pred, target=target)
        check_same_shape(pred, target)
        return pred.astype(dtype), (target.astype(dtype),)
    if len(target) != 2:
        raise ValueError(f"target must be (label, score) or an array, got {len(target)} parts")
    label, score = target
    dtype = compute_dtype(pred=pred, score=score)
    check_array("label", label)
    for name, part in (("label", label), ("score", score)):
        if part.shape != pred.shape[:-1]:
            raise ValueError(f"{name} must have shape {pred.shape[:-1]}, got {part.shape}")
    if jnp.issubdtype(label.dtype, jnp.integer):
        index = as_labels("label", label)
    else:
        # As in mmdet labels may be floats: those in [0, C) are truncated.
        index = jnp.where(label < 0, -1, label).astype(jnp.int32)
    return pred.astype(dtype), (index[..., None], score.astype(dtype)[..., None])


def quality_of_classes(
    pred: jax.Array, target: jax.Array, score: jax.Array | None = None
) -> jax.Array:
    """Each class's quality (..., C): `target` itself, or `score` at its class, 0 elsewhere."""
    return target if score is None else jnp.where(is_positive(pred, target, score), score, 0)


def is_positive(pred: jax.Array, target: jax.Array, score: jax.Array | None = None) -> jax.Array:
    """Whether an entry is its row's class, whatever the score; or has one, in an array."""
    return target > 0 if score is None else is_at(target, pred, -1)


def weight_column(weight: Any, pred: jax.Array) -> jax.Array | None:
    """Weights of the rows of pred (..., C) as (..., 1), for values that are not yet summed."""
    if weight is None:
        return None
    rows = spread_weight(weight, pred.shape[:-1]).astype(pred.dtype)
    return jnp.broadcast_to(rows, pred.shape[:-1])[..., None]


def cross_entropy_of_quality(
    weight: jax.Array | None,
    pred: jax.Array,
    quality: Quality,
    alpha: Any,
    gamma: Any,
    *,
    weighted_by_quality: bool = False,
    detached: bool = False,
) -> jax.Array:
    """Binary cross entropy towards a quality, whose easy negatives count less.

    weight · w BCE(p, q), with p = sigmoid(pred) and q the quality of a positive, 0 elsewhere.
    Negatives have w = alpha |p - q|^gamma, through which the gradient flows unless `detached`.
    Positives have w = 1, or w = q where `weighted_by_quality`.

    Returns: values of pred's shape, not yet reduced.
    """
    weighted = closed_form(
        functools.partial(_value, weighted_by_quality=weighted_by_quality),
        functools.partial(_derivative, weighted_by_quality=weighted_by_quality, detached=detached),
    )
    return weighted(weight, pred, alpha, gamma, *quality)


def _value(
    pred: jax.Array, alpha: Any, gamma: Any, *quality: jax.Array, weighted_by_quality: bool
) -> jax.Array:
    q, sigmoid = quality_of_classes(pred, *quality), sigmoid_parts(pred)
    positive = q if weighted_by_quality else 1
    negative = alpha * power(_miss_of_negatives(sigmoid, q, quality)[0], gamma)
    return jnp.where(is_positive(pred, *quality), positive, negative) * sigmoid.bce(q)


def _derivative(
    pred: jax.Array,
    alpha: Any,
    gamma: Any,
    *quality: jax.Array,
    weighted_by_quality: bool,
    detached: bool,
) -> jax.Array:
    q, sigmoid = quality_of_classes(pred, *quality), sigmoid_parts_in_derivative(pred)
    positive = q if weighted_by_quality else 1
    miss, d_miss = _miss_of_negatives(sigmoid, q, quality)
    if detached:
        negative = alpha * power(jax.lax.stop_gradient(miss), gamma)
        return jnp.where(is_positive(pred, *quality), positive, negative) * sigmoid.d_bce(q)
    focal, d_focal = power_and_derivative(miss, gamma)
    d_negative = alpha * (focal * sigmoid.d_bce(q) + d_focal * d_miss * sigmoid.bce(q))
    return jnp.where(is_positive(pred, *quality), positive * sigmoid.d_bce(q), d_negative)


def _miss_of_negatives(
    sigmoid: Sigmoid, q: jax.Array, quality: Quality
) -> tuple[jax.Array, jax.Array]:
    """|p - q| of the entries that are not positive, and its derivative by the logit.

    Of class indices it is p, which takes up to a tenth less time. Scores of every class may be
    negative: that means nothing, but mmdet's varifocal loss has a value for them.
    """
    if len(quality) == 2:
        return sigmoid.p, sigmoid.d_p
    gap = sigmoid.d_bce(q)
    return jnp.abs(gap), jnp.sign(gap) * sigmoid.d_p


@dataclass(frozen=True, kw_only=True)
class QualityLoss(Loss):
    """Losses whose target is (label, score): class indices and the IoU of each row's box.

    Args:
      use_sigmoid: Must be True.
    """

    use_sigmoid: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid)

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        of_pred = Expected("pred", pred, LOGITS)
        if not isinstance(target, tuple | list):
            return [of_pred, Expected("target", target, UNIT)]
        label, score = target
        labels = classes(pred.shape[-1], background=True, minus_1="for background")
        return [of_pred, Expected("label", label, labels), Expected("score", score, UNIT)]
