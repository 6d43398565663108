"""Varifocal loss, of VarifocalNet."""

from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.losses.quality._quality import (
    QualityLoss,
    cross_entropy_of_quality,
    floats_and_quality,
)
from visdet_jax.reduction import Reduction, spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def varifocal_loss(
    pred: jax.Array,
    target: Any,
    weight: jax.Array | None = None,
    *,
    alpha: NonNegative = 0.75,
    gamma: Exponent = 2.0,
    iou_weighted: bool = True,
    detached: bool = False,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy with an IoU as its target, weighted down for easy negatives only.

    w BCE(p, t), p = sigmoid(pred), with w = t for positives (1 without `iou_weighted`) and
    w = alpha |p - t|^gamma elsewhere.

    The gradient flows through w too, as in mmdet, and is finite for every gamma ≥ 0. `detached`
    makes w and t constants, as RT-DETR and D-FINE have it.

    Args:
      pred: Logits (..., C).
      target: The IoU at an object's class and 0 elsewhere, (..., C), whose positives are those
        above 0; or (label, score), class indices (...) and IoUs (...), where a row's class is
        positive whatever its score. Labels outside [0, C) are background.
      weight: (...) or (..., C).
      alpha: Weight of the negatives, at least 0.
      gamma: Focusing exponent of the negatives, at least 0. Larger values down-weight easy
        negatives more; with 0 all count alike.
      iou_weighted: Positives count by their IoU.
      detached: No gradient flows through the weight w of a value, nor into the target.

    Returns: values of pred's shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit.
    Source: Zhang et al. 2021, https://arxiv.org/abs/2008.13367
    """
    pred, quality = floats_and_quality(pred, target)
    alpha, gamma = as_dtype(pred.dtype, alpha, gamma)
    if weight is not None:
        weight = spread_weight(weight, pred.shape).astype(pred.dtype)
    if detached:
        quality = jax.lax.stop_gradient(quality)
    values = cross_entropy_of_quality(
        weight, pred, quality, alpha, gamma, weighted_by_quality=iou_weighted, detached=detached
    )
    return weight_reduce_loss(values, None, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class VarifocalLoss(QualityLoss, function=varifocal_loss):
    """Varifocal loss: `varifocal_loss`; RT-DETR's and D-FINE's form is `detached=True`."""

    alpha: float = 0.75
    gamma: float = 2.0
    iou_weighted: bool = True
    detached: bool = False
