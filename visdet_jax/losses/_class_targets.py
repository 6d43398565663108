"""What classification losses share: class indices as targets, and the weights of classes."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.warn import warn
from visdet_jax.reduction import spread_weight, weight_without

IGNORE_INDEX = -100  # torch's default


def class_mask(labels: jax.Array, classes: int) -> jax.Array:
    """Which class each label is, (..., classes) as bools; none for a label out of range."""
    index = jnp.arange(classes, dtype=labels.dtype).reshape((1,) * labels.ndim + (classes,))
    return jnp.expand_dims(labels, -1) == index


def is_ignored(target: jax.Array, ignore_index: jax.Array | int | None) -> jax.Array:
    """Where a target is negative or `ignore_index` (None: -100)."""
    return (target < 0) | (target == (IGNORE_INDEX if ignore_index is None else ignore_index))


def weight_of_rows(
    labels: jax.Array,
    ignored: jax.Array,
    weight: jax.Array | None,
    shape: tuple[int, ...],
    classes: int,
    dtype: Any,
    class_weight: jax.Array | None = None,
) -> jax.Array:
    """The weights of the values (of `shape`) of rows with class indices.

    0 where ignored, times the class's own weight (C,), NaN where no such class is.
    """
    weight = spread_weight(weight_without(ignored, weight, shape), shape).astype(dtype)
    if class_weight is not None:
        # Not class_weight[labels], which fails on explicitly sharded labels, nor one_hot @
        # class_weight, which TPUs and GPUs round to bfloat16 or TF32.
        own = jax.nn.one_hot(labels, classes, dtype=class_weight.dtype)
        by_class = class_weight.reshape((1,) * labels.ndim + class_weight.shape)
        weight = weight * (own * by_class).sum(-1)
    return jnp.where((labels >= classes) & (weight != 0), jnp.nan, weight)


def check_class_weight(
    class_weight: jax.Array | None, classes: int, dtype: Any
) -> jax.Array | None:
    """`class_weight` (C,) in the type that is computed in."""
    if class_weight is None:
        return None
    if class_weight.shape != (classes,):
        raise ValueError(f"class_weight must have shape ({classes},), got {class_weight.shape}")
    return class_weight.astype(dtype)


def weight_of_classes(class_weight: Any, pred: jax.Array, axis: int) -> jax.Array | None:
    """(C,) of a config's `class_weight`: None, one each, or a number for each class of `axis`."""
    if class_weight is None:
        return None
    weight = jnp.asarray(class_weight)
    if weight.ndim:
        return weight
    return jnp.full(pred.shape[axis] if pred.ndim > 1 else 1, weight)


def warn_of_ignored(loss: Any) -> None:
    """Warns of a loss whose ignored labels count in its mean."""
    if loss.ignore_index is not None and loss.reduction == "mean" and not loss.avg_non_ignore:
        warn(
            f"{type(loss).__name__}: ignored labels count in the mean; "
            "avg_non_ignore=True leaves them out, as torch's own cross entropy does"
        )


def of_each_class(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Target and weight of a loss of each class on its own, broadcasting against pred (..., C).

    Values (..., C) as floats; class indices (...) as integers (..., 1), whose values a formula
    asks of `dense`. Negative ones get weight 0, those above C, which is background, NaN.
    """
    if weight is not None and weight.ndim == 1 and weight.size == pred.size:
        weight = weight.reshape(pred.shape)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(pred.dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])
        target = target[..., None]
        weight = weight_without(target < 0, weight, pred.shape)
        weight = jnp.where((target > pred.shape[-1]) & (weight != 0), jnp.nan, weight)
    if weight is not None:
        weight = spread_weight(weight, pred.shape).astype(pred.dtype)
    return target, weight


def dense(pred: jax.Array, target: jax.Array) -> jax.Array:
    """`target` as values of pred's shape, where it is class indices (..., 1)."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        return class_mask(target[..., 0], pred.shape[-1]).astype(pred.dtype)
    return target
