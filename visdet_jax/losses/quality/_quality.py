"""What the losses share whose target is a quality: a score for the class of each row's box."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_array, check_same_shape
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.rules import LOGITS, UNIT, Expected, classes
from visdet_jax.losses._class_targets import class_mask
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight

# Scores (..., C) as one array, or class indices and scores, both (..., 1).
Quality = tuple[jax.Array, ...]


def floats_and_quality(pred: Any, target: Any) -> tuple[jax.Array, Quality]:
    """`pred` and what it should be, as floats of one type.

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
    # Labels may be floats, as in the reference: those in [0, C) are truncated.
    index = jnp.where(label < 0, -1, label).astype(jnp.int32)
    return pred.astype(dtype), (index[..., None], score.astype(dtype)[..., None])


def of_classes(pred: jax.Array, target: jax.Array, score: jax.Array | None = None) -> jax.Array:
    """Each class's quality (..., C): `target` itself, or `score` at its class, 0 elsewhere."""
    return target if score is None else jnp.where(is_positive(pred, target, score), score, 0)


def is_positive(pred: jax.Array, target: jax.Array, score: jax.Array | None = None) -> jax.Array:
    """Whether an entry is its row's class, whatever the score; or has one, in an array."""
    return target > 0 if score is None else class_mask(target[..., 0], pred.shape[-1])


def weight_of_rows(weight: Any, pred: jax.Array) -> jax.Array | None:
    """Weights of the rows of pred (..., C) as (..., 1), for values that are not yet summed."""
    if weight is None:
        return None
    rows = spread_weight(weight, pred.shape[:-1]).astype(pred.dtype)
    return jnp.broadcast_to(rows, pred.shape[:-1])[..., None]


@dataclass(frozen=True, kw_only=True)
class QualityLoss(Loss):
    """Losses whose target is (label, score): class indices and the IoU of each row's box."""

    use_sigmoid: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid)

    def rules(self, pred, target, **extra):
        of_pred = Expected("pred", pred, LOGITS)
        if not isinstance(target, tuple | list):
            return [of_pred, Expected("target", target, UNIT)]
        label, score = target
        # -1 is background here, not a mark for rows to skip.
        labels = classes(pred.shape[-1], background=True)._replace(ignored=None)
        return [of_pred, Expected("label", label, labels), Expected("score", score, UNIT)]
