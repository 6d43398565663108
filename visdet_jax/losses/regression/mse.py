"""Squared error."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


def _derivative(pred, target):
    return 2 * (pred - target)


@weighted_loss(derivative=_derivative)
def mse_loss(pred, target):
    """Squared error.

    (pred - target)²

    Args:
      pred, target: arrays of one shape.
    Returns: values of that shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    """
    check_same_shape(pred, target)
    return jnp.square(pred - target)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MSELoss(Loss):
    """Flax shim of `mse_loss`."""

    def compute(self, pred, target, weight, **reduce):
        return mse_loss(pred, target, weight, **reduce)
