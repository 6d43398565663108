"""The Wasserstein distance of boxes as normal distributions (NWD), for tiny objects."""

from dataclasses import dataclass
from typing import Literal, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, pair_geometry
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import NonNegative, Positive
from visdet_jax.losses.boxes.box_loss import BoxLoss, box_loss
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@box_loss
def wasserstein_loss(
    pred: Columns,
    target: Columns,
    *,
    mode: Literal["exp", "sqrt", "log", "norm_sqrt", "w2"] = "exp",
    gamma: Positive = 2.0,
    constant: Positive = 12.8,
    eps: NonNegative = 1e-6,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """An increasing function of the Wasserstein distance W of each pair of boxes.

    W² = d² + ((Δw)² + (Δh)²) / 4, d between the centres: that of the normal distributions with
    the boxes' centres as means and half their sides as standard deviations.
    exp: 1 - exp(-W / constant); sqrt: W; log: log(1 + W²); norm_sqrt: 1 - 1 / (gamma + W);
    w2: W².

    It tells boxes apart that do not overlap, and depends on their size in pixels.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      mode: "exp", "sqrt", "log", "norm_sqrt" or "w2".
      gamma: Of norm_sqrt, in pixels, above 0. Larger values lower the gradient of boxes that are
        near each other; equal boxes cost 1 - 1 / gamma.
      constant: Of exp, in pixels, above 0: about the size of the data set's objects, 12.8 in
        AI-TOD. Larger values leave a gradient to boxes that are further apart.
      eps: Added to W², in pixels squared, at least 0. Equal boxes cost a little more than without,
        with gradient 0 in either case.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    Source: Wang et al. 2021, https://arxiv.org/abs/2110.13389
    """
    pair = pair_geometry(pred, target)
    width, height = pair.width1 - pair.width2, pair.height1 - pair.height2
    squared = pair.squared_distance + eps + (width**2 + height**2) / 4
    if mode == "w2":
        return squared
    if mode == "log":
        return jnp.log1p(squared)
    zero = squared == 0
    distance = jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))
    if mode == "sqrt":
        return distance
    if mode == "norm_sqrt":
        return 1 - divide(jnp.ones_like(distance), gamma + distance)
    return -jnp.expm1(-distance / constant)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class WassersteinLoss(BoxLoss, function=wasserstein_loss):
    """Wasserstein loss (NWD): `wasserstein_loss` with its hyperparameters as fields."""

    mode: str = "exp"
    gamma: float = 2.0
    constant: float = 12.8
    eps: float = 1e-6
