"""What the losses of pairs of boxes share: the check of their inputs and their weights."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from visdet_jax.function import check_same_shape
from visdet_jax.module import Loss
from visdet_jax.reduction import weighted_loss


def check_boxes(pred: jax.Array, target: jax.Array) -> None:
    """Raises a ValueError unless both are boxes (..., 4) of one shape."""
    check_same_shape(pred, target)
    if pred.ndim == 0 or pred.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (..., 4), got {pred.shape}")


def box_loss(formula: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`weighted_loss` for values (...) of boxes (..., 4), whose weight may be (..., 4) too."""
    return weighted_loss(formula, weight_of_values=_weight_of_boxes)


def _weight_of_boxes(boxes: jax.Array, weight: jax.Array) -> jax.Array:
    """A weight for each coordinate counts by its mean, as mmdet's box targets give it."""
    if weight.shape == boxes.shape:
        return weight.astype(boxes.dtype).mean(-1)
    if weight.shape == boxes.shape[:-1]:
        return weight
    raise ValueError(
        f"weight must have shape {boxes.shape[:-1]} or {boxes.shape}, got {weight.shape}"
    )


@dataclass(frozen=True, kw_only=True)
class BoxLoss(Loss):
    """Base of the losses that are of boxes, and of no other four numbers."""
