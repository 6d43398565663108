"""IoU-aware binary cross entropy, of Align-DETR."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.sigmoid import sigmoid_parts, sigmoid_parts_in_derivative
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    floats_and_quality,
    is_positive,
    of_classes,
    weight_of_rows,
)
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def iou_aware_bce_loss(
    pred,
    target,
    weight=None,
    *,
    alpha=0.25,
    gamma: Exponent = 2.0,
    tau=None,
    gt_inds=None,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy with a mean of a box's score and its IoU as its target.

    Σ over classes of BCE(p, t) at a row's class, with t its `iou_aware_quality`, and
    p^gamma BCE(p, 0) elsewhere, p = sigmoid(pred). With tau, where several rows are matched to
    one object, t is also multiplied by their `rank_weight`.

    t is a constant to the gradient, p^gamma is not. In terms of logits, as rf-detr has it: finite
    for all (Align-DETR's logarithms are NaN once 1 - p is 0, at logits of 17 in float32).

    Args:
      pred: logits (..., C).
      target: (label, iou), class indices (...) and IoUs (...) in [0, 1], every label outside
        [0, C) being background.
      weight: (...). Rows of weight 0 have no rank.
      alpha: share of the score in t, that of the IoU being 1 - alpha; in [0, 1].
      gamma: how much less for negatives that are classified well.
      tau: see `rank_weight`; Align-DETR has 1.5. None for one row an object.
      gt_inds: see `rank_weight`; needed with tau.
    Returns: (...), summed over the classes, before the weight and the reduction.
    Raises: ValueError where shapes do not fit, or for tau without gt_inds; TypeError for a target
      that is no pair.
    Cai et al. 2023 (Align-DETR), https://arxiv.org/abs/2304.07527
    """
    if not isinstance(target, tuple | list):
        raise TypeError(f"target must be (label, iou), got {type(target).__name__}")
    pred, (label, iou) = floats_and_quality(pred, target)
    gamma, weight = as_dtype(pred.dtype, gamma), weight_of_rows(weight, pred)
    quality = iou_aware_quality(pred, label[..., 0], iou[..., 0], alpha=alpha)
    if tau is not None:
        if gt_inds is None:
            raise ValueError("gt_inds must say which rows are of one object: tau is given")
        check_array("gt_inds", gt_inds)
        ranked = (label >= 0) & (label < pred.shape[-1])
        ranked = (ranked if weight is None else ranked & (weight != 0))[..., 0]
        if gt_inds.shape == ranked.shape:  # if not, rank_weight says so
            gt_inds = jnp.where(ranked, gt_inds, 0)
        quality *= rank_weight(quality, gt_inds, tau=tau)
    values = _weighed(weight, pred, gamma, label, quality[..., None])
    return weight_reduce_loss(values.sum(-1), None, reduction, avg_factor)


def _value(pred, gamma, *quality):
    t = of_classes(pred, *quality)
    _, p, _, tail = sigmoid_parts(pred)
    focal = jnp.where(is_positive(pred, *quality), 1, power(p, gamma))
    return focal * ((jnp.maximum(pred, 0) - t * pred) + tail)


def _derivative(pred, gamma, *quality):
    t = of_classes(pred, *quality)
    _, p, not_p, tail = sigmoid_parts_in_derivative(pred)
    bce = (jnp.maximum(pred, 0) - t * pred) + tail
    focal, by_p = power_and_derivative(p, gamma)
    negative = focal * p + by_p * p * not_p * bce
    return jnp.where(is_positive(pred, *quality), p * (1 - t) - not_p * t, negative)


_weighed = closed_form(_value, _derivative)


@jitted
def iou_aware_quality(pred, label, iou, *, alpha=0.25):
    """How good each row is for its class: max(p^alpha IoU^(1 - alpha), 0.01).

    A constant to the gradient of pred and iou.

    Args:
      pred: logits (..., C), p being their sigmoids.
      label: class indices (...). Of labels outside [0, C) the result means nothing.
      iou: (...) in [0, 1].
      alpha: share of the score, in [0, 1].
    Returns: (...).
    Raises: ValueError where shapes do not fit.
    Cai et al. 2023, https://arxiv.org/abs/2304.07527
    """
    pred, (label, iou) = jax.lax.stop_gradient(floats_and_quality(pred, (label, iou)))
    alpha = as_dtype(pred.dtype, alpha)
    index = jnp.clip(label, 0, pred.shape[-1] - 1)
    own = jnp.take_along_axis(pred, index, axis=-1, mode="promise_in_bounds")[..., 0]
    return clamp_min(power(jax.nn.sigmoid(own), alpha) * power(iou[..., 0], 1 - alpha), 0.01)


@jitted
def rank_weight(quality, gt_inds, *, tau=1.5):
    """Less for rows that are not the best of their object: exp(-rank / tau).

    The rank is a row's place among the rows of the same object in the last axis: 0 for that of
    the largest quality, and the earlier first among equals. Align-DETR multiplies with it both
    t of `iou_aware_bce_loss` and its box losses. No gradient.

    Args:
      quality: (..., N), as `iou_aware_quality` gives it for the N boxes of an image.
      gt_inds: integers (..., N), k for the k-th object, 0 for background, whose weight is 1.
      tau: the larger, the more the others count.
    Returns: (..., N), in (0, 1].
    Raises: ValueError where shapes do not fit, TypeError for gt_inds that are floats.
    Cai et al. 2023, https://arxiv.org/abs/2304.07527
    """
    check_array("quality", quality)
    gt_inds = as_labels("gt_inds", gt_inds, quality.shape)
    dtype = compute_dtype(quality=quality)
    quality = jax.lax.stop_gradient(quality.astype(dtype))[..., None]
    others, theirs = (jnp.swapaxes(replicated(x), -1, -2) for x in (quality, gt_inds[..., None]))
    row = jax.lax.broadcasted_iota(jnp.int32, others.shape, others.ndim - 1)
    earlier = row < jnp.swapaxes(row, -1, -2)
    better = (others > quality) | ((others == quality) & earlier)
    same = (theirs == gt_inds[..., None]) & (theirs > 0)
    rank = (better & same).sum(-1, dtype=dtype)
    return jnp.exp(-rank / as_dtype(dtype, tau))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class IoUAwareBCELoss(QualityLoss):
    """Flax shim of `iou_aware_bce_loss`; with tau a call needs the keyword `gt_inds`."""

    alpha: float = 0.25
    gamma: float = 2.0
    tau: float | None = None

    def compute(self, pred, target, weight, gt_inds=None, **reduce):
        return iou_aware_bce_loss(
            pred,
            target,
            weight,
            alpha=self.alpha,
            gamma=self.gamma,
            tau=self.tau,
            gt_inds=gt_inds,
            **reduce,
        )
