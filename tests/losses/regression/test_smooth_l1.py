"""L1 and smooth L1: limits, special cases, huge differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
PRED, TARGET = RNG.normal(0, 3, (2, 16, 5)).astype(np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("loss", [v.l1_loss, v.smooth_l1_loss])
def test_equal_inputs_cost_nothing(loss):
    value, gradient = jax.value_and_grad(lambda p: loss(p, PRED))(PRED)
    assert value == 0
    assert not gradient.any()


def test_smooth_l1_is_hubers_loss_over_beta():
    for beta in (0.1, 1.0, 2.5):
        huber = optax.losses.huber_loss(jnp.asarray(PRED), jnp.asarray(TARGET), delta=beta) / beta
        close(v.smooth_l1_loss(PRED, TARGET, beta=beta, reduction="none"), huber)


def test_smooth_l1_of_small_beta_is_l1():
    close(v.smooth_l1_loss(PRED, TARGET, beta=1e-6), v.l1_loss(PRED, TARGET))


def test_gradients_of_huge_differences_are_finite():
    """By the target and by beta too, which autodiff finds: d² overflows here."""

    def loss(pred, target, beta):
        return v.smooth_l1_loss(pred, target, beta=beta)

    zero = jnp.zeros(())
    gradients = jax.grad(loss, (0, 1, 2))(jnp.float32(1e25), zero, jnp.float32(0.5))
    np.testing.assert_array_equal(gradients, [1, -1, -0.5])


def test_beta_must_be_above_0():
    for beta in (0.0, -2.0):
        with pytest.raises(ValueError, match=f"^smooth_l1_loss: beta must be above 0, got {beta}"):
            v.smooth_l1_loss(PRED, TARGET, beta=beta)
        with pytest.raises(ValueError, match=f"^SmoothL1Loss: beta must be above 0, got {beta}"):
            v.SmoothL1Loss(beta=beta)
