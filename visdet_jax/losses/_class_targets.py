"""Class indices as targets, and the weights of classes, for the losses of class scores."""

from typing import Annotated, Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array, check_same_shape
from visdet_jax.core.hyperparameters import Range
from visdet_jax.core.one_hot import entry_at, is_at, places_along
from visdet_jax.core.softmax import log_sum_exp
from visdet_jax.core.warn import warn
from visdet_jax.reduction import spread_weight, weight_without

IGNORE_INDEX = -100  # torch's default
ClassWeight = Annotated[jax.Array, Range(0)]  # One weight a class, (C,).


def class_mask(labels: jax.Array, classes: int, axis: int = -1) -> jax.Array:
    """Which class each label is: bools with a new `axis` of size `classes`.

    A label out of range is no class.
    """
    labels = jnp.expand_dims(as_labels("labels", labels), axis)
    return labels + 1 == places_along(classes, labels.ndim, axis, labels.dtype)


def minus_log_p(pred: jax.Array, label: jax.Array, alone: bool = False) -> jax.Array:
    """-log p of each row's class, where p is the softmax along axis 1.

    Args:
      pred: Logits (N, C, ...).
      label: Class indices (N, 1, ...). Those out of range are read as some other class.
      alone: No derivative is taken; see `log_sum_exp`.

    Returns: (N, 1, ...).
    """
    m, log_sum = log_sum_exp(pred, 1, alone)
    return log_sum - entry_at(pred, label, axis=1, minus=m)


def is_ignored(target: jax.Array, ignore_index: jax.Array | int | None) -> jax.Array:
    """Where a target is negative or `ignore_index` (None: -100)."""
    return (target < 0) | (target == (IGNORE_INDEX if ignore_index is None else ignore_index))


def weight_of_labels(
    labels: jax.Array,
    ignored: jax.Array,
    weight: jax.Array | None,
    shape: tuple[int, ...],
    classes: int,
    dtype: Any,
    class_weight: jax.Array | None = None,
) -> jax.Array:
    """The weights of values that have one label each: 0 if it is ignored, NaN if it is no class.

    Args:
      labels: Class indices; their axes are those of `shape` or 1.
      ignored: Which labels are ignored, of the same shape.
      weight: Weights of the values; see `weight_reduce_loss`.
      shape: The shape of the values.
      classes: The number of classes.
      dtype: The type of the result.
      class_weight: Weights of the classes (C,). Each value's weight is multiplied by that of its
        class.
    """
    weight = spread_weight(weight_without(ignored, weight, shape), shape).astype(dtype)
    is_unknown = (labels >= classes) & (weight != 0)
    if class_weight is not None:
        # Keep this masked sum. `class_weight[labels]` is an error for explicitly sharded labels,
        # and TPUs and GPUs round the product one_hot @ class_weight to bfloat16 or TF32. On a CPU
        # it costs an array with an entry for each row and class.
        by_class = class_weight.reshape((1,) * labels.ndim + class_weight.shape)
        weight = weight * jnp.where(class_mask(labels, classes), by_class, 0).sum(-1)
    return jnp.where(is_unknown, jnp.nan, weight)


def check_class_weight(
    class_weight: jax.Array | None, classes: int, dtype: Any
) -> jax.Array | None:
    """`class_weight` (C,) in the type that is computed in."""
    if class_weight is None:
        return None
    check_array("class_weight", class_weight)
    if class_weight.shape != (classes,):
        raise ValueError(f"class_weight must have shape ({classes},), got {class_weight.shape}")
    return class_weight.astype(dtype)


def weight_of_classes(class_weight: Any, pred: jax.Array, axis: int) -> jax.Array | None:
    """A config's `class_weight` as an array (C,), or None.

    It is None, a number for each class, or one number for all classes along `axis` of pred.
    """
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


def classwise_target_and_weight(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Target and weight of a loss of each class on its own, broadcasting against pred (..., C).

    A dense target (..., C) becomes floats of pred's type. Class indices (...) become integers
    (..., 1), which a formula turns into floats by `dense_target`. A negative index gets weight 0,
    C is background, and an index above C gets weight NaN.
    """
    if weight is not None:
        check_array("weight", weight)
        if weight.ndim == 1 and weight.size == pred.size:
            weight = weight.reshape(pred.shape)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(pred.dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])[..., None]
        weight = weight_without(target < 0, weight, pred.shape)
        weight = jnp.where((target > pred.shape[-1]) & (weight != 0), jnp.nan, weight)
    if weight is not None:
        weight = spread_weight(weight, pred.shape).astype(pred.dtype)
    return target, weight


def dense_target(pred: jax.Array, target: jax.Array) -> jax.Array:
    """`target` as floats of pred's shape (..., C): class indices (..., 1) become one-hot."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        return is_at(target, pred, -1).astype(pred.dtype)
    return target
