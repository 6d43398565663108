"""Distribution focal loss, of Generalized Focal Loss."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected
from visdet_jax.losses.boxes._bins import bin_rule, two_bins_cross_entropy
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def distribution_focal_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy with the two bins around a continuous target, each by its nearness.

    (right - target) CE(pred, left) + (target - left) CE(pred, right), left = trunc(target),
    right = left + 1.

    Args:
      pred: Logits (..., n + 1) of the bins 0 to n.
      target: (...) in [0, n], in bins: a distance divided by its stride. At -1 and below the row
        is ignored. Above n its loss is NaN: there is no bin. Between -1 and 0 the formula
        extrapolates, as mmdet's does.
      weight: (...).

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit.
    Source: Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if target.shape != pred.shape[:-1]:
        raise ValueError(f"target must have shape {pred.shape[:-1]}, got {target.shape}")
    right = target - jnp.trunc(target)
    missing = target > pred.shape[-1] - 1
    values = two_bins_cross_entropy(pred, target, right, 1 - right, missing, weight)
    return weight_reduce_loss(values, None, reduction, avg_factor)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DistributionFocalLoss(Loss, function=distribution_focal_loss):
    """Cross entropy with the two bins around a continuous target: `distribution_focal_loss`."""

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, LOGITS), Expected("target", target, bin_rule(pred))]
