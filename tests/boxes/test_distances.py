"""Boxes as the distances from a point to their sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from boxes.inputs import check_finite, check_half_floats
from visdet_jax.boxes import bbox2distance, centerness_target, distance2bbox, integral

# The functions, and how many columns each of their arguments has.
FUNCTIONS = {
    "bbox2distance": (lambda *args: bbox2distance(*args, max_dis=16), 2, 4),
    "distance2bbox": (lambda *args: distance2bbox(*args, max_shape=(40, 40)), 2, 4),
    "integral": (integral, 4),
    "centerness_target": (centerness_target, 4),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def test_the_mean_of_a_distribution():
    sharp = 100 * np.eye(5, dtype=np.float32)
    np.testing.assert_allclose(integral(sharp), np.arange(5))
    np.testing.assert_allclose(integral(np.zeros((2, 3, 5), np.float32)), np.full((2, 3), 2.0))


def test_the_derivative_of_the_mean():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (5, 2, 7)), jnp.float32)
    weight = jnp.arange(10.0).reshape(5, 2)

    def plain(x):
        return (jax.nn.softmax(x, axis=-1) * jnp.arange(7.0)[None, None]).sum(-1)

    expected, found = (
        jax.grad(lambda x, f=f: (weight * f(x)).sum())(logits) for f in (plain, integral)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    second, found = (
        jax.grad(lambda x, f=f: jnp.sin(jax.grad(lambda x: f(x).sum())(x)).sum())(logits)
        for f in (plain, integral)
    )
    np.testing.assert_allclose(found, second, rtol=1e-4, atol=1e-5)


def test_the_mean_is_a_sum():
    """Accelerators round a product of matrices to bfloat16 or TF32."""
    assert "dot_general" not in str(jax.make_jaxpr(integral)(jnp.zeros((2, 9))))


def test_centerness():
    distances = np.array([[3, 3, 3, 3], [1, 2, 4, 2], [0, 1, 1, 1], [-1, 1, 2, 1]], np.float32)
    np.testing.assert_allclose(centerness_target(distances), [1, 0.5, 0, 0])


def test_distances_are_clipped_for_a_distribution():
    point, box = np.array([[5, 5]], np.float32), np.array([[6, 0, 30, 10]], np.float32)
    np.testing.assert_allclose(bbox2distance(point, box), [[-1, 5, 25, 5]])
    np.testing.assert_allclose(bbox2distance(point, box, max_dis=16), [[0, 5, 15.9, 5]])


def test_distance2bbox_is_the_inverse():
    point, box = np.array([[5, 5]], np.float32), np.array([[6, 0, 30, 10]], np.float32)
    np.testing.assert_allclose(distance2bbox(point, bbox2distance(point, box)), box)
    clipped = distance2bbox(point, bbox2distance(point, box), max_shape=(8, 20))
    np.testing.assert_allclose(clipped, [[6, 0, 20, 8]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: bbox2distance(x, x), r"bbox2distance: points must have shape \(..., 2\)"),
        (lambda x: distance2bbox(x, x), r"distance2bbox: points must have shape \(..., 2\)"),
        (lambda x: centerness_target(x[:, :2]), r"centerness_target: distances must have shape"),
        (
            lambda x: bbox2distance(x[:, :2], x, max_dis=0.0),
            "bbox2distance: max_dis must be above 0, got 0.0; max_dis=None switches it off",
        ),
        (lambda x: bbox2distance(x[:, :2], x, 16.0, -0.1), "eps must be at least 0, got -0.1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((3, 4), np.float32))


@every_function
def test_half_floats_are_computed_in_float32(name):
    check_half_floats(*FUNCTIONS[name])


@every_function
def test_values_and_gradients_are_finite(name):
    check_finite(*FUNCTIONS[name])
