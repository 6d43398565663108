"""Rotated boxes as Gaussians: what is made of their factors, and the digits that it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from losses.rotated.in_matrices import bhattacharyya, covariances, kl, rotated_pairs
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


def test_wasserstein_of_similar_boxes_keeps_its_digits():
    """In float32 |L|² + |F|² less twice the root has none left here."""
    pred = np.float32([[0, 0, 1000, 10, 0.3], [0, 0, 1000, 10, 0.3]])
    target = np.float32([[0, 0, 1000.5, 10, 0.3], [0, 0, 1000, 10, 0.3 + 1e-5]])
    wide = np.float64(target[:, 4]) - np.float64(pred[:, 4])
    sides = [np.float64(boxes[:, 2:4]) / 2 for boxes in (pred, target)]
    # For a small turn: the squared differences of the deviations, and what the turn adds.
    first, second = (a**2 - b**2 for a, b in (side.T for side in sides))
    products = (sides[0] * sides[1]).sum(1)
    exact = ((sides[0] - sides[1]) ** 2).sum(1) + first * second * wide**2 / products
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


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float32, 1e-6), (np.float64, 1e-15)])
def test_minus_1_minus_log_keeps_its_digits(dtype, rtol, x64):
    x = np.concatenate([-np.geomspace(1e-9, 0.9, 50), np.geomspace(1e-9, 1e3, 50)]).astype(dtype)
    wide = x.astype(np.longdouble)
    # Below 0.01 the series x²/2 - x³/3 + x⁴/4 - ... is exact.
    series = sum((-1) ** k * wide**k / k for k in range(2, 12))
    exact = np.where(np.abs(wide) < 0.01, series, wide - np.log1p(wide))
    value = gaussians._minus_1_minus_log(x, 1 + x)
    np.testing.assert_allclose(value, exact.astype(np.float64), rtol=rtol)
    gradient = jax.grad(lambda x: gaussians._minus_1_minus_log(x, 1 + x).sum())(x)
    np.testing.assert_allclose(gradient, (wide / (1 + wide)).astype(np.float64), rtol=rtol)
