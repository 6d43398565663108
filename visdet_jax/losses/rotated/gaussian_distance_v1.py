"""Distances of rotated boxes as Gaussians in their first form, Bhattacharyya's among them."""

from dataclasses import dataclass
from typing import Literal, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._gaussians import (
    bhattacharyya_distance,
    half_sides,
    kl_divergence,
    pair_of_boxes,
    quotient,
    squared_centre_distance,
    wasserstein_of_boxes,
)
from visdet_jax.boxes._pairs import Columns
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Positive
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, bounded, rotated_loss
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES

# The least squared distance.
FLOOR = 1e-6


@rotated_loss
def gd_loss_v1(
    pred: Columns,
    target: Columns,
    *,
    loss_type: Literal["gwd", "kld", "bcd"] = "kld",
    fun: Literal["sqrt", "log1p", ""] = "sqrt",
    tau: Positive = 1.0,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """`gd_loss` in its first form: 1 - 1 / (tau + fun(D)), with D a squared distance.

    With P and T the covariances of pred and target, and d the distance of their centres, D is, by
    loss_type:
    gwd: d² + W², the squared Wasserstein distance;
    kld: 2 KL(P ‖ T), the other direction than in `gd_loss`, and twice as much;
    bcd: ¼ dᵀ (P + T)⁻¹ d + ½ log(det((P + T) / 2) / √(det P det T)), the Bhattacharyya distance.
    It is at least 1e-6.

    Args:
      pred, target: Boxes (..., 5): centre x, y, width and height in pixels, which are clamped to
        [1e-7, 1e7], and angle in radians.
      weight: (...), or (..., 5), of which the mean of the five counts. These are real weights; in
        mmrotate rows of weight 0 are left out, and all others have weight 1.
      loss_type: The squared distance: "gwd", "kld" or "bcd".
      fun: What is taken of D: "sqrt" for √D, "log1p" for log(1 + D), and "", as in mmrotate, for D
        of bcd and log(1 + D) of kld. With "" the loss of gwd is log(1 + √D / (2 (det P det T)^⅛))
        itself, without tau.
      tau: Above 0, and at least 1 for a loss of at least 0. Larger values bring the loss nearer to
        1 and make its gradient smaller.

    Returns: (...), reduced as `weight_reduce_loss` says (mmrotate's is never reduced).
    Raises: ValueError for other names, and where the shapes differ or do not end in 5.
    Source: Yang et al. 2021, https://arxiv.org/abs/2101.11952 and
      https://arxiv.org/abs/2106.01883; mmrotate's `GDLoss_v1`.
    """
    pred, target = half_sides(pred), half_sides(target)
    pair = pair_of_boxes(target, pred) if loss_type == "kld" else pair_of_boxes(pred, target)
    if loss_type == "gwd":
        squared = squared_centre_distance(pred, target) + wasserstein_of_boxes(pred, target)
    else:
        squared = (
            2 * kl_divergence(pair, by=quotient)
            if loss_type == "kld"
            else bhattacharyya_distance(pair)
        )
    squared = clamp_min(squared, FLOOR)
    if fun == "" and loss_type == "gwd":
        scale = clamp_min(jnp.sqrt(jnp.sqrt(pair.root_det1 * pair.root_det2)), 1e-7)
        return jnp.log1p(jnp.sqrt(squared) / (2 * scale))
    if fun == "sqrt":
        return bounded(jnp.sqrt(squared), tau)
    if fun == "log1p" or loss_type == "kld":
        return bounded(jnp.log1p(squared), tau)
    return bounded(squared, tau)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GDLoss_v1(RotatedLoss, function=gd_loss_v1):
    """The first form of `GDLoss`: `gd_loss_v1` with its hyperparameters as fields.

    `loss_type` has no default.
    """

    loss_type: str
    fun: str = "sqrt"
    tau: float = 1.0
