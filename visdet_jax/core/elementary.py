"""Elementary functions whose gradient is torch's where that of `jax.numpy` is another."""

from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_jvp
def absolute(x: jax.Array) -> jax.Array:
    """|x| with gradient sign(x): 0 at 0, as in torch. `jnp.abs` has gradient 1 there."""
    return jnp.abs(x)


@absolute.defjvp
def _absolute_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    return absolute(x), jnp.sign(x) * dx


def clamp_min(x: jax.Array, low: jax.Array | float) -> jax.Array:
    """max(x, low) with gradient 1 at x = low, as torch's clamp. `jnp.maximum` has 0.5 there.

    NaN stays NaN: it is not below anything.
    """
    return jnp.where(x < low, low, x)


def clamp(x: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """min(max(x, low), high) with gradient 1 at both bounds, as torch's clamp."""
    return jnp.where(x > high, high, clamp_min(x, low))


def divide(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 with gradient 0 where y is 0.

    The divisor is replaced before the division: a `where` after it would have the gradient NaN.
    """
    zero = y == 0
    return jnp.where(zero, 0, x / jnp.where(zero, 1, y))


@jax.custom_jvp
def arctan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of (x, y), and 0 for (0, 0), where the gradient is finite too.

    It is twice the arctangent of half the angle: on a CPU the arctangent of one argument is
    faster than that of two.
    """
    y, x, _ = _scaled_to_1(y, x)
    radius = jnp.sqrt(x * x + y * y)
    left = x < 0
    return 2 * jnp.arctan(jnp.where(left, radius - x, y) / jnp.where(left, y, radius + x))


@arctan2.defjvp
def _arctan2_jvp(primals: Any, tangents: Any) -> Any:
    dy, dx = tangents
    y, x, size = _scaled_to_1(*primals)
    return arctan2(*primals), (x * dy - y * dx) / ((x * x + y * y) * size)


def _scaled_to_1(y: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Both divided by the larger of |x| and |y|, and that number; (0, 1, 1) for (0, 0)."""
    size = jnp.maximum(jnp.abs(x), jnp.abs(y))
    both_zero = size < jnp.finfo(x.dtype).tiny
    size = jnp.where(both_zero, 1, size)
    return y / size, jnp.where(both_zero, 1, x / size), size
