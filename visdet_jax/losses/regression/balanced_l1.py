"""Balanced L1, of Libra R-CNN."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.elementary import absolute
from visdet_jax.core.polynomial import evaluate, fit_polynomials
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weighted_loss
from visdet_jax.registry import LOSSES


def _excess_over_square(v: np.ndarray) -> np.ndarray:
    """((1 + v) log(1 + v) - v) / v², as its Taylor remainder ∫ (1 - s) / (1 + s v) ds."""
    s, weight = np.polynomial.legendre.leggauss(40)
    s = (s + 1) / 2
    return ((1 - s) / (1 + s * v[:, None])) @ (weight / 2)


_EXCESS = fit_polynomials(_excess_over_square, {np.float32: 10, np.float64: 21})


@jax.custom_jvp
def log1p_excess(v: jax.Array) -> jax.Array:
    """(1 + v) log(1 + v) - v for v ≥ 0, with gradient log(1 + v), to a few ulp for small v too.

    It is about v² / 2, which the plain form takes as a difference of numbers near v: in float32
    that is 7 % off at v = 1e-5.
    """
    small = evaluate(_EXCESS, jnp.minimum(v, 1)) * v * v
    return jnp.where(v < 1, small, (1 + v) * jnp.log(1 + v) - v)


@log1p_excess.defjvp
def _log1p_excess_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    return log1p_excess(v), jnp.log1p(v) * dv


def _derivative(pred, target, *, alpha, gamma, beta):
    diff = pred - target
    b = jnp.expm1(gamma / alpha)
    v = b * jnp.minimum(jnp.abs(diff), beta) / beta
    # Of log1p_excess(v), log(1 + v); of v (log(1 + v) - 1), log(1 + v) - 1 / (1 + v).
    inner = jnp.log1p(v) + (beta - 1) * (jnp.log1p(v) - 1 / (1 + v))
    return jnp.sign(diff) * jnp.where(jnp.abs(diff) < beta, alpha / beta * inner, gamma)


@weighted_loss(derivative=_derivative)
def balanced_l1_loss(pred, target, *, alpha=0.5, gamma=1.5, beta=1.0):
    """L1 whose gradient rises as a logarithm, so that small errors count for more.

    With d = |pred - target| and b = exp(gamma / alpha) - 1:
    alpha / b (b d + 1) log(b d / beta + 1) - alpha d where d < beta,
    gamma d + gamma / b - alpha beta elsewhere.

    For beta other than 1 the two sides meet neither in value nor in slope; that is the
    reference's form, kept. Small d keep their digits here (in float32 the plain form is 7 % off
    at d = 1e-5).

    Args:
      pred, target: arrays of one shape.
      alpha: the smaller, the more small errors count; > 0.
      gamma: the slope at d = beta and beyond.
      beta: where the logarithm ends, in pred's unit; > 0.
    Returns: values of that shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    Pang et al. 2019, https://arxiv.org/abs/1904.02701
    """
    check_same_shape(pred, target)
    diff = absolute(pred - target)
    b = jnp.expm1(gamma / alpha)
    # Beyond beta the inner side is computed at beta, so that it cannot overflow.
    v = b * jnp.minimum(diff, beta) / beta
    # (beta v + 1) log(1 + v) - beta v, as the part for beta = 1 and the rest.
    inner = log1p_excess(v) + (beta - 1) * v * (jnp.log(1 + v) - 1)
    return jnp.where(diff < beta, alpha / b * inner, gamma * diff + gamma / b - alpha * beta)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class BalancedL1Loss(Loss):
    """Flax shim of `balanced_l1_loss`."""

    alpha: float = 0.5
    gamma: float = 1.5
    beta: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("beta")

    def compute(self, pred, target, weight, **reduce):
        return balanced_l1_loss(
            pred, target, weight, alpha=self.alpha, gamma=self.gamma, beta=self.beta, **reduce
        )
