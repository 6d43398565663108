"""Rotated boxes as Gaussians, and how far two Gaussians are from each other.

Everything is made of the factors of the covariances instead of these, and what is small for
near-equal boxes of differences: so these, and boxes thousands of times longer than wide, keep their
digits in float32, where determinants and inverses of the covariances have none left.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns
from visdet_jax.core.elementary import clamp

# What standard deviations times 2 are clamped to, in pixels.
MIN_SIDE, MAX_SIDE = 1e-7, 1e7
MAX_PEARSON = 1 - 1e-7


class GaussianPair(NamedTuple):
    """Gaussians of covariances P = L Lᵀ and T = F Fᵀ in one frame; each is of the pairs' shape.

    L = [[a1, 0], [skew, b1]]; F has the determinant a2 b2; d = (dx, dy) leads from P to T.
    """

    a1: jax.Array
    b1: jax.Array
    skew: jax.Array
    a2: jax.Array
    b2: jax.Array
    f11: jax.Array
    f12: jax.Array
    f21: jax.Array
    f22: jax.Array
    dx: jax.Array
    dy: jax.Array

    @property
    def root1(self) -> jax.Array:
        """√det P."""
        return self.a1 * self.b1

    @property
    def root2(self) -> jax.Array:
        """√det T."""
        return self.a2 * self.b2

    @property
    def gap(self) -> jax.Array:
        """det(P + T) - 4 √det P √det T: 0 for P = T."""
        roots = (self.a1 - self.a2) * self.b1 + self.a2 * (self.b1 - self.b2)
        return roots**2 + _spread(
            self.b1 * self.f11,
            self.b1 * self.f12,
            self.a1 * self.f21 - self.skew * self.f11,
            self.a1 * self.f22 - self.skew * self.f12,
        )

    @property
    def sum_det(self) -> jax.Array:
        """det(P + T)."""
        return self.gap + 4 * self.root1 * self.root2

    @property
    def offset(self) -> jax.Array:
        """det(P + T) dᵀ (P + T)⁻¹ d."""
        return (
            (self.b1 * self.dx) ** 2
            + (self.a1 * self.dy - self.skew * self.dx) ** 2
            + (self.f22 * self.dx - self.f12 * self.dy) ** 2
            + (self.f11 * self.dy - self.f21 * self.dx) ** 2
        )


def box_pair(boxes1: Columns, boxes2: Columns) -> GaussianPair:
    """Of x, y, the standard deviations along the box's own axes, and the angle in radians.

    In the first box's frame: of the angles only the difference counts.
    """
    x1, y1, a1, b1, angle1 = boxes1
    x2, y2, a2, b2, angle2 = boxes2
    cosine, sine = jnp.cos(angle1), jnp.sin(angle1)
    turn = angle2 - angle1
    c, s = jnp.cos(turn), jnp.sin(turn)
    dx, dy = x2 - x1, y2 - y1
    return GaussianPair(
        *(a1, b1, jnp.zeros_like(a1), a2, b2),
        *(c * a2, -s * b2, s * a2, c * b2),
        *(cosine * dx + sine * dy, cosine * dy - sine * dx),
    )


def half_sides(boxes: Columns) -> Columns:
    """Boxes x, y, w, h, angle for `box_pair`, with half their sides as deviations (mmrotate)."""
    x, y, w, h, angle = boxes
    return x, y, clamp(w, MIN_SIDE, MAX_SIDE) / 2, clamp(h, MIN_SIDE, MAX_SIDE) / 2, angle


def pearson_pair(boxes1: Columns, boxes2: Columns) -> GaussianPair:
    """Of x, y, their standard deviations and their correlation.

    Deviations are clamped as half sides are, and correlations to ±(1 - 1e-7).
    """
    x1, y1, a1, b1, skew1 = _triangular(boxes1)
    x2, y2, a2, b2, skew2 = _triangular(boxes2)
    zero = jnp.zeros_like(a2)
    return GaussianPair(a1, b1, skew1, a2, b2, a2, zero, skew2, b2, x2 - x1, y2 - y1)


def _triangular(boxes):
    x, y, *deviations, correlation = boxes
    sx, sy = (clamp(deviation, MIN_SIDE / 2, MAX_SIDE / 2) for deviation in deviations)
    rho = clamp(correlation, -MAX_PEARSON, MAX_PEARSON)
    return x, y, sx, jnp.sqrt((1 - rho) * (1 + rho)) * sy, rho * sy


def squared_distance(boxes1: Columns, boxes2: Columns) -> jax.Array:
    """dᵀ d, of what is not rotated: its slope by the angles would be rounding instead of 0."""
    return (boxes2[0] - boxes1[0]) ** 2 + (boxes2[1] - boxes1[1]) ** 2


def kl_divergence(pair: GaussianPair, alpha: jax.Array | float = 1) -> jax.Array:
    """KL(T ‖ P), with the distance of the centres divided by alpha².

    ½ dᵀ P⁻¹ d / alpha² + ½ (tr P⁻¹T - 2 - log(det T / det P)), of M = L⁻¹ F, whose determinant D
    is √(det T / det P): tr P⁻¹T = |M|² = (m11 - m22)² + (m12 + m21)² + 2 D.
    """
    a1, b1 = pair.a1, pair.b1
    m11, m12, e1 = pair.f11 / a1, pair.f12 / a1, pair.dx / a1
    m21, m22, e2 = (
        (y - pair.skew * x) / b1 for x, y in ((m11, pair.f21), (m12, pair.f22), (e1, pair.dy))
    )
    ratio = pair.b2 / b1
    growth = (pair.a2 - a1) / a1 * ratio + (pair.b2 - b1) / b1
    shape = _spread(m11, m12, m21, m22) / 2 + _log_excess(growth, pair.a2 / a1 * ratio)
    return (e1 * e1 + e2 * e2) / (2 * alpha * alpha) + shape


def bhattacharyya(pair: GaussianPair) -> jax.Array:
    """¼ dᵀ (P + T)⁻¹ d + ½ log(det((P + T) / 2) / √(det P det T))."""
    apart = _quotient(pair.offset, pair.sum_det)
    return apart / 4 + jnp.log1p(_quotient(pair.gap, 4 * pair.root1 * pair.root2)) / 2


def box_wasserstein(boxes1: Columns, boxes2: Columns, excess: jax.Array | float = 0) -> jax.Array:
    """tr P + tr T - 2 √(tr PT + 2 √(det P det T) + excess), of boxes as `box_pair` takes them.

    Without excess the squared Wasserstein distance of the shapes.
    """
    *_, a1, b1, angle1 = boxes1
    *_, a2, b2, angle2 = boxes2
    turn = angle2 - angle1
    along, across = jnp.cos(turn) ** 2, jnp.sin(turn) ** 2
    # The same box by its other sides, for a turn of at most 45°.
    other = across > along
    a2, b2 = jnp.where(other, b2, a2), jnp.where(other, a2, b2)
    across = jnp.minimum(across, along)
    squares = (a1 - b1) * (b2 - a2) * (a1 + b1) * (a2 + b2)  # (a1 b2 + b1 a2)² - (a1 a2 + b1 b2)²
    return _closest((a1 - a2) ** 2 + (b1 - b2) ** 2, a1 * a2 + b1 * b2, squares * across + excess)


def pearson_wasserstein(
    boxes1: Columns, boxes2: Columns, excess: jax.Array | float = 0
) -> jax.Array:
    """`box_wasserstein` of Gaussians as `pearson_pair` takes them."""
    *_, a1, b1, skew1 = _triangular(boxes1)
    *_, a2, b2, skew2 = _triangular(boxes2)
    inner = a1 * a2 + skew1 * skew2 + b1 * b2
    sign = jnp.where(inner < 0, -1, 1).astype(inner.dtype)  # -F is a factor of T as F is
    apart = (a1 - sign * a2) ** 2 + (skew1 - sign * skew2) ** 2 + (b1 - sign * b2) ** 2
    return _closest(apart, sign * inner, (skew1 * b2 - b1 * skew2) ** 2 + excess)


def _closest(apart, inner, excess):
    """|L - F|² less what turning F gains, of <L, F> = `inner`: 2 (√(inner² + excess) - inner)."""
    return apart - 2 * excess / (inner + jnp.sqrt(inner * inner + excess))


def kalman_root(pair: GaussianPair) -> jax.Array:
    """√det(P (P + T)⁻¹ T): of the product of both densities, a Kalman filter's posterior."""
    return pair.root1 * _quotient(pair.root2, jnp.sqrt(pair.sum_det))


def _spread(m11, m12, m21, m22):
    """|M|² - 2 det M: 0 for a rotation times a number."""
    return (m11 - m22) ** 2 + (m12 + m21) ** 2


@jax.custom_jvp
def _quotient(x, y):
    """x / y for y > 0, whose derivative has no y², which of areas squared leaves float32."""
    return x / y


@_quotient.defjvp
def _quotient_jvp(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    out = _quotient(x, y)
    return out, (dx - out * dy) / y


@jax.custom_jvp
def _log_excess(growth, ratio):
    """ratio - 1 - log ratio, about growth² / 2 near ratio = 1 + growth = 1."""
    small = jnp.abs(growth) < 0.1
    # log(1 + g) = 2 artanh t, t = g / (2 + g), whose first term takes g t off g exactly.
    g = jnp.where(small, growth, 0)
    t = g / (2 + g)
    t2 = t * t
    rest = jnp.zeros_like(t)
    for odd in range(13, 1, -2):
        rest = rest * t2 + 1 / odd
    near = g * t - 2 * t * t2 * rest
    return jnp.where(small, near, growth - jnp.log(jnp.where(small, 1, ratio)))


@_log_excess.defjvp
def _log_excess_jvp(primals, tangents):
    growth, ratio = primals
    return _log_excess(growth, ratio), tangents[0] * (growth / ratio)
