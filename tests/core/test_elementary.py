"""Elementary functions: values, and gradients at their kinks."""

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.elementary import (
    absolute,
    arctan2,
    clamp,
    clamp_min,
    divide,
    divide_once,
    sine_and_cosine,
)


def test_gradients_at_the_kinks_are_torchs():
    assert jax.grad(absolute)(0.0) == 0
    assert jax.grad(absolute)(-2.0) == -1
    assert jax.grad(clamp_min)(3.0, 3.0) == 1
    assert jax.grad(clamp_min)(2.9, 3.0) == 0
    assert np.isnan(clamp_min(jnp.nan, 3.0))
    x = jnp.array([-0.1, 0.0, 0.5, 1.0, 1.1, jnp.nan])
    np.testing.assert_array_equal(clamp(x, 0, 1), np.float32([0, 0, 0.5, 1, 1, np.nan]))
    gradients = jax.vmap(jax.grad(clamp), (0, None, None))(x, 0, 1)
    np.testing.assert_array_equal(gradients, [0, 1, 1, 1, 0, 1])


def test_divide():
    value, gradients = jax.value_and_grad(divide, argnums=(0, 1))(3.0, 0.0)
    assert (value, *gradients) == (0, 0, 0)
    assert divide(jnp.float32(3), jnp.float32(2)) == 1.5


def test_arctan2(x64):
    def grid(*numbers):
        numbers = [*(-x for x in numbers), *numbers]
        return (x.ravel() for x in np.meshgrid(numbers, numbers))

    x, y = grid(0.0, 1e-300, 1e-5, 0.7, 3, 1e200)
    expected = np.where((x == 0) & (y == 0), 0, np.arctan2(y, x))
    np.testing.assert_allclose(arctan2(y, x), expected, rtol=1e-15)
    gradient = jax.grad(arctan2, (0, 1))
    x, y = grid(1e-5, 0.7, 3)
    d_y, d_x = jax.vmap(gradient)(y, x)
    np.testing.assert_allclose(d_y, x / (x * x + y * y), rtol=1e-14)
    np.testing.assert_allclose(d_x, -y / (x * x + y * y), rtol=1e-14)
    assert np.isfinite(gradient(0.0, 0.0)).all()


def test_divide_once_is_divide_with_another_derivative(x64):
    x, y = jnp.array([3.0, -2.0, 0.0, 1.0]), jnp.array([2.0, 0.0, 4.0, -0.5])
    np.testing.assert_array_equal(divide_once(x, y), divide(x, y))
    for number in (0, 1):
        once, twice = (
            jax.vmap(jax.grad(f, number))(x, y)
            for f in (divide_once, lambda x, y: jnp.where(y == 0, 0, divide(x, y)))
        )
        np.testing.assert_allclose(once, twice, rtol=1e-15)
    second = jax.vmap(jax.hessian(divide_once, (0, 1)))(x, y)
    assert all(np.isfinite(part).all() for part in jax.tree.leaves(second))


def test_sine_and_cosine():
    angle = np.random.default_rng(0).uniform(-np.pi, np.pi, 100_000).astype(np.float32)
    angle = np.concatenate([angle, 3000 * angle, [0, -0.0, 1e-30]]).astype(np.float32)
    for actual, exact in zip(sine_and_cosine(angle), (np.sin, np.cos), strict=True):
        np.testing.assert_allclose(actual, exact(angle.astype(np.float64)), rtol=0, atol=8e-8)
    small = angle[np.abs(angle) < 0.7]
    sine, _ = sine_and_cosine(small)
    np.testing.assert_allclose(sine, np.sin(small.astype(np.float64)), rtol=1.2e-7)
    assert sine_and_cosine(jnp.float32(0))[1] == 1
    for number in sine_and_cosine(jnp.float32([1e8, -1e30, 3e38])):
        assert (np.abs(number) <= 1.01).all()


def test_the_derivative_of_sine_and_cosine(x64):
    angle = np.linspace(-7, 7, 50)
    for dtype, tolerance in ((np.float32, 2e-7), (np.float64, 1e-15)):
        _, (d_sine, d_cosine) = jax.jvp(
            sine_and_cosine, (angle.astype(dtype),), (np.ones(50, dtype),)
        )
        np.testing.assert_allclose(d_sine, np.cos(angle.astype(dtype)), atol=tolerance)
        np.testing.assert_allclose(d_cosine, -np.sin(angle.astype(dtype)), atol=tolerance)
