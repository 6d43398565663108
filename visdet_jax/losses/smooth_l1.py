"""L1 and smooth L1."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.function import check_same_shape
from visdet_jax.module import Loss
from visdet_jax.numerics import absolute
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


def _l1_slope(pred, target):
    return jnp.sign(pred - target)


def _smooth_l1_slope(pred, target, *, beta):
    return jnp.clip((pred - target) / beta, -1, 1)


@weighted_loss(slope=_l1_slope)
def l1_loss(pred, target):
    """Absolute error.

    |pred - target|, with gradient 0 where they are equal.

    Args:
      pred, target: arrays of one shape, in any unit.
    Returns: values of that shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    """
    check_same_shape(pred, target)
    return absolute(pred - target)


@weighted_loss(slope=_smooth_l1_slope)
def smooth_l1_loss(pred, target, *, beta=1.0):
    """L1 with a parabola at its tip: Huber's loss of delta = beta, divided by beta.

    d² / (2 beta) where d = |pred - target| < beta, d - beta / 2 elsewhere.

    Args:
      pred, target: arrays of one shape.
      beta: where the parabola ends, in pred's unit; > 0.
    Returns: values of that shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    Girshick 2015, https://arxiv.org/abs/1504.08083
    """
    check_same_shape(pred, target)
    diff = absolute(pred - target)
    # No `where`: its two sides overflow for a diff far above beta, and 0 × inf is NaN.
    inner = jnp.minimum(diff, beta)
    return 0.5 * inner * (inner / beta) + (diff - inner)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class L1Loss(Loss):
    """Flax shim of `l1_loss`."""

    def compute(self, pred, target, weight, **reduce):
        return l1_loss(pred, target, weight, **reduce)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SmoothL1Loss(Loss):
    """Flax shim of `smooth_l1_loss`."""

    beta: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self.refuse_unless_positive("beta")

    def compute(self, pred, target, weight, **reduce):
        return smooth_l1_loss(pred, target, weight, beta=self.beta, **reduce)
