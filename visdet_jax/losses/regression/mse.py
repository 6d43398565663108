"""Squared error."""

from dataclasses import dataclass
from typing import Unpack

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_same_shape
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, weighted_loss
from visdet_jax.registry import LOSSES


def _d_mse(pred: jax.Array, target: jax.Array) -> jax.Array:
    return 2 * (pred - target)


@weighted_loss(derivative=_d_mse)
def mse_loss(pred: jax.Array, target: jax.Array, **reduce: Unpack[Reduce]) -> jax.Array:
    """Squared error: (pred - target)².

    Args:
      pred, target: Arrays of one shape, in any unit.

    Returns: values of that shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ.
    """
    check_same_shape(pred, target)
    return jnp.square(pred - target)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MSELoss(Loss, function=mse_loss):
    """Squared error: `mse_loss`."""
