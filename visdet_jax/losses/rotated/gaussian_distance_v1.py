"""Distances of rotated boxes as Gaussians in their first form, Bhattacharyya's among them."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._gaussians import (
    bhattacharyya,
    box_pair,
    box_wasserstein,
    half_sides,
    kl_divergence,
    squared_distance,
)
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.jitted import errors_named
from visdet_jax.losses.rotated._rotated_loss import RotatedLoss, bounded, check_choice, rotated_loss
from visdet_jax.registry import LOSSES

GD_V1_TYPES = ("gwd", "kld", "bcd")
GD_V1_FUNS = ("sqrt", "log1p", "")
FLOOR = 1e-6  # of the squared distances


def _check_options(loss_type, fun):
    check_choice("loss_type", loss_type, GD_V1_TYPES)
    check_choice("fun", fun, GD_V1_FUNS)


@rotated_loss
def gd_loss_v1(pred, target, *, loss_type="kld", fun="sqrt", tau=1.0):
    """`gd_loss` in its first form: 1 - 1 / (tau + fun(D)), D the squared distance.

    gwd: D = d² + W²; kld: D = 2 KL(P ‖ T), the other direction than there, and twice;
    bcd: D = ¼ dᵀ (P + T)⁻¹ d + ½ log(det((P + T) / 2) / √(det P det T)), the Bhattacharyya
    distance. All are at least 1e-6.
    fun: sqrt: √D; log1p: log(1 + D); "": D for bcd, log1p for kld as in the reference, and for gwd
    log(1 + √D / (2 (det P det T)^⅛)) itself, without tau.

    Args:
      pred, target: (..., 5): centre x, y, width and height in pixels, clamped to [1e-7, 1e7], and
        angle in radians. Weights: (...) or (..., 5), the latter by its mean: real ones, where the
        reference leaves out the rows of weight 0 and does not weigh the rest.
      loss_type: "gwd", "kld" or "bcd".
      fun: "sqrt", "log1p" or "".
      tau: ≥ 1 for a loss from 0.
    Returns: (...), before the weight and the reduction (of which the reference has none).
    Raises: ValueError for other names, where the shapes differ or do not end in 5.
    Yang et al. 2021, https://arxiv.org/abs/2101.11952, https://arxiv.org/abs/2106.01883;
    mmrotate's `GDLoss_v1`.
    """
    _check_options(loss_type, fun)
    pred, target = half_sides(pred), half_sides(target)
    pair = box_pair(target, pred) if loss_type == "kld" else box_pair(pred, target)
    if loss_type == "gwd":
        squared = squared_distance(pred, target) + box_wasserstein(pred, target)
    else:
        squared = 2 * kl_divergence(pair) if loss_type == "kld" else bhattacharyya(pair)
    squared = clamp_min(squared, FLOOR)
    if fun == "" and loss_type == "gwd":
        scale = clamp_min(jnp.sqrt(jnp.sqrt(pair.root1 * pair.root2)), 1e-7)
        return jnp.log1p(jnp.sqrt(squared) / (2 * scale))
    if fun == "sqrt":
        squared = jnp.sqrt(squared)
    elif fun == "log1p" or loss_type == "kld":
        squared = jnp.log1p(squared)
    return bounded(squared, tau)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GDLoss_v1(RotatedLoss):
    """Flax shim of `gd_loss_v1`; `loss_type` has no default."""

    loss_type: str
    fun: str = "sqrt"
    tau: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        with errors_named(type(self).__name__):
            _check_options(self.loss_type, self.fun)

    def compute(self, pred, target, weight, **reduce):
        return gd_loss_v1(
            pred, target, weight, loss_type=self.loss_type, fun=self.fun, tau=self.tau, **reduce
        )
