"""Balanced L1, of Libra R-CNN."""

from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import check_same_shape
from visdet_jax.core.elementary import absolute
from visdet_jax.core.hyperparameters import Positive
from visdet_jax.core.polynomial import fit_polynomials
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, weighted_loss
from visdet_jax.registry import LOSSES


def _log1p_excess_over_square(v: np.ndarray) -> np.ndarray:
    """((1 + v) log(1 + v) - v) / v², as its Taylor remainder ∫₀¹ (1 - s) / (1 + s v) ds."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    s = (nodes + 1) / 2
    return ((1 - s) / (1 + s * v[:, None])) @ (weights / 2)


def _in_powers_of_v(polynomial: np.ndarray) -> list[float]:
    y = np.polynomial.Polynomial([-1, 2 / _SMALL])
    coefficients: np.ndarray = np.polynomial.Polynomial(polynomial)(y).coef
    return coefficients.tolist()


# Below it the polynomials of `log1p_excess` are used; they are off by 9e-8 and 2e-16.
_SMALL = 0.5
_LOG1P_EXCESS_OVER_SQUARE = {
    dtype: _in_powers_of_v(polynomial)
    for dtype, polynomial in fit_polynomials(
        lambda x: _log1p_excess_over_square(_SMALL * x), {np.float32: 5, np.float64: 16}
    ).items()
}


@jax.custom_jvp
def log1p_excess(v: jax.Array) -> jax.Array:
    """(1 + v) log(1 + v) - v for v ≥ 0, with gradient log(1 + v), to a few ulp for small v too.

    It is about v² / 2 for small v. The plain form is a difference of numbers near v there, and in
    float32 it is 7 % off at v = 1e-5.

    Keep the polynomial short, in powers of v, and without a bound on v, whose large powers are not
    chosen. With three terms more a GPU's compiler stores the values before it sums them, and value
    and gradient move 1.7 and 1.5 times the bytes (H200, jax 0.12).
    """
    *rest, highest = _LOG1P_EXCESS_OVER_SQUARE[np.dtype(v.dtype)]
    polynomial = jnp.full_like(v, highest)
    for coefficient in reversed(rest):
        polynomial = polynomial * v + coefficient
    return jnp.where(v < _SMALL, polynomial * v * v, (1 + v) * jnp.log(1 + v) - v)


@log1p_excess.defjvp
def _log1p_excess_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return log1p_excess(v), jnp.log1p(v) * dv


def _d_balanced_l1(
    pred: jax.Array, target: jax.Array, *, alpha: jax.Array, gamma: jax.Array, beta: jax.Array
) -> jax.Array:
    diff = pred - target
    b = jnp.expm1(gamma / alpha)
    v = (b / beta) * jnp.abs(diff)
    # Of beta log1p(v) - (beta - 1) / (1 + v), which is the derivative of log1p_excess(v) and
    # (beta - 1) times that of v (log(1 + v) - 1).
    inner = alpha * jnp.log1p(v) - alpha / beta * (beta - 1) / (1 + v)
    return jnp.sign(diff) * jnp.where(jnp.abs(diff) < beta, inner, gamma)


@weighted_loss(derivative=_d_balanced_l1)
def balanced_l1_loss(
    pred: jax.Array,
    target: jax.Array,
    *,
    alpha: Positive = 0.5,
    gamma: Positive = 1.5,
    beta: Positive = 1.0,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """L1 whose gradient rises as a logarithm, so that small errors count for more.

    With d = |pred - target| and b = exp(gamma / alpha) - 1:
    alpha / b (b d + 1) log(b d / beta + 1) - alpha d where d < beta,
    gamma d + gamma / b - alpha beta elsewhere.

    For beta other than 1 neither the values nor the gradients of the two sides meet at d = beta.
    This is mmdet's form, kept. Small d keep their digits here: in float32 the formula as it is
    written is 7 % off at d = 1e-5.

    Args:
      pred, target: Arrays of one shape.
      alpha: How steeply the gradient rises to gamma, above 0. Smaller values make it rise faster,
        so that small errors count for more.
      gamma: The size of the gradient at d = beta and beyond, above 0. Larger values let large
        errors count for more.
      beta: Where the logarithm ends, in pred's unit, above 0. Larger values make more errors count
        as small.

    Returns: values of that shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ.
    Source: Pang et al. 2019, https://arxiv.org/abs/1904.02701
    """
    check_same_shape(pred, target)
    diff = absolute(pred - target)
    b = jnp.expm1(gamma / alpha)
    # Keep the minimum. Without it `inner` overflows for a difference far above beta, and its
    # gradient by the hyperparameters is 0 × inf = NaN.
    v = (b / beta) * jnp.minimum(diff, beta)
    # This is (beta v + 1) log(1 + v) - beta v, split into its value for beta = 1 and the rest.
    inner = log1p_excess(v) + (beta - 1) * v * (jnp.log(1 + v) - 1)
    return jnp.where(diff < beta, alpha / b * inner, gamma * diff + (gamma / b - alpha * beta))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class BalancedL1Loss(Loss, function=balanced_l1_loss):
    """Balanced L1: `balanced_l1_loss` with its hyperparameters as fields."""

    alpha: float = 0.5
    gamma: float = 1.5
    beta: float = 1.0
