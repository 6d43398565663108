"""Distances of rotated boxes, each taken as a Gaussian.

The Gaussian of a box lies around its centre, and its standard deviations along the box's sides are
a fixed part of them. It stays the same when the box is turned by 180°, and when width and height
change places and the box is turned by 90°. The distance of two Gaussians therefore does not jump
where an angle does. In what follows P is the covariance matrix of the first box, T that of the
second, and d leads from the first centre to the second.

Papers write the distances with determinants, inverses and roots of P, T and P + T. Computed like
that in float32 they have no digits left for boxes a thousand times as long as wide, whose squared
sides differ by a factor of a million, and for pairs of nearly equal boxes, whose distance is a
small difference of large numbers. Therefore this file does two things:

- It never computes P and T, only matrices L and F with P = L Lᵀ and T = F Fᵀ. Their entries are of
  the size of the sides, not of their squares.
- It writes what is 0 for equal boxes as a sum of squares of differences, or as a function of such
  a sum.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, Division
from visdet_jax.core.elementary import clamp, sine_and_cosine

# Widths and heights are clamped to these, in pixels.
MIN_SIDE_PIXELS, MAX_SIDE_PIXELS = 1e-7, 1e7
MAX_CORRELATION = 1 - 1e-7


class GaussianPair(NamedTuple):
    """Pairs of Gaussians by their factors L and F; every array has the pairs' shape.

    The axes may be any, as long as both Gaussians and (dx, dy) have the same.
    """

    # L = [[a1, 0], [skew1, b1]], so that √det P = a1 b1.
    a1: jax.Array
    b1: jax.Array
    skew1: jax.Array
    # √det T = a2 b2, with a2 = a1 and b2 = b1 for equal boxes.
    a2: jax.Array
    b2: jax.Array
    # F = [[f11, f12], [f21, f22]].
    f11: jax.Array
    f12: jax.Array
    f21: jax.Array
    f22: jax.Array
    # The offset d of the centres.
    dx: jax.Array
    dy: jax.Array

    @property
    def root_det1(self) -> jax.Array:
        """√det P."""
        return self.a1 * self.b1

    @property
    def root_det2(self) -> jax.Array:
        """√det T."""
        return self.a2 * self.b2

    @property
    def det_sum_excess(self) -> jax.Array:
        """det(P + T) - 4 √det P √det T, which is 0 for P = T.

        It is (√det P - √det T)² + (s1 - s2)², with s1 and s2 the singular values of adj(L) F.
        """
        difference = (self.a1 - self.a2) * self.b1 + self.a2 * (self.b1 - self.b2)
        return difference**2 + _squared_gap_of_singular_values(
            self.b1 * self.f11,
            self.b1 * self.f12,
            self.a1 * self.f21 - self.skew1 * self.f11,
            self.a1 * self.f22 - self.skew1 * self.f12,
        )

    @property
    def det_sum(self) -> jax.Array:
        """det(P + T)."""
        return self.det_sum_excess + 4 * self.root_det1 * self.root_det2

    @property
    def squared_offset_times_det_sum(self) -> jax.Array:
        """det(P + T) dᵀ (P + T)⁻¹ d, as |adj(L) d|² + |adj(F) d|²."""
        return (
            (self.b1 * self.dx) ** 2
            + (self.a1 * self.dy - self.skew1 * self.dx) ** 2
            + (self.f22 * self.dx - self.f12 * self.dy) ** 2
            + (self.f11 * self.dy - self.f21 * self.dx) ** 2
        )


def half_sides(boxes: Columns) -> Columns:
    """Boxes x, y, w, h, angle with half their sides as standard deviations, as in mmrotate."""
    x, y, w, h, angle = boxes
    low, high = MIN_SIDE_PIXELS, MAX_SIDE_PIXELS
    return x, y, clamp(w, low, high) / 2, clamp(h, low, high) / 2, angle


def pair_of_boxes(boxes1: Columns, boxes2: Columns) -> GaussianPair:
    """The Gaussians of boxes x, y, deviation along w, deviation along h, angle in radians.

    The axes are the first box's own, so that of the angles only their difference counts.
    """
    x1, y1, a1, b1, angle1 = boxes1
    x2, y2, a2, b2, angle2 = boxes2
    sine, cosine = sine_and_cosine(angle1)
    s, c = sine_and_cosine(angle2 - angle1)
    dx, dy = x2 - x1, y2 - y1
    return GaussianPair(
        *(a1, b1, jnp.zeros_like(a1), a2, b2),
        *(c * a2, -s * b2, s * a2, c * b2),
        *(cosine * dx + sine * dy, cosine * dy - sine * dx),
    )


def pair_of_correlations(boxes1: Columns, boxes2: Columns) -> GaussianPair:
    """The Gaussians of boxes x, y, deviation along x, deviation along y, their correlation.

    Deviations are clamped as half sides are, and correlations to ±(1 - 1e-7).
    """
    x1, y1, a1, b1, skew1 = _triangular_factor(boxes1)
    x2, y2, a2, b2, skew2 = _triangular_factor(boxes2)
    zero = jnp.zeros_like(a2)
    return GaussianPair(a1, b1, skew1, a2, b2, a2, zero, skew2, b2, x2 - x1, y2 - y1)


def _triangular_factor(boxes: Columns) -> Columns:
    """x, y, a, b, skew, with [[a, 0], [skew, b]] the Cholesky factor of the covariance."""
    x, y, *deviations, correlation = boxes
    a, y_deviation = (
        clamp(deviation, MIN_SIDE_PIXELS / 2, MAX_SIDE_PIXELS / 2) for deviation in deviations
    )
    r = clamp(correlation, -MAX_CORRELATION, MAX_CORRELATION)
    return x, y, a, jnp.sqrt((1 - r) * (1 + r)) * y_deviation, r * y_deviation


def squared_centre_distance(boxes1: Columns, boxes2: Columns) -> jax.Array:
    """|d|² of the centres as they are given.

    Of the offset in the axes of `pair_of_boxes` it would be the same number, but its gradient by
    the angle would be a rounding error instead of 0.
    """
    return (boxes2[0] - boxes1[0]) ** 2 + (boxes2[1] - boxes1[1]) ** 2


def kl_divergence(
    pair: GaussianPair, alpha: jax.Array | float = 1, by: Division = jnp.divide
) -> jax.Array:
    """KL(T ‖ P), with the distance of the centres divided by alpha.

    ½ dᵀ P⁻¹ d / alpha² + ½ (tr P⁻¹T - 2 - log(det T / det P)).

    With M = L⁻¹ F the trace is |M|² = (s1 - s2)² + 2 D, where s1 and s2 are the singular values of
    M, and D = det M = √(det T / det P). The second term is therefore ½ (s1 - s2)² + D - 1 - log D.

    `by` is the division. `quotient` stores less; the larger and the smaller of two divergences take
    ten times as long with it on a CPU (jax 0.10.2), see `divide_once`.
    """
    a1, b1 = pair.a1, pair.b1
    m11, m12, e1 = by(pair.f11, a1), by(pair.f12, a1), by(pair.dx, a1)
    m21, m22, e2 = (
        by(y - pair.skew1 * x, b1) for x, y in ((m11, pair.f21), (m12, pair.f22), (e1, pair.dy))
    )
    ratio = by(pair.b2, b1)
    det_minus_1 = by(pair.a2 - a1, a1) * ratio + by(pair.b2 - b1, b1)
    shape = _squared_gap_of_singular_values(m11, m12, m21, m22) / 2
    shape += _minus_1_minus_log(det_minus_1, by(pair.a2, a1) * ratio)
    return (e1 * e1 + e2 * e2) / (2 * alpha * alpha) + shape


def bhattacharyya_distance(pair: GaussianPair) -> jax.Array:
    """¼ dᵀ (P + T)⁻¹ d + ½ log(det((P + T) / 2) / √(det P det T))."""
    centres = quotient(pair.squared_offset_times_det_sum, pair.det_sum)
    shapes = jnp.log1p(quotient(pair.det_sum_excess, 4 * pair.root_det1 * pair.root_det2))
    return centres / 4 + shapes / 2


def wasserstein_of_boxes(
    boxes1: Columns, boxes2: Columns, excess: jax.Array | float = 0
) -> jax.Array:
    """tr P + tr T - 2 √(tr PT + 2 √(det P det T) + excess) of what `pair_of_boxes` takes.

    Without the excess it is the squared Wasserstein distance of the two shapes.
    """
    *_, a1, b1, angle1 = boxes1
    *_, a2, b2, angle2 = boxes2
    sine, cosine = sine_and_cosine(angle2 - angle1)
    cos_squared, sin_squared = cosine**2, sine**2
    # Above 45° the same box is taken by its other sides, whose turn is below 45°.
    swap = sin_squared > cos_squared
    a2, b2 = jnp.where(swap, b2, a2), jnp.where(swap, a2, b2)
    sin_squared = jnp.minimum(sin_squared, cos_squared)
    # tr PT + 2 √(det P det T) = cos² (a1 a2 + b1 b2)² + sin² (a1 b2 + b1 a2)²; this is the second
    # square less the first.
    difference = (a1 - b1) * (b2 - a2) * (a1 + b1) * (a2 + b2)
    return _after_best_rotation(
        (a1 - a2) ** 2 + (b1 - b2) ** 2, a1 * a2 + b1 * b2, difference * sin_squared + excess
    )


def wasserstein_of_correlations(
    boxes1: Columns, boxes2: Columns, excess: jax.Array | float = 0
) -> jax.Array:
    """`wasserstein_of_boxes` of what `pair_of_correlations` takes."""
    *_, a1, b1, skew1 = _triangular_factor(boxes1)
    *_, a2, b2, skew2 = _triangular_factor(boxes2)
    inner = a1 * a2 + skew1 * skew2 + b1 * b2
    # -F is a factor of T as F is, so that the inner product can be taken as positive.
    sign = jnp.where(inner < 0, -1, 1).astype(inner.dtype)
    squared = (a1 - sign * a2) ** 2 + (skew1 - sign * skew2) ** 2 + (b1 - sign * b2) ** 2
    return _after_best_rotation(squared, sign * inner, (skew1 * b2 - b1 * skew2) ** 2 + excess)


def _after_best_rotation(squared: jax.Array, inner: jax.Array, addition: jax.Array) -> jax.Array:
    """|L|² + |F|² - 2 √(inner² + addition), with squared = |L - F|² and inner = <L, F>.

    Without an excess in the addition this is the least |L - F Q|² of all rotations Q. It is
    written as |L - F|² less what the rotation gains, both of which are small for similar boxes.
    """
    return squared - quotient(2 * addition, inner + jnp.sqrt(inner * inner + addition))


def kalman_root_det(pair: GaussianPair) -> jax.Array:
    """√det(P (P + T)⁻¹ T).

    P (P + T)⁻¹ T is the covariance of the product of the two densities, as in a Kalman filter.
    """
    return pair.root_det1 * quotient(pair.root_det2, jnp.sqrt(pair.det_sum))


def _squared_gap_of_singular_values(
    m11: jax.Array, m12: jax.Array, m21: jax.Array, m22: jax.Array
) -> jax.Array:
    """(s1 - s2)² = |M|² - 2 det M for a matrix of det M ≥ 0: 0 for a multiple of a rotation."""
    return (m11 - m22) ** 2 + (m12 + m21) ** 2


@jax.custom_jvp
def quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y for y > 0, with a derivative that divides once, and does not compute y².

    y may be a determinant here, of the size of a side to the power of four. In float32 y² is 0 for
    boxes below 2e-5 pixels, and the gradient of a plain x / y is NaN for them.
    """
    return x / y


@quotient.defjvp
def _quotient_jvp(primals: Any, tangents: Any) -> Any:
    (x, y), (dx, dy) = primals, tangents
    out = quotient(x, y)
    return out, (dx - out * dy) * (1 / y)


@jax.custom_jvp
def _minus_1_minus_log(ratio_minus_1: jax.Array, ratio: jax.Array) -> jax.Array:
    """ratio - 1 - log(ratio), which is about (ratio - 1)² / 2 near 1 and keeps its digits there.

    Keep the derivative by hand, of which that by `ratio_minus_1` stands for the whole. Autodiff of
    the series takes a third longer for the gradient of gd_loss with "jd", and keeps four more
    numbers a pair (jax 0.10.2).
    """
    small = jnp.abs(ratio_minus_1) < 0.1
    # With x = ratio - 1 and t = x / (2 + x): log(1 + x) = 2 artanh t = 2 (t + t³/3 + t⁵/5 + ...),
    # and x - 2 t = x t exactly.
    x = jnp.where(small, ratio_minus_1, 0)
    t = x / (2 + x)
    t2 = t * t
    series = jnp.zeros_like(t)
    for odd in range(13, 1, -2):
        series = series * t2 + 1 / odd
    near_1 = x * t - 2 * t * t2 * series
    return jnp.where(small, near_1, ratio_minus_1 - jnp.log(jnp.where(small, 1, ratio)))


@_minus_1_minus_log.defjvp
def _minus_1_minus_log_jvp(primals: Any, tangents: Any) -> Any:
    ratio_minus_1, ratio = primals
    return _minus_1_minus_log(ratio_minus_1, ratio), tangents[0] * (ratio_minus_1 / ratio)
