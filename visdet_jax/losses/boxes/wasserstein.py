"""The Wasserstein distance of boxes as normal distributions (NWD), for tiny objects."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import divide
from visdet_jax.losses.boxes._box_loss import BoxLoss, box_loss
from visdet_jax.registry import LOSSES

WASSERSTEIN_MODES = ("exp", "sqrt", "log", "norm_sqrt", "w2")


@box_loss
def wasserstein_loss(pred, target, *, mode="exp", gamma=2.0, constant=12.8, eps=1e-6):
    """An increasing function of the Wasserstein distance W of each pair of boxes.

    W² = d² + ((Δw)² + (Δh)²) / 4, d between the centres: that of the normal distributions with
    the boxes' centres as means and half their sides as standard deviations.
    exp: 1 - exp(-W / constant); sqrt: W; log: log(1 + W²); norm_sqrt: 1 - 1 / (gamma + W);
    w2: W².

    It tells boxes apart that do not overlap, and depends on their size in pixels.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      mode: "exp", "sqrt", "log", "norm_sqrt" or "w2".
      gamma: of norm_sqrt.
      constant: of exp, in pixels: about the size of the data set's objects, 12.8 in AI-TOD; > 0.
      eps: added to W², in pixels squared: equal boxes cost a little more than 0, with gradient 0.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    Wang et al. 2021, https://arxiv.org/abs/2110.13389
    """
    if mode not in WASSERSTEIN_MODES:
        raise ValueError(f"mode must be one of {', '.join(WASSERSTEIN_MODES)}; got {mode!r}")
    pair = pair_geometry(pred, target)
    width, height = pair.width1 - pair.width2, pair.height1 - pair.height2
    squared = pair.dx**2 + pair.dy**2 + eps + (width**2 + height**2) / 4
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
class WassersteinLoss(BoxLoss):
    """Flax shim of `wasserstein_loss`."""

    mode: str = "exp"
    gamma: float = 2.0
    constant: float = 12.8
    eps: float = 1e-6

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("constant")
        if self.mode not in WASSERSTEIN_MODES:
            raise self.value_error(
                f"mode must be one of {', '.join(WASSERSTEIN_MODES)}; got {self.mode!r}"
            )

    def compute(self, pred, target, weight, **reduce):
        return wasserstein_loss(
            pred,
            target,
            weight,
            mode=self.mode,
            gamma=self.gamma,
            constant=self.constant,
            eps=self.eps,
            **reduce,
        )
