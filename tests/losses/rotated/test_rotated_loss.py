"""The bound of the losses of rotated boxes."""

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.losses.rotated._rotated_loss import bounded


def test_small_distances_keep_their_digits():
    """In float32 1 - 1 / (1 + d) is 5 % off at 1e-6."""
    distance = jnp.float32([1e-6, 1e-3, 1, 1e3])
    exact = np.float64(distance) / (1 + np.float64(distance))
    np.testing.assert_allclose(bounded(distance, jnp.float32(1)), exact, rtol=1e-6)


def test_gradients_of_large_distances_keep_their_digits():
    """In float32 the gradient that autodiff finds is 5 % off at 1e6."""
    distance, tau = jnp.float32([1e-6, 1, 1e3, 1e6]), jnp.float32(2)
    gradients = jax.vmap(jax.grad(bounded, (0, 1)), (0, None))(distance, tau)
    exact = 1 / (2 + np.float64(distance)) ** 2
    np.testing.assert_allclose(gradients[0], exact, rtol=1e-6)
    np.testing.assert_allclose(gradients[1], exact, rtol=1e-6)
