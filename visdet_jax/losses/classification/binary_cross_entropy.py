"""Cross entropy of each class on its own, and of masks."""

import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses._class_targets import (
    IGNORE_INDEX,
    check_class_weight,
    dense,
    is_ignored,
    weight_of_rows,
)
from visdet_jax.reduction import weight_reduce_loss, weight_without


@jitted
def binary_cross_entropy(
    pred,
    target,
    weight=None,
    *,
    class_weight=None,
    ignore_index=IGNORE_INDEX,
    avg_non_ignore=False,
    poly_epsilon=None,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of sigmoid(pred), each class on its own.

    -w t log sigmoid(pred) - (1 - t) log(1 - sigmoid(pred)); t is the one-hot form of class
    indices, or the target itself; w is `class_weight` or 1, on positives only. With `poly_epsilon`
    plus w t poly_epsilon (1 - sigmoid(pred)) + (1 - t) poly_epsilon sigmoid(pred): the first term
    of PolyLoss.

    Args:
      pred: logits (..., C), or any shape with a target of the same shape.
      target: class indices (...), C or more for background (t = 0), or values of pred's shape in
        [0, 1]. What is negative or equals `ignore_index` costs 0: a row of indices, an entry of
        values.
      weight: (...) or pred's shape.
      class_weight: (C,), the weight of positives of each class.
      ignore_index: see target (None: -100).
      avg_non_ignore: the mean is over the entries of pred that are not ignored (0 if all are).
      poly_epsilon: None adds nothing.
    Returns: values of pred's shape, before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Leng et al. 2022 (PolyLoss), https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])
        target = target[..., None]
    ignored = is_ignored(target, ignore_index)
    weight = weight_without(ignored, weight, pred.shape).astype(dtype)
    if class_weight is not None:
        channels = pred.shape[-1] if pred.ndim > 1 else 1
        class_weight = check_class_weight(class_weight, channels, dtype)
        class_weight = class_weight.reshape((1,) * (pred.ndim - 1) + class_weight.shape)
    poly_epsilon = None if poly_epsilon is None else as_dtype(dtype, poly_epsilon)
    values = _bce(weight, pred, target, class_weight, poly_epsilon)
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = jnp.broadcast_to(~ignored, pred.shape).sum()
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _shares(pred, target, class_weight):
    """What the positive and the negative side of an entry count for."""
    target = dense(pred, target)
    return target if class_weight is None else class_weight * target, 1 - target


def _bce_value(pred, target, class_weight, poly_epsilon):
    positive, negative = _shares(pred, target, class_weight)
    _, p, not_p, tail = sigmoid_parts(pred)
    of_positive, of_negative = jnp.maximum(-pred, 0), jnp.maximum(pred, 0)
    if class_weight is None:
        value = positive * of_positive + negative * of_negative + tail
    else:
        value = positive * (of_positive + tail) + negative * (of_negative + tail)
    if poly_epsilon is None:
        return value
    return value + poly_epsilon * (positive * not_p + negative * p)


def _bce_derivative(pred, target, class_weight, poly_epsilon):
    positive, negative = _shares(pred, target, class_weight)
    _, p, not_p, _ = sigmoid_parts_in_derivative(pred)
    slope = negative * p - positive * not_p
    if poly_epsilon is None:
        return slope
    return slope + poly_epsilon * (negative - positive) * p * not_p


_bce = closed_form(_bce_value, _bce_derivative)


@jitted
def mask_cross_entropy(
    pred, target, label, weight=None, *, class_weight=None, reduction="mean", avg_factor=None
):
    """Binary cross entropy of each object's mask of its own class.

    BCE(pred[i, label[i]], target[i]) × class_weight[label[i]], every pixel a value.

    Args:
      pred: mask logits (N, C, ...), C = 1 for masks that know no class.
      target: masks (N, ...) in [0, 1].
      label: class indices (N,). A negative one costs 0, one of C or more makes the loss NaN.
      weight: (N,) or (N, ...).
      class_weight: (C,).
    Returns: (N, ...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for labels that are floats.
    He et al. 2017 (Mask R-CNN), https://arxiv.org/abs/1703.06870
    """
    dtype = compute_dtype(pred=pred, target=target)
    pixels = pred.shape[:1] + pred.shape[2:]
    if pred.ndim < 2 or target.shape != pixels:
        raise ValueError(
            f"pred (N, C, ...) and target (N, ...) do not fit, got {pred.shape} and {target.shape}"
        )
    label = as_labels("label", label, pred.shape[:1])
    classes = pred.shape[1]
    label = label.reshape(label.shape + (1,) * (pred.ndim - 2))
    index = jnp.expand_dims(jnp.clip(label, 0, classes - 1), 1)
    own = jnp.take_along_axis(pred, index, axis=1).squeeze(1).astype(dtype)
    class_weight = check_class_weight(class_weight, classes, dtype)
    weight = weight_of_rows(label, label < 0, weight, pixels, classes, dtype, class_weight)
    values = _bce(weight, own, target.astype(dtype), None, None)
    return weight_reduce_loss(values, None, reduction, avg_factor)
