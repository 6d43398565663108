"""Tversky loss: overlap of the regions of a segmentation, misses and false alarms weighed apart."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import softmax
from visdet_jax.losses._class_targets import check_class_weight, class_mask, weight_of_classes
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight, weight_reduce_loss, zero_where_unweighted
from visdet_jax.registry import LOSSES


@jitted
def tversky_loss(
    pred,
    target,
    weight=None,
    *,
    smooth=1.0,
    class_weight=None,
    ignore_index=255,
    alpha=0.3,
    beta=0.7,
    reduction="mean",
    avg_factor=None,
):
    """One minus the Tversky index of each class's region, the mean over the classes.

    Σ_c w_c (1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth)) / C, with p = softmax(pred),
    TP = Σ t p, FP = Σ (1 - t) p and FN = Σ t (1 - p) over an image's pixels, t the one-hot labels.
    alpha = beta = 0.5 is Dice's index. A class that `ignore_index` names costs 0, yet C counts it.
    Nothing against nothing costs 0, for smooth = 0 too.

    MMSegmentation's form. Kornia's (before 0.9) sums over the classes first: FP = FN there, and
    only alpha + beta counts.

    Args:
      pred: logits (N, C, ...).
      target: class indices (N, ...). Pixels that are negative or `ignore_index` are left out; any
        other of C or more makes the image's loss NaN: there is no such class.
      weight: (N,).
      smooth: added to both sides of the quotient, in pixels.
      class_weight: (C,).
      ignore_index: an index that is left out; None for none but the negative ones.
      alpha: weight of a pixel's false alarms.
      beta: weight of its misses.
    Returns: (N,), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Salehi et al. 2017, https://arxiv.org/abs/1706.05721
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    images, channels = pred.shape[:1], pred.shape[1]
    target = as_labels("target", target, images + pred.shape[2:])
    class_weight = check_class_weight(class_weight, channels, dtype)
    alpha, beta, smooth = as_dtype(dtype, alpha, beta, smooth)
    named = jnp.zeros(channels, bool)
    left_out = target < 0
    if ignore_index is not None:
        left_out |= target == ignore_index
        named = jnp.arange(channels) == ignore_index
    unknown = ((target >= channels) & ~left_out).any(tuple(range(1, target.ndim)))
    weight = jnp.ones(images, dtype) if weight is None else spread_weight(weight, images)
    weight = jnp.where(unknown & (weight != 0), jnp.nan, weight.astype(dtype))
    read = jnp.expand_dims(~left_out, 1)
    pred = zero_where_unweighted(jnp.where(read, pred.astype(dtype), 0), weight)

    p = softmax(pred, axis=1)
    own = jnp.moveaxis(class_mask(target, channels), -1, 1) & read
    pixels = tuple(range(2, pred.ndim))
    hits = jnp.where(own, p, 0).sum(pixels)
    misses = jnp.where(own, 1 - p, 0).sum(pixels)
    false_alarms = jnp.where(read & ~own, p, 0).sum(pixels)
    wrong = alpha * false_alarms + beta * misses
    share = jnp.where(named, 0, 1 if class_weight is None else class_weight).astype(dtype)
    values = (share[None] * divide(wrong, hits + wrong + smooth)).sum(1) / channels
    return weight_reduce_loss(values, weight, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class TverskyLoss(Loss):
    """Flax shim of `tversky_loss`.

    A single number as `class_weight` is every class's.
    """

    smooth: float = 1.0
    class_weight: float | tuple[float, ...] | None = None
    ignore_index: int | None = 255
    alpha: float = 0.3
    beta: float = 0.7

    def rules(self, pred, target, **extra):
        labels = classes(pred.shape[1] - 1, self.ignore_index)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def compute(self, pred, target, weight, **reduce):
        return tversky_loss(
            pred,
            target,
            weight,
            smooth=self.smooth,
            class_weight=weight_of_classes(self.class_weight, pred, axis=1),
            ignore_index=self.ignore_index,
            alpha=self.alpha,
            beta=self.beta,
            **reduce,
        )
