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
    """By beta too: d² would overflow here."""

    def loss(pred, target, beta):
        return v.smooth_l1_loss(pred, target, beta=beta)

    zero = jnp.zeros(())
    gradients = jax.grad(loss, (0, 1, 2))(jnp.float32(1e25), zero, jnp.float32(0.5))
    np.testing.assert_array_equal(gradients, [1, -1, -0.5])


def test_beta_0_is_l1():
    """As in torch: value and gradient, also where pred and target are equal, and when traced."""
    pred = np.concatenate([PRED, TARGET[:1]])
    target = np.concatenate([TARGET, TARGET[:1]])
    expected = jax.value_and_grad(v.l1_loss)(pred, target)
    jax.tree.map(close, jax.value_and_grad(v.smooth_l1_loss)(pred, target, beta=0.0), expected)
    close(v.SmoothL1Loss(beta=0.0)(pred, target), expected[0])
    swept = jax.vmap(lambda beta: v.smooth_l1_loss(pred, target, beta=beta))(jnp.array([0.0, 1.0]))
    close(swept, [expected[0], v.smooth_l1_loss(pred, target)])


def test_beta_must_be_at_least_0():
    for make in (
        lambda: v.smooth_l1_loss(PRED, TARGET, beta=-2.0),
        lambda: v.SmoothL1Loss(beta=-2.0),
    ):
        with pytest.raises(ValueError, match=r"beta must be at least 0, got -2\.0"):
            make()
