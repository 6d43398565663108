"""The few primitives whose value or gradient needs care, each with its reason."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero


@jax.custom_jvp
def absolute(x: jax.Array) -> jax.Array:
    """|x| with gradient sign(x): 0 at 0, as in torch. `jnp.abs` has 1 there."""
    return jnp.abs(x)


@absolute.defjvp
def _absolute_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return absolute(x), jnp.sign(x) * dx


def clamp_min(x: jax.Array, low: jax.Array | float) -> jax.Array:
    """max(x, low) with gradient 1 at x = low, as torch's clamp. `jnp.maximum` has 0.5 there.

    The comparison is false for NaN, which therefore stays.
    """
    return jnp.where(x < low, low, x)


def clamp(x: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """min(max(x, low), high) with gradient 1 at both bounds, as torch's clamp."""
    return jnp.where(x > high, high, clamp_min(x, low))


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 with gradient 0 where y is 0. A `where` after the division gives NaN there."""
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


def _unit(y, x):
    """Both over the larger of them, and that; 0, 1 and 1 of nothing."""
    size = jnp.maximum(jnp.abs(x), jnp.abs(y))
    nothing = size < jnp.finfo(x.dtype).tiny
    size = jnp.where(nothing, 1, size)
    return y / size, jnp.where(nothing, 1, x / size), size


@jax.custom_jvp
def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y) by half of it: arctan of one argument is the faster on a CPU.

    0 of (0, 0), and its gradient is finite there too.
    """
    y, x, _ = _unit(y, x)
    radius = jnp.sqrt(x * x + y * y)
    left = x < 0
    return 2 * jnp.arctan(jnp.where(left, radius - x, y) / jnp.where(left, y, radius + x))


@arctan2.defjvp
def _arctan2_jvp(primals, tangents):
    dy, dx = tangents
    y, x, size = _unit(*primals)
    return arctan2(*primals), (x * dy - y * dx) / ((x * x + y * y) * size)


@jax.tree_util.register_static
@dataclass(frozen=True)
class WholeExponent:
    """An exponent that is known when a program is compiled, so that powers are products."""

    value: int


def power(base: jax.Array, exponent: jax.Array | float | WholeExponent) -> jax.Array:
    """base ** exponent for base ≥ 0, with finite gradients at base 0 for every exponent.

    There d/dbase is 1 for exponent 1 and 0 for any other (for an exponent in (0, 1) the true
    slope is infinite, and times the 0 that follows in a focal weight it would make NaN), and
    d/dexponent is 0.
    """
    if isinstance(exponent, WholeExponent):
        return jax.lax.integer_pow(base, exponent.value)
    return _power(base, exponent)


def power_and_slope(
    base: jax.Array, exponent: jax.Array | float | WholeExponent
) -> tuple[jax.Array, jax.Array]:
    """`power`, and its derivative by the base, by one power of both."""
    if isinstance(exponent, WholeExponent):
        n = exponent.value
        slope = n * jax.lax.integer_pow(base, n - 1) if n else jnp.zeros_like(base)
        return power(base, exponent), slope
    nothing = base < jnp.finfo(jnp.result_type(base)).tiny  # whose inverse may not be finite
    less = _power(jnp.where(nothing, 1, base), exponent - 1)
    is_0, is_1 = (jnp.asarray(exponent == n, less.dtype) for n in (0, 1))
    return jnp.where(nothing, is_0, less * base), jnp.where(nothing, is_1, exponent * less)


@jax.custom_jvp
def _power(base, exponent):
    if jnp.result_type(base) != jnp.float32:
        return jnp.power(base, exponent)
    return _float32_power(base, jnp.asarray(exponent, jnp.float32))


def _power_jvp(primals, tangents):
    (base, exponent), (d_base, d_exponent) = primals, tangents
    out = _power(base, exponent)
    tangent = jnp.zeros_like(out)
    if not isinstance(d_base, SymbolicZero):
        tangent += power_and_slope(base, exponent)[1] * d_base
    if not isinstance(d_exponent, SymbolicZero):
        zero = base == 0
        tangent += jnp.where(zero, 0, out * jnp.log(jnp.where(zero, 1, base))) * d_exponent
    return out, tangent


_power.defjvp(_power_jvp, symbolic_zeros=True)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)) with gradient sigmoid(x). Autodiff of the stable form is wrong at 0."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return softplus(x), jax.nn.sigmoid(x) * dx


def _polynomials(function: Callable[[np.ndarray], np.ndarray], degrees: dict) -> dict:
    """Coefficients of `function` on [0, 1], by powers of 2 x - 1, for each dtype's degree."""
    nodes = (np.cos(np.pi * (np.arange(200) + 0.5) / 200) + 1) / 2
    values = function(nodes)
    fits = {
        np.dtype(dtype): np.polynomial.Chebyshev.fit(nodes, values, degree, domain=[0, 1])
        for dtype, degree in degrees.items()
    }
    kind = np.polynomial.Polynomial
    return {dtype: fit.convert(kind=kind, domain=[0, 1]).coef for dtype, fit in fits.items()}


def _evaluate(polynomials: dict, x: jax.Array) -> jax.Array:
    y = 2 * x - 1
    *rest, highest = polynomials[np.dtype(x.dtype)].tolist()
    total = jnp.full_like(y, highest)
    for coefficient in reversed(rest):
        total = total * y + coefficient
    return total


# Of log(1 + e) / e; off by 5e-9 and 9e-16, about as rounding is.
_LOG1P = _polynomials(lambda e: np.log1p(e) / e, {np.float32: 9, np.float64: 18})


def _log1p_to_1(e: jax.Array) -> jax.Array:
    """log(1 + e) for e in [0, 1], to 2 ulp in float32 and 6 in float64.

    No select and no division: in a loop with an exp it costs a third of `jnp.log1p`, which has
    forms for small and large arguments and computes both.
    """
    return _evaluate(_LOG1P, e) * e


def _logistic(minus_abs: Callable[[jax.Array], jax.Array]) -> Callable[..., tuple]:
    @jax.custom_jvp
    def logistic(x):
        e = jnp.exp(minus_abs(x))
        near = 1 / (1 + e)
        far = e * near
        positive = x >= 0
        return jnp.where(positive, near, far), jnp.where(positive, far, near), _log1p_to_1(e)

    @logistic.defjvp
    def _logistic_jvp(primals, tangents):
        (x,), (dx,) = primals, tangents
        p, not_p, tail = logistic(x)
        d_tail = jnp.where(x > 0, -not_p, jnp.where(x < 0, p, 0))
        return (p, not_p, tail), (p * not_p * dx, -p * not_p * dx, d_tail * dx)

    return logistic


# What the losses of logits x are made of: p = sigmoid(x), 1 - p to as many digits, and the tail
# log(1 + exp(-|x|)), which makes max(x, 0) + tail a softplus. The second is the same for slopes:
# it spells -|x| otherwise, since XLA would keep what value and slope share, 2 × pred, when it can
# compute it again in less time.
logistic = _logistic(lambda x: -jnp.abs(x))
logistic_of_slope = _logistic(lambda x: jnp.minimum(x, -x))


@jax.custom_jvp
def bce_with_logits(x: jax.Array, t: jax.Array) -> jax.Array:
    """-t log sigmoid(x) - (1 - t) log sigmoid(-x), finite for every finite logit x.

    max(x, 0) - t x cancels to an exact 0 for a hard target on its own side, so that small losses
    keep their digits: softplus(x) - t x has lost 1 % of them at x = 10.
    """
    return (jnp.maximum(x, 0) - t * x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _bce_with_logits_jvp(primals, tangents):
    (x, t), (dx, dt) = primals, tangents
    out = bce_with_logits(x, t)
    tangent = jnp.zeros_like(out)
    if not isinstance(dx, SymbolicZero):
        tangent += (jax.nn.sigmoid(x) - t) * dx
    if not isinstance(dt, SymbolicZero):
        tangent -= x * dt
    return out, tangent


bce_with_logits.defjvp(_bce_with_logits_jvp, symbolic_zeros=True)


_TORCH_EPS = float(np.float32(1e-12))


def _log_clamped(p: jax.Array) -> jax.Array:
    return clamp_min(jnp.log(p), -100)


@jax.custom_jvp
def bce_with_probs(p: jax.Array, t: jax.Array) -> jax.Array:
    """-t log p - (1 - t) log(1 - p) with logs of at least -100, as torch's binary_cross_entropy.

    Its gradient is torch's too: (p - t) / max(p (1 - p), 1e-12), finite at p = 0 and 1, with a
    float32 1e-12 in float64 as well.
    NaN where p is outside [0, 1].
    """
    return -(t * _log_clamped(p) + (1 - t) * _log_clamped(1 - p))


def bce_with_probs_slope(p: jax.Array, t: jax.Array) -> jax.Array:
    """The derivative of `bce_with_probs` by p."""
    return (p - t) / jnp.maximum(p * (1 - p), _TORCH_EPS)


def _bce_with_probs_jvp(primals, tangents):
    (p, t), (dp, dt) = primals, tangents
    out = bce_with_probs(p, t)
    tangent = jnp.zeros_like(out)
    if not isinstance(dp, SymbolicZero):
        tangent += bce_with_probs_slope(p, t) * dp
    if not isinstance(dt, SymbolicZero):
        tangent += (_log_clamped(1 - p) - _log_clamped(p)) * dt
    return out, tangent


bce_with_probs.defjvp(_bce_with_probs_jvp, symbolic_zeros=True)


# Of (2^r - 1) / r; off by 4e-9.
_EXP2 = _polynomials(lambda r: np.expm1(r * np.log(2)) / r, {np.float32: 6})


@jax.jit  # traced once for all losses of a shape
def _float32_power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """base ** exponent of base ≥ 0, in a third of the time of `jnp.power` on a CPU.

    To 4 ulp for exponents up to 2, to 10 for 7; what is subnormal is 0. Of inf it is inf.

    Of base = m 2^k and log2(base) = k + log2(m), whose product with the exponent keeps its digits
    in two parts: the exponent's first 12 bits times k are exact, and so is that less a whole
    number near the sum, which becomes the exponent of the result.
    """
    nothing = base < jnp.finfo(jnp.float32).tiny
    bits = jax.lax.bitcast_convert_type(jnp.where(nothing, 1, base), jnp.int32)
    k = ((bits >> 23) - 127).astype(jnp.float32)
    m = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    exponent_bits = jax.lax.bitcast_convert_type(exponent, jnp.int32)
    first = jax.lax.bitcast_convert_type(exponent_bits & -0x1000, jnp.float32)
    others = (exponent - first) * k + exponent * (_log1p_to_1(m - 1) / math.log(2))
    whole = jnp.floor(first * k + others)
    rest = jnp.clip((first * k - whole) + others, -1, 2)  # by rounding a little beyond 0 or 1
    whole = jnp.clip(whole, -127, 128).astype(jnp.int32)
    scale = jax.lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)
    out = (1 + _evaluate(_EXP2, rest) * rest) * scale
    out = jnp.where(nothing, (exponent == 0).astype(jnp.float32), out)
    return jnp.where(jnp.isfinite(base), out, base)  # inf and NaN


def _excess_over_square(v: np.ndarray) -> np.ndarray:
    """((1 + v) log(1 + v) - v) / v², as its Taylor remainder ∫ (1 - s) / (1 + s v) ds."""
    s, weight = np.polynomial.legendre.leggauss(40)
    s = (s + 1) / 2
    return ((1 - s) / (1 + s * v[:, None])) @ (weight / 2)


_EXCESS = _polynomials(_excess_over_square, {np.float32: 10, np.float64: 21})


@jax.custom_jvp
def log1p_excess(v: jax.Array) -> jax.Array:
    """(1 + v) log(1 + v) - v for v ≥ 0, with gradient log(1 + v), to a few ulp for small v too.

    It is about v² / 2, which the plain form takes as a difference of numbers near v: in float32
    7 % off at v = 1e-5.
    """
    small = _evaluate(_EXCESS, jnp.minimum(v, 1)) * v * v
    return jnp.where(v < 1, small, (1 + v) * jnp.log(1 + v) - v)


@log1p_excess.defjvp
def _log1p_excess_jvp(primals, tangents):
    (v,), (dv,) = primals, tangents
    return log1p_excess(v), jnp.log1p(v) * dv
