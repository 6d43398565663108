"""L1 and smooth L1."""

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.elementary import absolute
from visdet_jax.core.hyperparameters import NonNegative
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, weighted_loss
from visdet_jax.registry import LOSSES


def _d_l1(pred: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.sign(pred - target)


@weighted_loss(derivative=_d_l1)
def l1_loss(pred: jax.Array, target: jax.Array, **reduce: Unpack[Reduce]) -> jax.Array:
    """Absolute error: |pred - target|, with gradient 0 where they are equal.

    Args:
      pred, target: Arrays of one shape, in any unit.

    Returns: values of that shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ.
    """
    check_same_shape(pred, target)
    return absolute(pred - target)


def _d_smooth_l1(pred: jax.Array, target: jax.Array, *, beta: jax.Array) -> jax.Array:
    diff = pred - target
    return jnp.where(beta > 0, jnp.clip(diff / _divisor(beta), -1, 1), jnp.sign(diff))


def _divisor(beta: jax.Array | float) -> jax.Array:
    """beta, or 1 for 0, which is L1 and has no parabola to divide."""
    return jnp.where(beta > 0, beta, 1)


@weighted_loss(derivative=_d_smooth_l1)
def smooth_l1_loss(
    pred: jax.Array, target: jax.Array, *, beta: NonNegative = 1.0, **reduce: Unpack[Reduce]
) -> jax.Array:
    """L1 with a parabola at its tip: Huber's loss of delta = beta, divided by beta.

    d² / (2 beta) where d = |pred - target| < beta, and d - beta / 2 elsewhere.

    Args:
      pred, target: Arrays of one shape.
      beta: Where the parabola ends, in pred's unit, at least 0. Smaller values come closer to
        L1, and 0 is L1, as in torch. (mmdet raises for 0.)

    Returns: values of that shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ.
    Source: Girshick 2015, https://arxiv.org/abs/1504.08083
    """
    check_same_shape(pred, target)
    diff = absolute(pred - target)
    # Keep the minimum. In a `where` of both sides d² overflows for a difference far above beta, and
    # the gradient by beta is 0 × inf = NaN.
    inner = jnp.minimum(diff, beta)
    return 0.5 * inner * (inner / _divisor(beta)) + (diff - inner)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class L1Loss(Loss, function=l1_loss):
    """Absolute error: `l1_loss`."""


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SmoothL1Loss(Loss, function=smooth_l1_loss):
    """L1 with a parabola at its tip: `smooth_l1_loss` with its hyperparameters as fields."""

    beta: float = 1.0
