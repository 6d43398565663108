"""IoU-aware binary cross entropy, of Align-DETR."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Exponent, Fraction, Number, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import entry_at
from visdet_jax.core.power import power
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    cross_entropy_of_quality,
    floats_and_quality,
    weight_column,
)
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def iou_aware_bce_loss(
    pred: jax.Array,
    target: Any,
    weight: jax.Array | None = None,
    *,
    alpha: Fraction = 0.25,
    gamma: Exponent = 2.0,
    tau: Positive | None = None,
    gt_inds: jax.Array | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy with a mean of a box's score and its IoU as its target.

    Σ over classes of BCE(p, t) at a row's class, with t its `iou_aware_quality`, and of
    p^gamma BCE(p, 0) elsewhere, with p = sigmoid(pred). With tau, where several rows are matched
    to one object, t is also multiplied by their `rank_weight`.

    t is a constant to the gradient, p^gamma is not. Computed from logits, as in rf-detr, so that
    it is finite for all (Align-DETR's logarithms are NaN once 1 - p is 0, at logits of 17 in
    float32).

    Args:
      pred: Logits (..., C).
      target: (label, iou), class indices (...) and IoUs (...) in [0, 1], every label outside
        [0, C) being background.
      weight: (...). Rows of weight 0 have no rank.
      alpha: Exponent of the score in the target t, in [0, 1]; that of the IoU is 1 - alpha. Larger
        values bring t closer to the score.
      gamma: Focusing exponent of the negatives, at least 0. Larger values down-weight easy
        negatives more; with 0 all count alike.
      tau: Rank at which a row's target is multiplied by 1 / e, above 0; see `rank_weight`. Larger
        values lower less the targets of rows after the best of their object. Align-DETR has 1.5.
        None is for one row an object, and lowers none.
      gt_inds: The object of each row, see `rank_weight`; needed with tau.

    Returns: (...), summed over the classes, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, or for tau without gt_inds; TypeError for a target
      that is no pair.
    Source: Cai et al. 2023 (Align-DETR), https://arxiv.org/abs/2304.07527
    """
    if not isinstance(target, tuple | list):
        raise TypeError(f"target must be (label, iou), got {type(target).__name__}")
    pred, (label, iou) = floats_and_quality(pred, target)
    one, gamma = as_dtype(pred.dtype, 1.0, gamma)
    weight = weight_column(weight, pred)
    quality = iou_aware_quality(pred, label[..., 0], iou[..., 0], alpha=alpha)
    if tau is not None:
        if gt_inds is None:
            raise ValueError("gt_inds must say which rows are of one object: tau is given")
        gt_inds = as_labels("gt_inds", gt_inds, pred.shape[:-1])
        is_ranked = (label >= 0) & (label < pred.shape[-1])
        is_ranked = (is_ranked if weight is None else is_ranked & (weight != 0))[..., 0]
        quality *= rank_weight(quality, jnp.where(is_ranked, gt_inds, 0), tau=tau)
    values = cross_entropy_of_quality(weight, pred, (label, quality[..., None]), one, gamma)
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


@jitted
def iou_aware_quality(
    pred: jax.Array, label: jax.Array, iou: jax.Array, *, alpha: Fraction = 0.25
) -> jax.Array:
    """How good each row is for its class: max(p^alpha IoU^(1 - alpha), 0.01).

    A constant to the gradient of pred and iou.

    Args:
      pred: Logits (..., C), p being their sigmoids.
      label: Class indices (...). Of labels outside [0, C) the result means nothing.
      iou: (...) in [0, 1].
      alpha: Exponent of the score p, in [0, 1]; that of the IoU is 1 - alpha. Larger values bring
        the result closer to the score.

    Returns: (...), in [0.01, 1].
    Raises: ValueError where shapes do not fit.
    Source: Cai et al. 2023, https://arxiv.org/abs/2304.07527
    """
    pred, (label, iou) = jax.lax.stop_gradient(floats_and_quality(pred, (label, iou)))
    alpha = as_dtype(pred.dtype, alpha)
    p = jax.nn.sigmoid(entry_at(pred, label, axis=-1)[..., 0])
    return clamp_min(power(p, alpha) * power(iou[..., 0], 1 - alpha), 0.01)


@jitted
def rank_weight(quality: jax.Array, gt_inds: jax.Array, *, tau: Positive = 1.5) -> jax.Array:
    """A smaller weight for rows that are not the best of their object: exp(-rank / tau).

    The rank is a row's place among the rows of the same object in the last axis: 0 for that of
    the largest quality, and the earlier first among equals. Align-DETR multiplies both t of
    `iou_aware_bce_loss` and its box losses with it. No gradient.

    Args:
      quality: (..., N), as `iou_aware_quality` gives it for the N boxes of an image.
      gt_inds: Integers (..., N), k for the k-th object, 0 for background, whose weight is 1.
      tau: Rank at which the weight is 1 / e, above 0. With larger values the rows after the best
        count more.

    Returns: (..., N), in (0, 1].
    Raises: ValueError where shapes do not fit, TypeError for gt_inds that are floats.
    Source: Cai et al. 2023, https://arxiv.org/abs/2304.07527
    """
    check_array("quality", quality)
    gt_inds = as_labels("gt_inds", gt_inds, quality.shape)
    dtype = compute_dtype(quality=quality)
    quality = jax.lax.stop_gradient(quality.astype(dtype))[..., None]
    gt_inds = gt_inds[..., None]
    other_quality, other_gt_inds = (jnp.swapaxes(replicated(x), -1, -2) for x in (quality, gt_inds))
    row = jax.lax.broadcasted_iota(jnp.int32, other_quality.shape, other_quality.ndim - 1)
    is_earlier = row < jnp.swapaxes(row, -1, -2)
    is_better = (other_quality > quality) | ((other_quality == quality) & is_earlier)
    is_same_object = (other_gt_inds == gt_inds) & (other_gt_inds > 0)
    rank = (is_better & is_same_object).sum(-1, dtype=dtype)
    return jnp.exp(-rank / as_dtype(dtype, tau))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class IoUAwareBCELoss(QualityLoss, function=iou_aware_bce_loss):
    """IoU-aware loss: `iou_aware_bce_loss`; with tau a call needs the keyword `gt_inds`."""

    alpha: float = 0.25
    gamma: float = 2.0
    tau: float | None = None
