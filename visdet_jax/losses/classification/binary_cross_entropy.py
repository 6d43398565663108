"""Cross entropy of each class on its own, and of masks."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype_or_none, compute_dtype
from visdet_jax.core.hyperparameters import Finite, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import entry_at, is_at
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses._class_targets import (
    IGNORE_INDEX,
    ClassWeight,
    check_class_weight,
    dense_target,
    is_ignored,
    weight_of_labels,
)
from visdet_jax.reduction import Reduction, weight_reduce_loss, weight_without


@jitted
def binary_cross_entropy(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    class_weight: ClassWeight | None = None,
    ignore_index: jax.Array | int | None = IGNORE_INDEX,
    avg_non_ignore: bool = False,
    poly_epsilon: Finite | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy of sigmoid(pred), each class on its own.

    -w t log sigmoid(pred) - (1 - t) log(1 - sigmoid(pred)); t is the one-hot form of class
    indices, or the target itself; w is `class_weight` or 1, on positives only. With `poly_epsilon`
    plus w t poly_epsilon (1 - sigmoid(pred)) + (1 - t) poly_epsilon sigmoid(pred): the first term
    of PolyLoss.

    Args:
      pred: Logits (..., C), or any shape with a target of the same shape.
      target: Class indices (...), C or more for background (t = 0), or values of pred's shape in
        [0, 1]. What is negative or equals `ignore_index` costs 0: a row of indices, an entry of
        values.
      weight: (...) or pred's shape.
      class_weight: (C,), the weight of each class's positives, at least 0. None is 1.
      ignore_index: A target that costs 0. None is -100.
      avg_non_ignore: The mean is over the entries of pred that are not ignored (0 if all are).
      poly_epsilon: Factor of PolyLoss's first term. Larger values penalise what is not yet certain
        more; None adds nothing.

    Returns: values of pred's shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: PolyLoss: Leng et al. 2022, https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])[..., None]
    ignored = is_ignored(target, ignore_index)
    weight = weight_without(ignored, weight, pred.shape).astype(dtype)
    class_weight = check_class_weight(class_weight, pred.shape[-1] if pred.ndim > 1 else 1, dtype)
    if class_weight is not None:
        class_weight = class_weight.reshape((1,) * (pred.ndim - 1) + class_weight.shape)
    values = _bce(weight, pred, target, class_weight, as_dtype_or_none(dtype, poly_epsilon))
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = jnp.broadcast_to(~ignored, pred.shape).sum()
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _weights_of_sides(t: jax.Array, class_weight: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """What -log p and -log(1 - p) are multiplied by in the loss of each entry."""
    return t if class_weight is None else class_weight * t, 1 - t


def _value(
    pred: jax.Array, target: jax.Array, class_weight: jax.Array | None, poly_epsilon: Any
) -> jax.Array:
    t, sigmoid = dense_target(pred, target), sigmoid_parts(pred)
    positive, negative = _weights_of_sides(t, class_weight)
    if class_weight is None:
        value = sigmoid.bce(t)
    else:
        value = positive * sigmoid.minus_log_p + negative * sigmoid.minus_log_not_p
    if poly_epsilon is None:
        return value
    return value + poly_epsilon * (positive * sigmoid.not_p + negative * sigmoid.p)


def _derivative(
    pred: jax.Array, target: jax.Array, class_weight: jax.Array | None, poly_epsilon: Any
) -> jax.Array:
    t, sigmoid = dense_target(pred, target), sigmoid_parts_in_derivative(pred)
    positive, negative = _weights_of_sides(t, class_weight)
    d_value = negative * sigmoid.p - positive * sigmoid.not_p
    if poly_epsilon is None:
        return d_value
    return d_value + poly_epsilon * (negative - positive) * sigmoid.p * sigmoid.not_p


_bce = closed_form(_value, _derivative)


@jitted
def mask_cross_entropy(
    pred: jax.Array,
    target: jax.Array,
    label: jax.Array,
    weight: jax.Array | None = None,
    *,
    class_weight: ClassWeight | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Binary cross entropy of each object's mask of its own class.

    BCE(pred[i, label[i]], target[i]) × class_weight[label[i]], every pixel a value.

    Args:
      pred: Mask logits (N, C, ...), C = 1 for class-agnostic masks.
      target: Masks (N, ...) in [0, 1].
      label: Class indices (N,), all 0 for class-agnostic masks. A negative one costs 0, one of C or
        more makes the loss NaN.
      weight: (N,) or (N, ...).
      class_weight: (C,), the weight of each class's masks, at least 0. None is 1.

    Returns: (N, ...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for labels that are floats.
    Source: He et al. 2017 (Mask R-CNN), https://arxiv.org/abs/1703.06870
    """
    dtype = compute_dtype(pred=pred, target=target)
    pixels = pred.shape[:1] + pred.shape[2:]
    if pred.ndim < 2 or target.shape != pixels:
        raise ValueError(
            f"pred (N, C, ...) and target (N, ...) do not fit, got {pred.shape} and {target.shape}"
        )
    classes = pred.shape[1]
    label = as_labels("label", label, pred.shape[:1])
    label = label.reshape(label.shape + (1,) * (pred.ndim - 2))
    class_weight = check_class_weight(class_weight, classes, dtype)
    weight = weight_of_labels(label, label < 0, weight, pixels, classes, dtype, class_weight)
    masks, label = (jnp.expand_dims(x, 1) for x in (target.astype(dtype), label))
    values = _mask_bce(weight, pred.astype(dtype), masks, label)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _value_of_masks(pred: jax.Array, target: jax.Array, label: jax.Array) -> jax.Array:
    return sigmoid_parts(entry_at(pred, label, axis=1)).bce(target).squeeze(1)


def _derivative_of_masks(pred: jax.Array, target: jax.Array, label: jax.Array) -> jax.Array:
    d_own = sigmoid_parts_in_derivative(entry_at(pred, label, axis=1)).d_bce(target)
    return jnp.where(is_at(label, pred, axis=1), d_own, 0)


# Keep the closed form. Autodiff fills an array of pred's shape with zeros and then adds the masks'
# derivatives to it, where one loop writes both.
_mask_bce = closed_form(_value_of_masks, _derivative_of_masks, axis=1)
