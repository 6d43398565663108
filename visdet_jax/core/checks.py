"""Checks of arrays: what has the wrong shape or type is an error when the loss is traced."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_array(name: str, x: Any) -> None:
    """Raises a TypeError where `x` has no shape and dtype (a list, None, a string)."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}")


def check_same_shape(pred: jax.Array, target: jax.Array) -> None:
    """Raises a ValueError where one array would have to be broadcast to the other."""
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have the same shape, got {pred.shape} and {target.shape}"
        )


def as_labels(name: str, labels: Any, shape: tuple[int, ...] | None = None) -> jax.Array:
    """Class indices as int32 (int64 stays int64), whatever integers they were given as.

    In a narrow type the comparisons that follow would be wrong: uint8 has no -1, and 256 classes
    counted in uint8 begin again at 0. An unsigned label too large for int32 becomes its largest
    number, which is no class either.

    Raises: TypeError where `labels` are no integers, ValueError where they are not of `shape`
      (None: any shape).
    """
    check_array(name, labels)
    if shape is not None and labels.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {labels.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integer class indices, got {labels.dtype}")
    labels = jnp.asarray(labels)
    if labels.dtype in (jnp.int32, jnp.int64):
        return labels
    if labels.dtype in (jnp.uint32, jnp.uint64):
        labels = jnp.minimum(labels, np.asarray(np.iinfo(np.int32).max, labels.dtype))
    return labels.astype(jnp.int32)
