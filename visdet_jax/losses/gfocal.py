"""Quality focal and distribution focal loss, of Generalized Focal Loss."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.function import (
    as_dtype,
    check_array,
    check_same_shape,
    compute_dtype,
    jitted,
)
from visdet_jax.module import Loss
from visdet_jax.numerics import absolute, bce_with_logits, bce_with_probs, power
from visdet_jax.reduction import weight_reduce_loss, weighted_loss, zero_where_unweighted
from visdet_jax.registry import LOSSES


@jitted
def quality_focal_loss(
    pred, target, weight=None, *, beta=2.0, activated=False, reduction="mean", avg_factor=None
):
    """Focal loss towards a quality score instead of 1: class and localization in one.

    Σ over classes of |q - p|^beta BCE(p, q), p = sigmoid(pred), with q the score (the IoU, say)
    at a row's class and 0 elsewhere.

    Gradients are finite for every beta ≥ 0 (the reference's are NaN for beta < 1 at p = q).

    Args:
      pred: logits (..., C); probabilities where `activated`.
      target: (label, score), class indices (...) and floats (...) in [0, 1], every label outside
        [0, C) being background; or q itself, (..., C), as one array.
      beta: how much less for what is near its score.
    Returns: (...), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    if isinstance(target, tuple | list):
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
        is_class = jax.nn.one_hot(index, pred.shape[-1], dtype=bool)
        quality = jnp.where(is_class, score.astype(dtype)[..., None], 0)
    else:
        dtype = compute_dtype(pred=pred, target=target)
        check_same_shape(pred, target)
        quality = target.astype(dtype)
    pred, beta = pred.astype(dtype), as_dtype(dtype, beta)
    if weight is not None:
        check_array("weight", weight)
        pred = zero_where_unweighted(pred, weight)
        quality = zero_where_unweighted(quality, weight)
    if activated:
        p, bce = pred, bce_with_probs(pred, quality)
    else:
        p, bce = jax.nn.sigmoid(pred), bce_with_logits(pred, quality)
    values = (power(absolute(quality - p), beta) * bce).sum(-1)
    return weight_reduce_loss(values, weight, reduction, avg_factor)


@weighted_loss
def distribution_focal_loss(pred, target):
    """Cross entropy with the two bins around a continuous target, by their nearness.

    (right - target) CE(pred, left) + (target - left) CE(pred, right), left = trunc(target),
    right = left + 1.

    Args:
      pred: logits of the bins 0 to n, (..., n + 1).
      target: (...) in [0, n], in bins: a distance over its stride. At -1 and below the row is
        ignored, above n its loss is NaN: no bins are there. (Between -1 and 0 the formula
        extrapolates, as the reference's.)
    Returns: (...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    if target.shape != pred.shape[:-1]:
        raise ValueError(f"target must have shape {pred.shape[:-1]}, got {target.shape}")
    top = pred.shape[-1] - 1
    ignored = target <= -1
    pred = jnp.where(ignored[..., None], 0, pred)
    target = jnp.where(ignored, 0, target)
    left = jnp.trunc(jax.lax.stop_gradient(target))
    right_share = target - left
    # Shares by compares over the bins: three times faster backwards than two gathers.
    bins = jax.lax.broadcasted_iota(pred.dtype, pred.shape, pred.ndim - 1)
    left, right_share = left[..., None], right_share[..., None]
    share = jnp.where(bins == left, 1 - right_share, jnp.where(bins == left + 1, right_share, 0))
    values = -(share * jax.nn.log_softmax(pred, axis=-1)).sum(-1)
    values = jnp.where(target > top, jnp.nan, values)
    return jnp.where(ignored, 0, values)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class QualityFocalLoss(Loss):
    """Flax shim of `quality_focal_loss`."""

    use_sigmoid: bool = True
    beta: float = 2.0
    activated: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.refuse_softmax(self.use_sigmoid)

    def compute(self, pred, target, weight, **reduce):
        return quality_focal_loss(
            pred, target, weight, beta=self.beta, activated=self.activated, **reduce
        )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DistributionFocalLoss(Loss):
    """Flax shim of `distribution_focal_loss`."""

    def compute(self, pred, target, weight, **reduce):
        return distribution_focal_loss(pred, target, weight, **reduce)
