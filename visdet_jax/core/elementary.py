"""Elementary functions whose gradient is torch's where that of `jax.numpy` is another."""

import math
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
def divide_once(x: jax.Array, y: jax.Array) -> jax.Array:
    """`divide` with a derivative that divides once, and not by y².

    Keep it for the gradients of IoU, GIoU, DIoU, Efficient IoU and MPDIoU on a CPU. By `divide`
    they take up to 1.6 times as long and store 3 to 6 times as much (jax 0.10.2, where XLA makes
    one loop of each with it), or 1.05 to 1.5 times as long and 1.1 to 1.4 times as much (0.12.0).

    It is not for long formulas. XLA:CPU of jax 0.10 stores nothing between these quotients, and
    where such a loop writes several columns it computes a number anew wherever it is used: the
    gradient of SIoU takes forty times as long.
    """
    return divide(x, y)


@divide_once.defjvp
def _divide_once_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    out = divide_once(x, y)
    # Keep the product. With a quotient here XLA:CPU stores more than with autodiff's derivative.
    return out, (dx - out * dy) * divide(jnp.ones_like(y), y)


@jax.custom_jvp
def sine_and_cosine(angle: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sine and the cosine of an angle in radians, by polynomials in float32.

    The error is below 8e-8 up to 10 000 radians, and 1.5 ulp up to π. Beyond, it is that of an
    angle that is an ulp larger or smaller.

    Keep the polynomials. `jnp.sin` and `jnp.cos` take ten times as long on a CPU (jax 0.10.2), and
    on accelerators they are dear enough for XLA to store them, so that the loops of a loss of
    rotated boxes do not become one.
    """
    if jnp.result_type(angle) != jnp.float32:
        return jnp.sin(angle), jnp.cos(angle)
    # π/2 is the sum of these three. The first has 8 bits, so that its product with a whole number
    # below 65 536 is exact.
    turns = jnp.round(angle * (2 / math.pi))
    rest = (
        (angle - turns * 1.5703125) - turns * 4.837512969970703e-4
    ) - turns * 7.549789954891882e-8
    rest = jnp.clip(rest, -0.8, 0.8)
    square = rest * rest
    # The coefficients are those of Cephes's sinf and cosf, on [-π/4, π/4].
    sine = (-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square
    sine = rest + rest * square * sine
    cosine = (cosine + 4.166664568298827e-2) * square * square - 0.5 * square + 1
    quarter = turns - 4 * jnp.floor(turns / 4)
    is_odd = (quarter == 1) | (quarter == 3)
    sine, cosine = jnp.where(is_odd, cosine, sine), jnp.where(is_odd, sine, cosine)
    return (
        jnp.where(quarter >= 2, -sine, sine),
        jnp.where((quarter == 1) | (quarter == 2), -cosine, cosine),
    )


@sine_and_cosine.defjvp
def _sine_and_cosine_jvp(primals: Any, tangents: Any) -> Any:
    sine, cosine = sine_and_cosine(*primals)
    (d_angle,) = tangents
    return (sine, cosine), (cosine * d_angle, -sine * d_angle)


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
