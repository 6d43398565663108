"""Powers of numbers from 0 up, with finite gradients and a fast form for whole exponents."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from visdet_jax.core.polynomial import evaluate, fit_polynomials, log1p_on_unit


@jax.tree_util.register_static
@dataclass(frozen=True)
class WholeExponent:
    """A whole exponent that is known when the program is compiled, so that powers are products."""

    value: int

    def __add__(self, other: int) -> "WholeExponent":
        return WholeExponent(self.value + other)


_Exponent = jax.Array | float | WholeExponent


def power(base: jax.Array, exponent: _Exponent) -> jax.Array:
    """base ** exponent for base ≥ 0, with finite gradients at base 0 for every exponent.

    At base 0 the derivative by the base is 1 for exponent 1 and 0 for any other. (For an exponent
    in (0, 1) the true derivative is infinite, and multiplied with the 0 that follows in a focal
    weight it would be NaN.) The derivative by the exponent is 0 there.
    """
    if isinstance(exponent, WholeExponent):
        return jax.lax.integer_pow(base, exponent.value)
    return _power(base, exponent)


def power_and_derivative(base: jax.Array, exponent: _Exponent) -> tuple[jax.Array, jax.Array]:
    """`power`, and its derivative by the base; both are made of one power, base^(exponent - 1)."""
    if isinstance(exponent, WholeExponent):
        n = exponent.value
        derivative = n * jax.lax.integer_pow(base, n - 1) if n else jnp.zeros_like(base)
        return power(base, exponent), derivative
    # Below the smallest normal number the power of exponent - 1 may not be finite.
    zero = base < jnp.finfo(jnp.result_type(base)).tiny
    lower_power = _power(jnp.where(zero, 1, base), exponent - 1)
    is_0, is_1 = (jnp.asarray(exponent == n, lower_power.dtype) for n in (0, 1))
    return (
        jnp.where(zero, is_0, lower_power * base),
        jnp.where(zero, is_1, exponent * lower_power),
    )


@jax.custom_jvp
def _power(base: jax.Array, exponent: jax.Array | float) -> jax.Array:
    if jnp.result_type(base) != jnp.float32:
        return jnp.power(base, exponent)
    return _float32_power(base, jnp.asarray(exponent, jnp.float32))


def _power_jvp(primals: Any, tangents: Any) -> Any:
    (base, exponent), (d_base, d_exponent) = primals, tangents
    out = _power(base, exponent)
    tangent = jnp.zeros_like(out)
    if not isinstance(d_base, SymbolicZero):
        tangent += power_and_derivative(base, exponent)[1] * d_base
    if not isinstance(d_exponent, SymbolicZero):
        zero = base == 0
        tangent += jnp.where(zero, 0, out * jnp.log(jnp.where(zero, 1, base))) * d_exponent
    return out, tangent


_power.defjvp(_power_jvp, symbolic_zeros=True)


# (2^r - 1) / r on [0, 1], to 4e-9.
_EXP2 = fit_polynomials(lambda r: np.expm1(r * np.log(2)) / r, {np.float32: 6})


@jax.jit  # Traced once for all losses of a shape.
def _float32_power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """base ** exponent for base ≥ 0, in a third of the time of `jnp.power` on a CPU.

    The error is at most 4 ulp for exponents up to 2 and 10 ulp for exponent 7. Subnormal bases
    count as 0; the power of inf is inf.

    With base = m 2^k, 1 ≤ m < 2, the result is 2^(exponent (k + log2 m)). That product keeps its
    digits when it is split: the first 12 bits of the exponent times k are exact in float32, and so
    is what is left of them after the whole part of the product is taken away. The whole part
    becomes the exponent bits of the result; 2^rest comes from a polynomial.
    """
    zero = base < jnp.finfo(jnp.float32).tiny
    bits = jax.lax.bitcast_convert_type(jnp.where(zero, 1, base), jnp.int32)
    k = ((bits >> 23) - 127).astype(jnp.float32)
    m = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) | 0x3F800000, jnp.float32)
    exponent_bits = jax.lax.bitcast_convert_type(exponent, jnp.int32)
    first_bits = jax.lax.bitcast_convert_type(exponent_bits & -0x1000, jnp.float32)
    other_terms = (exponent - first_bits) * k + exponent * (log1p_on_unit(m - 1) / math.log(2))
    whole = jnp.floor(first_bits * k + other_terms)
    # Rounding may take the rest a little below 0 or above 1.
    rest = jnp.clip((first_bits * k - whole) + other_terms, -1, 2)
    whole = jnp.clip(whole, -127, 128).astype(jnp.int32)
    scale = jax.lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)
    out = (1 + evaluate(_EXP2, rest) * rest) * scale
    out = jnp.where(zero, (exponent == 0).astype(jnp.float32), out)
    return jnp.where(jnp.isfinite(base), out, base)  # inf and NaN
