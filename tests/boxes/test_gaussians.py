"""Rotated boxes as Gaussians: what is made of their factors, and the digits that it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.rotated.in_matrices import (
    bhattacharyya,
    covariances,
    kl,
    rotated_pairs,
    squared_wasserstein,
)
from visdet_jax.boxes import _gaussians as gaussians


def columns(boxes):
    return tuple(jnp.asarray(boxes).T)


def deviations(boxes):
    return gaussians.half_sides(columns(boxes))


def correlations(boxes):
    """x, y, deviation along x, deviation along y, correlation."""
    matrices = np.array([covariances(box, box)[0] for box in np.asarray(boxes)])
    x_deviation, y_deviation = np.sqrt(matrices[:, [0, 1], [0, 1]]).T
    correlation = matrices[:, 0, 1] / (x_deviation * y_deviation)
    return tuple(map(jnp.asarray, (*boxes[:, :2].T, x_deviation, y_deviation, correlation)))


PAIRS = {
    "boxes": lambda *both: gaussians.pair_of_boxes(*map(deviations, both)),
    "correlations": lambda *both: gaussians.pair_of_correlations(*map(correlations, both)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_of_factors_as_of_matrices(kind, x64):
    pred, target = rotated_pairs()
    pair = PAIRS[kind](pred, target)
    for i, (p, t, d) in enumerate(map(covariances, pred, target)):

        def close(actual, expected, i=i):
            np.testing.assert_allclose(actual[i], expected, rtol=1e-9)

        roots = np.sqrt(np.linalg.det(p)), np.sqrt(np.linalg.det(t))
        close(pair.root_det1, roots[0])
        close(pair.root_det2, roots[1])
        close(pair.det_sum, np.linalg.det(p + t))
        close(pair.det_sum_excess, np.linalg.det(p + t) - 4 * roots[0] * roots[1])
        squared_offset = d @ np.linalg.inv(p + t) @ d
        close(pair.squared_offset_times_det_sum, np.linalg.det(p + t) * squared_offset)
        close(gaussians.kl_divergence(pair), kl(p, t, d))
        close(gaussians.kl_divergence(pair, 2), kl(p, t, d / 2))
        close(gaussians.bhattacharyya_distance(pair), bhattacharyya(p, t, d))
        close(
            gaussians.kalman_root_det(pair),
            np.sqrt(np.linalg.det(p @ np.linalg.inv(p + t) @ t)),
        )


def test_wasserstein_with_an_excess_as_of_matrices(x64):
    pred, target = rotated_pairs()
    excess = 3.0
    of_boxes = gaussians.wasserstein_of_boxes(deviations(pred), deviations(target), excess)
    of_correlations = gaussians.wasserstein_of_correlations(
        correlations(pred), correlations(target), excess
    )
    expected = []
    for p, t, _ in map(covariances, pred, target):
        roots = np.sqrt(np.linalg.det(p) * np.linalg.det(t))
        root = np.sqrt(np.trace(p @ t) + 2 * roots + excess)
        expected.append(np.trace(p) + np.trace(t) - 2 * root)
    np.testing.assert_allclose(of_boxes, expected, rtol=1e-9)
    np.testing.assert_allclose(of_correlations, expected, rtol=1e-9)


def test_boxes_that_grow_a_little_keep_their_digits():
    """In float32 the difference of the areas has lost 0.1 % here, and det(P + T) everything."""
    pred = np.float32([[0, 0, 30, 7, 0.3], [0, 0, 2, 900, 0.3]])
    target = (pred * np.float32([1, 1, 1 + 1e-4, 1 + 1e-4, 1])).astype(np.float32)
    pair = gaussians.pair_of_boxes(deviations(pred), deviations(target))
    (a1, b1), (a2, b2) = (np.float64(boxes[:, 2:4]).T / 2 for boxes in (pred, target))
    divergence = ((a2 / a1) ** 2 + (b2 / b1) ** 2) / 2 - 1 - np.log(a2 * b2 / (a1 * b1))
    np.testing.assert_allclose(gaussians.kl_divergence(pair), divergence, rtol=1e-4)
    quotient = (a1**2 + a2**2) * (b1**2 + b2**2) / (4 * a1 * b1 * a2 * b2)
    distance = gaussians.bhattacharyya_distance(pair)
    np.testing.assert_allclose(distance, np.log(quotient) / 2, rtol=1e-4)


def test_correlations_near_1_keep_their_digits():
    """In float32 1 - r² is 0.1 % off here."""
    boxes = np.float32([[0, 0, 3, 5, r] for r in (0.9999, -0.9999, 0.5, 0.99999)])
    *_, b, _ = gaussians._triangular_factor(columns(boxes))
    r = np.float64(boxes[:, 4])
    np.testing.assert_allclose(b, 5 * np.sqrt(1 - r * r), rtol=1e-6)


def test_wasserstein_of_opposite_correlations_keeps_its_digits():
    """The inner product of their factors is negative."""
    pred, target = np.float32([[[0, 0, 1, 10, 0.99]], [[0, 0, 1, 10, -0.99]]])
    matrices = []
    for box in (pred, target):
        *_, x, y, r = np.float64(box[0])
        matrices.append(np.array([[x * x, r * x * y], [r * x * y, y * y]]))
    value = gaussians.wasserstein_of_correlations(columns(pred), columns(target))
    np.testing.assert_allclose(value, squared_wasserstein(*matrices), rtol=1e-6)


def test_wasserstein_of_similar_boxes_keeps_its_digits():
    """In float32 |L|² + |F|² less twice the root has none left here."""
    pred = np.float32([[0, 0, 1000, 10, 0.3], [0, 0, 1000, 10, 0.3]])
    target = np.float32([[0, 0, 1000.5, 10, 0.3], [0, 0, 1000, 10, 0.3 + 1e-5]])
    turn = np.float64(target[:, 4]) - np.float64(pred[:, 4])
    (a1, b1), (a2, b2) = (np.float64(boxes[:, 2:4]).T / 2 for boxes in (pred, target))
    # The squared differences of the deviations, and what a small turn adds.
    exact = (a1 - a2) ** 2 + (b1 - b2) ** 2
    exact += (a1**2 - b1**2) * (a2**2 - b2**2) * turn**2 / (a1 * a2 + b1 * b2)
    value = gaussians.wasserstein_of_boxes(deviations(pred), deviations(target))
    np.testing.assert_allclose(value, exact, rtol=1e-4)


def test_the_distance_of_the_centres_has_no_gradient_by_the_angle():
    """That of the offset in the first box's axes is rounding error."""
    pred, target = (boxes.astype(np.float32) for boxes in rotated_pairs())

    def total(boxes):
        return gaussians.squared_centre_distance(columns(boxes), columns(target)).sum()

    assert not jax.grad(total)(pred)[:, 4].any()


@pytest.mark.parametrize(
    "distance",
    [gaussians.bhattacharyya_distance, gaussians.kalman_root_det, gaussians.kl_divergence],
)
def test_gradients_of_boxes_without_area_are_finite(distance):
    """The determinant of P + T is 6e-29 here, and its square is 0 in float32."""
    boxes = np.zeros((2, 5), np.float32)
    boxes[1, 0] = 1e-7

    def total(boxes):
        return distance(gaussians.pair_of_boxes(deviations(boxes), deviations(boxes[::-1]))).sum()

    value, gradient = jax.value_and_grad(total)(boxes)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_minus_1_minus_log_keeps_its_digits(dtype, x64):
    x = np.concatenate([-np.geomspace(1e-9, 0.9, 50), np.geomspace(1e-9, 1e3, 50)]).astype(dtype)
    wide = x.astype(np.longdouble)
    # Below 0.01 the series x²/2 - x³/3 + x⁴/4 - ... is exact.
    series = sum((-1) ** k * wide**k / k for k in range(2, 12))
    exact = np.where(np.abs(wide) < 0.01, series, wide - np.log1p(wide))
    value = gaussians._minus_1_minus_log(x, 1 + x)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(value, exact.astype(np.float64), rtol=40 * eps)
    gradient = jax.grad(lambda x: gaussians._minus_1_minus_log(x, 1 + x).sum())(x)
    np.testing.assert_allclose(gradient, (wide / (1 + wide)).astype(np.float64), rtol=4 * eps)
