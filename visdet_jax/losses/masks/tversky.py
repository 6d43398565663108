"""Tversky loss: overlap of a segmentation's regions, with weights for misses and false alarms."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import softmax
from visdet_jax.losses._class_targets import (
    ClassWeight,
    check_class_weight,
    weight_of_classes,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import (
    Reduction,
    spread_weight,
    weight_reduce_loss,
    zero_where_unweighted,
)
from visdet_jax.registry import LOSSES


@jitted
def tversky_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    smooth: NonNegative = 1.0,
    class_weight: ClassWeight | None = None,
    ignore_index: int | None = 255,
    alpha: NonNegative = 0.3,
    beta: NonNegative = 0.7,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """One minus the Tversky index of each class's region, the mean over the classes.

    Σ_c w_c (1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)) / C, with p = softmax(pred),
    TP = Σ t p, FP = Σ (1 - t) p and FN = Σ t (1 - p) over an image's pixels, t the one-hot labels.
    alpha = beta = 0.5 is Dice's index. A class that `ignore_index` names costs 0, yet C counts it.
    Nothing against nothing costs 0, for smooth = 0 too.

    MMSegmentation's form. Kornia's (before 0.9) sums over the classes first: FP = FN there, and
    only alpha + beta counts.

    Args:
      pred: Logits (N, C, ...).
      target: Class indices (N, ...). Pixels that are negative or `ignore_index` are left out; any
        other of C or more makes the image's loss NaN: there is no such class.
      weight: (N,).
      smooth: Added to both sides of the quotient, in pixels, at least 0. Larger values make small
        regions count less.
      class_weight: Weights of the classes (C,), at least 0.
      ignore_index: An index that is left out. None leaves out only the negative ones.
      alpha: Weight of a pixel's false alarms, at least 0. Larger values lead to smaller regions.
      beta: Weight of a pixel's misses, at least 0. Larger values lead to larger regions.

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Salehi et al. 2017, https://arxiv.org/abs/1706.05721
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    images, channels = pred.shape[:1], pred.shape[1]
    target = as_labels("target", target, images + pred.shape[2:])
    class_weight = check_class_weight(class_weight, channels, dtype)
    alpha, beta, smooth = as_dtype(dtype, alpha, beta, smooth)
    is_ignored_class = jnp.zeros(channels, bool)
    is_ignored = target < 0
    if ignore_index is not None:
        is_ignored |= target == ignore_index
        is_ignored_class = jnp.arange(channels) == ignore_index
    is_unknown = ((target >= channels) & ~is_ignored).any(tuple(range(1, target.ndim)))
    weight = jnp.ones(images, dtype) if weight is None else spread_weight(weight, images)
    weight = jnp.where(is_unknown & (weight != 0), jnp.nan, weight.astype(dtype))
    is_read = jnp.expand_dims(~is_ignored, 1)
    pred = zero_where_unweighted(jnp.where(is_read, pred.astype(dtype), 0), weight)

    p = softmax(pred, axis=1)
    own = is_at(jnp.expand_dims(target, 1), pred, axis=1) & is_read
    pixels = tuple(range(2, pred.ndim))
    hits = jnp.where(own, p, 0).sum(pixels)
    misses = jnp.where(own, 1 - p, 0).sum(pixels)
    false_alarms = jnp.where(is_read & ~own, p, 0).sum(pixels)
    errors = alpha * false_alarms + beta * misses
    of_classes = jnp.where(is_ignored_class, 0, 1 if class_weight is None else class_weight)
    of_classes = of_classes.astype(dtype)[None]
    values = (of_classes * divide(errors, hits + errors + smooth)).sum(1) / channels
    return weight_reduce_loss(values, weight, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class TverskyLoss(Loss, function=tversky_loss):
    """Tversky loss: `tversky_loss` with its hyperparameters as fields.

    Args:
      class_weight: A weight for each class, or one number for all, at least 0.
    """

    smooth: float = 1.0
    class_weight: float | tuple[float, ...] | None = None
    ignore_index: int | None = 255
    alpha: float = 0.3
    beta: float = 0.7

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        labels = classes(pred.shape[1] - 1, self.ignore_index)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(
        self, pred: jax.Array, target: Any, weight: jax.Array | None, **options: Any
    ) -> jax.Array:
        class_weight = weight_of_classes(self.class_weight, pred, axis=1)
        settings = self.settings | {"class_weight": class_weight}
        return tversky_loss(pred, target, weight, **settings, **options)
