"""Elementary functions: values, and gradients at their kinks."""

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.elementary import absolute, arctan2, clamp, clamp_min, divide


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
