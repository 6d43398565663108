"""Distances of rotated boxes as Gaussians: Wasserstein and Kullback-Leibler."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._gaussians import (
    box_pair,
    box_wasserstein,
    half_sides,
    kl_divergence,
    pearson_pair,
    pearson_wasserstein,
    squared_distance,
)
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.jitted import errors_named
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, bounded, check_choice, rotated_loss
from visdet_jax.registry import LOSSES

GD_TYPES = ("gwd", "kld", "jd", "kld_symmax", "kld_symmin")
GD_REPRESENTATIONS = ("xy_wh_r", "xy_stddev_pearson")
GD_FUNS = ("log1p", "sqrt", "none")
FLOOR = 1e-7  # of what roots are taken of, and of det P det T


def _check_options(loss_type, representation, fun, normalize, sqrt):
    check_choice("loss_type", loss_type, GD_TYPES)
    check_choice("representation", representation, GD_REPRESENTATIONS)
    check_choice("fun", fun, GD_FUNS)
    if loss_type == "gwd" and not sqrt:
        raise ValueError("sqrt=False is of the other loss_types: gwd always takes the root")
    if loss_type != "gwd" and not normalize:
        raise ValueError(f"normalize=False is of gwd: {loss_type} has no scale")


def _root(x):
    return jnp.sqrt(clamp_min(x, FLOOR))


@rotated_loss
def gd_loss(
    pred,
    target,
    *,
    loss_type="kld",
    representation="xy_wh_r",
    fun="log1p",
    tau=0.0,
    alpha=1.0,
    normalize=True,
    sqrt=True,
):
    """An increasing function of the distance of each pair of rotated boxes as Gaussians.

    f = fun(distance), and 1 - 1 / (tau + f) for tau ≥ 1. A box is the normal distribution N(m, S)
    around its centre whose standard deviations are half its sides. With d between the centres:
    gwd: √(d² + alpha² W²), W² = tr P + tr T - 2 tr (P^½ T P^½)^½, the Wasserstein distance,
      normalize: over 2 (det P det T)^⅛;
    kld: KL(T ‖ P) = ½ dᵀ P⁻¹ d / alpha² + ½ (tr P⁻¹T - 2 - log(det T / det P)), P of pred, T of
      target;
    jd: the mean of KL(T ‖ P) and KL(P ‖ T); kld_symmax, kld_symmin: the larger, the smaller;
    sqrt: the root of these four.
    fun: log1p: log(1 + x); sqrt: √x; none: x.

    The same of (w, h, angle) and (h, w, angle ± π/2). As in the reference all roots are of at
    least 1e-7, so that equal boxes cost a little (kld 3.2e-4) with gradient 0, and for gwd
    det P det T is at least 1e-7: boxes below half a pixel have one scale.

    Args:
      pred, target: (..., 5): centre x, y, width and height in pixels, clamped to [1e-7, 1e7], and
        angle in radians; or, xy_stddev_pearson, centre x, y, the standard deviations, clamped to
        half of that, and their correlation, clamped to ±(1 - 1e-7). Weights: (...) or (..., 5),
        the latter by its mean.
      loss_type: "gwd", "kld", "jd", "kld_symmax" or "kld_symmin".
      representation: "xy_wh_r" or "xy_stddev_pearson".
      fun: "log1p", "sqrt" or "none".
      tau: at least 1 for a loss below 1; below 1 it has no effect.
      alpha: how much shapes count against centres; > 0.
      normalize: of gwd: independent of the boxes' size.
      sqrt: of the others.
    Returns: (...), from 0, before the weight and the reduction.
    Raises: ValueError for other names, for an option of another loss_type, where the shapes
      differ or do not end in 5.
    Yang et al. 2021, https://arxiv.org/abs/2101.11952 (gwd) and
    https://arxiv.org/abs/2106.01883 (kld); mmrotate 1.x.
    """
    _check_options(loss_type, representation, fun, normalize, sqrt)
    if representation == "xy_wh_r":
        pred, target = half_sides(pred), half_sides(target)
        pair_of, wasserstein = box_pair, box_wasserstein
    else:
        pair_of, wasserstein = pearson_pair, pearson_wasserstein
    pair = pair_of(pred, target)
    if loss_type == "gwd":
        # In the reference √max(det P det T, 1e-7), here without the square.
        exact = pair.root1 * pair.root2
        root = clamp_min(exact, FLOOR**0.5)
        shapes = wasserstein(pred, target, 2 * (root - exact))
        distance = _root(squared_distance(pred, target) + alpha * alpha * shapes)
        if normalize:
            distance = distance / (2 * jnp.sqrt(jnp.sqrt(root)))
    else:
        distance = kl_divergence(pair, alpha)
        if loss_type != "kld":
            both = distance, kl_divergence(pair_of(target, pred), alpha)
            if loss_type == "jd":
                distance = (both[0] + both[1]) / 2
            else:
                pick = jnp.maximum if loss_type == "kld_symmax" else jnp.minimum
                distance = pick(*both)
        distance = _root(distance) if sqrt else distance
    if fun == "log1p":
        distance = jnp.log1p(distance)
    elif fun == "sqrt":
        distance = _root(distance)
    return jnp.where(tau >= 1, bounded(distance, clamp_min(tau, 1)), distance)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GDLoss(RotatedLoss):
    """Flax shim of `gd_loss`; `loss_type` has no default."""

    loss_type: str
    representation: str = "xy_wh_r"
    fun: str = "log1p"
    tau: float = 0.0
    alpha: float = 1.0
    normalize: bool = True
    sqrt: bool = True

    def __post_init__(self):
        super().__post_init__()
        with errors_named(type(self).__name__):
            _check_options(self.loss_type, self.representation, self.fun, self.normalize, self.sqrt)
        self._raise_unless_positive("alpha")

    def rules(self, pred, target, **extra):
        if self.representation == "xy_wh_r":
            return super().rules(pred, target, **extra)
        return [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]

    def compute(self, pred, target, weight, **reduce):
        return gd_loss(
            pred,
            target,
            weight,
            loss_type=self.loss_type,
            representation=self.representation,
            fun=self.fun,
            tau=self.tau,
            alpha=self.alpha,
            normalize=self.normalize,
            sqrt=self.sqrt,
            **reduce,
        )
