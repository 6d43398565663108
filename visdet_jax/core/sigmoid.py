"""What the losses of logits are made of: sigmoids, softplus and binary cross entropy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.polynomial import log1p_on_unit


class Sigmoid(NamedTuple):
    """Logits x, and what losses are made of: p = sigmoid(x) and its complement.

    `not_p` is 1 - p with as many digits as p has, and `tail` is log(1 + exp(-|x|)), so that
    max(x, 0) + tail is softplus(x) = -log(1 - p).
    """

    logits: jax.Array
    p: jax.Array
    not_p: jax.Array
    tail: jax.Array

    @property
    def d_p(self) -> jax.Array:
        """The derivative of p by the logit: p (1 - p)."""
        return self.p * self.not_p

    @property
    def minus_log_p(self) -> jax.Array:
        """What a positive costs: -log p = softplus(-x)."""
        return jnp.maximum(-self.logits, 0) + self.tail

    @property
    def minus_log_not_p(self) -> jax.Array:
        """What a negative costs: -log(1 - p) = softplus(x)."""
        return jnp.maximum(self.logits, 0) + self.tail

    def bce(self, target: jax.Array) -> jax.Array:
        """Binary cross entropy -t log p - (1 - t) log(1 - p).

        max(x, 0) - t x is exactly 0 for a hard target on its own side, so that small losses keep
        their digits: softplus(x) - t x has lost 1 % of them at x = 10.
        """
        return (jnp.maximum(self.logits, 0) - target * self.logits) + self.tail

    def d_bce(self, target: jax.Array) -> jax.Array:
        """The derivative of `bce` by the logit: p - t, with all its digits for p near t = 1."""
        return self.p * (1 - target) - self.not_p * target


def _sigmoid_parts(minus_abs: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], Sigmoid]:
    @jax.custom_jvp
    def parts(x: jax.Array) -> Sigmoid:
        e = jnp.exp(minus_abs(x))
        near = 1 / (1 + e)
        far = e * near
        positive = x >= 0
        return Sigmoid(
            x, jnp.where(positive, near, far), jnp.where(positive, far, near), log1p_on_unit(e)
        )

    @parts.defjvp
    def parts_jvp(primals: Any, tangents: Any) -> Any:
        (x,), (dx,) = primals, tangents
        out = parts(x)
        d_tail = jnp.where(x > 0, -out.not_p, jnp.where(x < 0, out.p, 0))
        return out, Sigmoid(dx, out.d_p * dx, -out.d_p * dx, d_tail * dx)

    return parts


# Use the first in the value of a loss and the second in its hand-written derivative. They are the
# same function with -|x| spelt in two ways. Keep both: where value and derivative share one
# spelling, XLA computes it once and stores it between them, two more arrays of pred's size, though
# computing it again takes less time (`tests/core/test_closed_form.py` counts them).
sigmoid_parts = _sigmoid_parts(lambda x: -jnp.abs(x))
sigmoid_parts_in_derivative = _sigmoid_parts(lambda x: jnp.minimum(x, -x))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)) with gradient sigmoid(x). Autodiff of the stable form is wrong at 0."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx


@jax.custom_jvp
def bce_with_logits(x: jax.Array, t: jax.Array) -> jax.Array:
    """-t log sigmoid(x) - (1 - t) log sigmoid(-x), finite for every finite logit x.

    For losses that autodiff differentiates; see `Sigmoid.bce` for the form.
    """
    return (jnp.maximum(x, 0) - t * x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _bce_with_logits_jvp(primals: Any, tangents: Any) -> Any:
    (x, t), (dx, dt) = primals, tangents
    out = bce_with_logits(x, t)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += (jax.nn.sigmoid(x) - t) * dx
    if not isinstance(dt, SymbolicZero):
        tangent -= x * dt
    return out, tangent


bce_with_logits.defjvp(_bce_with_logits_jvp, symbolic_zeros=True)


# torch's own constant, which is a float32 in float64 too.
_TORCH_EPS = float(np.float32(1e-12))


def _log_at_least_minus_100(p: jax.Array) -> jax.Array:
    return clamp_min(jnp.log(p), -100)


@jax.custom_jvp
def bce_with_probs(p: jax.Array, t: jax.Array) -> jax.Array:
    """-t log p - (1 - t) log(1 - p) with logs of at least -100, as torch's binary_cross_entropy.

    The gradient is torch's too: (p - t) / max(p (1 - p), 1e-12), finite at p = 0 and 1.
    NaN where p is outside [0, 1].
    """
    return -(t * _log_at_least_minus_100(p) + (1 - t) * _log_at_least_minus_100(1 - p))


def d_bce_with_probs(p: jax.Array, t: jax.Array) -> jax.Array:
    """The derivative of `bce_with_probs` by p."""
    return (p - t) / jnp.maximum(p * (1 - p), _TORCH_EPS)


def _bce_with_probs_jvp(primals: Any, tangents: Any) -> Any:
    (p, t), (dp, dt) = primals, tangents
    out = bce_with_probs(p, t)
    tangent = jnp.zeros_like(out)
    if not isinstance(dp, SymbolicZero):
        tangent += d_bce_with_probs(p, t) * dp
    if not isinstance(dt, SymbolicZero):
        tangent += (_log_at_least_minus_100(1 - p) - _log_at_least_minus_100(p)) * dt
    return out, tangent


bce_with_probs.defjvp(_bce_with_probs_jvp, symbolic_zeros=True)
