"""Powers: values and gradients at 0 and elsewhere, whole exponents, digits in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.power import WholeExponent, power, power_and_derivative

every_exponent = pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 4.0])


@every_exponent
def test_at_0(exponent):
    value, (d_base, d_exponent) = jax.value_and_grad(power, argnums=(0, 1))(0.0, exponent)
    assert value == float(exponent == 0)
    assert d_base == float(exponent == 1)
    assert d_exponent == 0
    traced = jax.jit(jax.grad(power))(0.0, exponent)
    assert traced == d_base


@every_exponent
def test_elsewhere(exponent, x64):
    base = jnp.array([1e-300, 1e-3, 0.5, 1.0, 3.0], jnp.float64)
    np.testing.assert_allclose(power(base, exponent), np.power(base, exponent))
    d_base, d_exponent = jax.vmap(jax.grad(power, argnums=(0, 1)), (0, None))(base, exponent)
    with np.errstate(all="ignore"):
        expected = exponent * np.power(base, exponent - 1)
    np.testing.assert_allclose(d_base, expected, rtol=1e-12)
    np.testing.assert_allclose(d_exponent, np.power(base, exponent) * np.log(base), rtol=1e-12)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_a_whole_exponent(exponent, x64):
    base = jnp.array([0.0, 1e-3, 0.5, 1.0, 3.0], jnp.float64)
    whole = WholeExponent(exponent)
    both = power_and_derivative(base, float(exponent))
    np.testing.assert_allclose(power(base, float(exponent)), both[0])
    np.testing.assert_allclose(power(base, whole), both[0])
    np.testing.assert_allclose(power_and_derivative(base, whole), both)
    gradients = jax.vmap(jax.grad(power), (0, None))(base, whole)
    np.testing.assert_allclose(gradients, both[1])
    np.testing.assert_allclose(power(base, whole + 1), power(base, float(exponent + 1)))
    assert np.isfinite(power_and_derivative(jnp.float64(1e-310), float(exponent))).all()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("exponent", [0.0, 0.1, 0.5, 1.0, 1.7, 2.0, 4.0, 7.3, -0.75])
def test_float32_has_its_digits(exponent):
    base = 10 ** np.random.default_rng(0).uniform(-37, 38, 100_000)
    base = np.append(base, [0.5, 1, 2, 2.0**-126]).astype(np.float32)
    expected = base.astype(np.float64) ** np.float32(exponent)
    value = jax.jit(power)(base, exponent)
    finite = (expected > 2.0**-126) & (expected < 2.0**127)
    rtol = 2e-7 + 1e-7 * abs(exponent)
    np.testing.assert_allclose(value[finite], expected[finite], rtol)
    assert (value[expected <= 2.0**-126] <= 2.0**-126).all()
    assert (value[expected >= 2.0**127] > 2.0**126).all()
    assert value[-3] == 1
    if exponent > 0:
        edges = jnp.array([0, 1e-40, np.inf, np.nan], jnp.float32)
        np.testing.assert_array_equal(power(edges, exponent), [0, 0, np.inf, np.nan])
