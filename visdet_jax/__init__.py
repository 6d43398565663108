"""Detection losses for JAX: pure jitted functions, a registry of configs, Flax shims."""

from visdet_jax import configs
from visdet_jax.boxes import bbox_overlaps
from visdet_jax.losses import *  # noqa: F403
from visdet_jax.losses import __all__ as _losses
from visdet_jax.module import Loss, StatefulLoss
from visdet_jax.reduction import reduce_loss, reduce_mean, weight_reduce_loss, weighted_loss
from visdet_jax.registry import LOSSES, MODELS, Registry, build_loss
