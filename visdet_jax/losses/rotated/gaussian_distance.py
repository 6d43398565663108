"""Distances of rotated boxes as Gaussians: Wasserstein and Kullback-Leibler."""

from dataclasses import dataclass
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._gaussians import (
    half_sides,
    kl_divergence,
    pair_of_boxes,
    pair_of_correlations,
    quotient,
    squared_centre_distance,
    wasserstein_of_boxes,
    wasserstein_of_correlations,
)
from visdet_jax.boxes._pairs import Columns
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import NonNegative, Positive
from visdet_jax.core.jitted import errors_named
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, bounded, rotated_loss
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES

# The least number that a root is taken of, and the least det P det T.
FLOOR = 1e-7


def _raise_for_options_of_another_type(loss_type: str, normalize: bool, sqrt: bool) -> None:
    if loss_type == "gwd" and not sqrt:
        raise ValueError("sqrt=False is of the other loss_types: gwd always takes the root")
    if loss_type != "gwd" and not normalize:
        raise ValueError(f"normalize=False is of gwd: {loss_type} has no scale")


def _root(x: jax.Array) -> jax.Array:
    return jnp.sqrt(clamp_min(x, FLOOR))


@rotated_loss
def gd_loss(
    pred: Columns,
    target: Columns,
    *,
    loss_type: Literal["gwd", "kld", "jd", "kld_symmax", "kld_symmin"] = "kld",
    representation: Literal["xy_wh_r", "xy_stddev_pearson"] = "xy_wh_r",
    fun: Literal["log1p", "sqrt", "none"] = "log1p",
    tau: NonNegative = 0.0,
    alpha: Positive = 1.0,
    normalize: bool = True,
    sqrt: bool = True,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """An increasing function of the distance of each pair of rotated boxes as Gaussians.

    fun(distance) for tau < 1, and 1 - 1 / (tau + fun(distance)) for tau ≥ 1. A box is the normal
    distribution around its centre whose standard deviations are half its sides. P and T are the
    covariances of pred and target, and d is the distance of their centres. The distance is, by
    loss_type:
    gwd: √(d² + alpha² W²), W² = tr P + tr T - 2 tr (P^½ T P^½)^½, the Wasserstein distance; with
      normalize divided by 2 (det P det T)^⅛;
    kld: KL(T ‖ P) = ½ dᵀ P⁻¹ d / alpha² + ½ (tr P⁻¹T - 2 - log(det T / det P));
    jd: the mean of KL(T ‖ P) and KL(P ‖ T);
    kld_symmax, kld_symmin: the larger and the smaller of these two.
    With sqrt it is the root of the last four.

    The loss is the same for (w, h, angle) and (h, w, angle ± π/2). As in mmrotate no root is taken
    of less than 1e-7, so that equal boxes cost a little (3.2e-4 with kld) and have gradient 0. For
    gwd det P det T is at least 1e-7, so that boxes below half a pixel all have one scale.

    Args:
      pred, target: Boxes (..., 5). With representation "xy_wh_r" they are the centre x, y, width
        and height in pixels, which are clamped to [1e-7, 1e7], and the angle in radians. With
        "xy_stddev_pearson" they are the centre x, y, the standard deviations along x and y in
        pixels, clamped to half of that, and their correlation, clamped to ±(1 - 1e-7).
      weight: (...), or (..., 5), of which the mean of the five counts.
      loss_type: The distance: "gwd", "kld", "jd", "kld_symmax" or "kld_symmin".
      representation: What the boxes' numbers are: "xy_wh_r" or "xy_stddev_pearson".
      fun: What is taken of the distance x: "log1p" for log(1 + x), "sqrt" for √x, "none" for x.
      tau: Bounds the loss by 1 where it is at least 1. Larger values bring the loss nearer to 1 and
        make its gradient smaller. Numbers from 0 to below 1 have no effect.
      alpha: How much the shapes count against the centres, above 0. Larger values let the shapes
        count for more.
      normalize: Makes gwd independent of the boxes' size. Must be True for the other loss_types.
      sqrt: Takes the root of the distance. Must be True for gwd, which always takes it.

    Returns: (...), at least 0, reduced as `weight_reduce_loss` says.
    Raises: ValueError for other names, for an option of another loss_type, and where the shapes
      differ or do not end in 5.
    Source: Yang et al. 2021, https://arxiv.org/abs/2101.11952 (gwd) and
      https://arxiv.org/abs/2106.01883 (kld); mmrotate 1.x's `GDLoss`.
    """
    _raise_for_options_of_another_type(loss_type, normalize, sqrt)
    if representation == "xy_wh_r":
        pred, target = half_sides(pred), half_sides(target)
        pair_of, wasserstein = pair_of_boxes, wasserstein_of_boxes
    else:
        pair_of, wasserstein = pair_of_correlations, wasserstein_of_correlations
    pair = pair_of(pred, target)
    if loss_type == "gwd":
        # mmrotate's √max(det P det T, 1e-7), without squaring what the root is taken of.
        exact = pair.root_det1 * pair.root_det2
        root = clamp_min(exact, FLOOR**0.5)
        shapes = wasserstein(pred, target, 2 * (root - exact))
        distance = _root(squared_centre_distance(pred, target) + alpha * alpha * shapes)
        if normalize:
            distance = distance / (2 * jnp.sqrt(jnp.sqrt(root)))
    else:
        by = quotient if loss_type in ("kld", "jd") else jnp.divide  # See `kl_divergence`.
        distance = kl_divergence(pair, alpha, by)
        if loss_type != "kld":
            other = kl_divergence(pair_of(target, pred), alpha, by)
            if loss_type == "jd":
                distance = (distance + other) / 2
            elif loss_type == "kld_symmax":
                distance = jnp.maximum(distance, other)
            else:
                distance = jnp.minimum(distance, other)
        distance = _root(distance) if sqrt else distance
    if fun == "log1p":
        distance = jnp.log1p(distance)
    elif fun == "sqrt":
        distance = _root(distance)
    return jnp.where(tau >= 1, bounded(distance, clamp_min(jnp.asarray(tau), 1)), distance)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GDLoss(RotatedLoss, function=gd_loss):
    """A distance of rotated boxes as Gaussians: `gd_loss` with its hyperparameters as fields.

    `loss_type` has no default.
    """

    loss_type: str
    representation: str = "xy_wh_r"
    fun: str = "log1p"
    tau: float = 0.0
    alpha: float = 1.0
    normalize: bool = True
    sqrt: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        with errors_named(type(self).__name__):
            _raise_for_options_of_another_type(self.loss_type, self.normalize, self.sqrt)

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        if self.representation == "xy_wh_r":
            return super().rules(pred, target, **extra)
        return [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]
