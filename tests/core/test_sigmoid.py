"""Sigmoids, softplus and binary cross entropy: values, gradients and digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.sigmoid import (
    Sigmoid,
    bce_with_logits,
    bce_with_probs,
    d_bce_with_probs,
    sigmoid_parts,
    sigmoid_parts_in_derivative,
    softplus,
)

LOGITS = np.array([-1e4, -100, -20, -1e-3, 0, 1e-3, 20, 100, 1e4])
MANY_LOGITS = np.concatenate([LOGITS, np.linspace(-60, 60, 997)])
both_spellings = pytest.mark.parametrize("parts", [sigmoid_parts, sigmoid_parts_in_derivative])
every_type = pytest.mark.parametrize(("dtype", "ulp"), [(np.float32, 3), (np.float64, 7)])
every_target = pytest.mark.parametrize("target", [0.0, 0.3, 1.0])


def close(actual, exact, dtype, ulp, atol=0.0):
    # XLA flushes what is below the smallest normal number to 0.
    atol, rtol = max(atol, float(np.finfo(dtype).tiny)), ulp * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(actual, np.asarray(exact, np.float64), rtol=rtol, atol=atol)


def exact_parts(x):
    """In extended precision: p, 1 - p and log(1 + exp(-|x|)) of the logits x."""
    e = np.exp(-np.abs(x.astype(np.longdouble)))
    near, far = 1 / (1 + e), e / (1 + e)
    return np.where(x >= 0, near, far), np.where(x >= 0, far, near), np.log1p(e)


@every_target
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bce_with_logits(dtype, target, x64):
    x, t = LOGITS.astype(dtype), np.full(LOGITS.shape, target, dtype)
    exact = t * np.logaddexp(0, -LOGITS) + (1 - t) * np.logaddexp(0, LOGITS)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(bce_with_logits(x, t), exact, rtol=rtol, atol=1e-38)
    gradient = jax.grad(lambda x, t: bce_with_logits(x, t).sum(), argnums=(0, 1))(x, t)
    p = np.exp(-np.logaddexp(0, -LOGITS))
    np.testing.assert_allclose(gradient[0], p - target, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient[1], -LOGITS, rtol=1e-6)


@both_spellings
@every_type
def test_parts_keep_their_digits(parts, dtype, ulp, x64):
    """They are off by few ulp each, for small probabilities too."""
    x = MANY_LOGITS.astype(dtype)
    sigmoid = jax.jit(parts)(x)
    assert isinstance(sigmoid, Sigmoid)
    np.testing.assert_array_equal(sigmoid.logits, x)
    for actual, exact in zip(sigmoid[1:], exact_parts(x), strict=True):
        close(actual, exact, dtype, ulp)


@both_spellings
@every_type
def test_logarithms_of_p_and_its_complement_keep_their_digits(parts, dtype, ulp, x64):
    x = MANY_LOGITS.astype(dtype)
    _, _, tail = exact_parts(x)
    sigmoid = parts(x)
    close(sigmoid.minus_log_p, np.maximum(-x.astype(np.longdouble), 0) + tail, dtype, ulp)
    close(sigmoid.minus_log_not_p, np.maximum(x.astype(np.longdouble), 0) + tail, dtype, ulp)


@both_spellings
@every_type
@every_target
def test_bce_and_its_derivative_keep_their_digits(parts, dtype, ulp, target, x64):
    """For a hard target on its own side too, where the loss is small."""
    x, t = MANY_LOGITS.astype(dtype), np.full(MANY_LOGITS.shape, target, dtype)
    p, not_p, tail = exact_parts(x)
    wide_x, wide_t = x.astype(np.longdouble), t.astype(np.longdouble)
    bce = np.where(x > 0, wide_x * (1 - wide_t), -wide_x * wide_t) + tail
    close(parts(x).bce(t), bce, dtype, ulp)
    # For a soft target p - t goes through 0.
    atol = float(np.finfo(dtype).eps) if target == 0.3 else 0.0
    close(parts(x).d_bce(t), p * (1 - wide_t) - not_p * wide_t, dtype, 2 * ulp, atol)


@both_spellings
def test_derivatives_are_those_of_the_parts(parts, x64):
    x = jnp.array([-30.0, -1.0, 0.0, 2.0, 40.0])
    t = jnp.array([0.0, 0.3, 0.5, 1.0, 0.0])
    d_logits, d_p, d_not_p, d_tail = (
        jax.vmap(jax.grad(lambda x, i=i: parts(x)[i]))(x) for i in range(4)
    )
    np.testing.assert_array_equal(d_logits, 1)
    np.testing.assert_allclose(d_p, 1 / (1 + np.exp(-x)) / (1 + np.exp(x)), rtol=1e-14)
    np.testing.assert_allclose(d_p, parts(x).d_p)
    np.testing.assert_allclose(d_not_p, -d_p)
    # The derivative of log(1 + exp(-|x|)); by symmetry 0 at 0.
    np.testing.assert_allclose(d_tail, -np.sign(x) / (1 + np.exp(np.abs(x))), rtol=1e-14)
    d_bce = jax.vmap(jax.grad(lambda x, t: parts(x).bce(t)))(x, t)
    np.testing.assert_allclose(d_bce, parts(x).d_bce(t), rtol=1e-12, atol=1e-15)


def test_softplus(x64):
    np.testing.assert_allclose(softplus(LOGITS), np.logaddexp(0, LOGITS), rtol=1e-15)
    assert jax.grad(softplus)(0.0) == 0.5
    assert jax.grad(jax.grad(softplus))(0.0) == 0.25


def test_bce_with_probs_at_its_bounds():
    p, t = jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(bce_with_probs(p, t), [0, 0, 100, 100])
    gradient = jax.grad(lambda p: bce_with_probs(p, t).sum())(p)
    np.testing.assert_allclose(gradient, [0, 0, -1e12, 1e12])
    np.testing.assert_allclose(gradient, d_bce_with_probs(p, t))
    assert np.isnan(bce_with_probs(jnp.array([1.5, -0.5]), t[:2])).all()
