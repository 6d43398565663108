"""Balanced L1: digits of small errors, huge errors, its logarithm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from visdet_jax.losses.regression.balanced_l1 import log1p_excess

PRED = np.random.default_rng(0).normal(0, 3, (16, 5)).astype(np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_equal_inputs_cost_nothing():
    value, gradient = jax.value_and_grad(lambda p: v.balanced_l1_loss(p, PRED))(PRED)
    assert value == 0
    assert not gradient.any()


def test_small_errors_keep_their_digits():
    diff = np.float64([1e-7, 1e-5, 1e-3])
    b = np.expm1(3.0)
    exact = 0.5 / b * (b * diff) ** 2 / 2  # the first term of the series
    single = v.balanced_l1_loss(diff.astype(np.float32), np.zeros(3, np.float32), reduction="none")
    close(single[:2], exact[:2], rtol=1e-4, atol=0)
    close(single[0], exact[0], rtol=1e-6, atol=0)


def test_gradients_of_huge_errors_are_finite():
    """By the hyperparameters too, where (1 + v) log(1 + v) would overflow."""

    def loss(pred, target, alpha, gamma, beta):
        return v.balanced_l1_loss(pred, target, alpha=alpha, gamma=gamma, beta=beta)

    arguments = [jnp.float32(x) for x in (1e37, 0, 0.5, 1.5, 0.7)]
    assert np.isfinite(jax.grad(loss, range(5))(*arguments)).all()


@pytest.mark.parametrize("name", ["alpha", "gamma", "beta"])
def test_hyperparameters_must_be_above_0(name):
    for number in (0.0, -1.5):
        message = f"{name} must be above 0, got {number}"
        with pytest.raises(ValueError, match=f"^balanced_l1_loss: {message}"):
            v.balanced_l1_loss(PRED, PRED, **{name: number})
        with pytest.raises(ValueError, match=f"^BalancedL1Loss: {message}"):
            v.BalancedL1Loss(**{name: number})


def test_log1p_excess_keeps_its_digits(x64):
    x = np.geomspace(1e-12, 1e4, 200)
    # Below 1e-3 the series x²/2 - x³/6 + x⁴/12 - ... is exact to 1e-16 of the sum.
    series = sum((-1) ** k * x**k / (k * (k - 1)) for k in range(2, 9))
    # The plain form in extended precision is good to 1e-19 / x of the value.
    extended = x.astype(np.longdouble)
    plain = ((1 + extended) * np.log1p(extended) - extended).astype(np.float64)
    exact = np.where(x < 1e-2, series, plain)
    np.testing.assert_allclose(log1p_excess(x), exact, rtol=2e-14)
    single = log1p_excess(x.astype(np.float32))
    np.testing.assert_allclose(single, exact, rtol=2e-6)


def test_the_gradient_of_log1p_excess_keeps_its_digits(x64):
    """The polynomial's own derivative is off by 6e-14 near 1."""
    x = np.concatenate([np.geomspace(1e-12, 1e4, 200), np.linspace(0.9, 1, 100)])
    gradient = jax.vmap(jax.grad(log1p_excess))(x)
    np.testing.assert_allclose(gradient, np.log1p(x), rtol=1e-15)
