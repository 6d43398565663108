"""The primitives: values, gradients at their kinks, and digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core import elementary, power, sigmoid


def test_gradients_at_the_kinks_are_torchs():
    assert jax.grad(elementary.absolute)(0.0) == 0
    assert jax.grad(elementary.absolute)(-2.0) == -1
    assert jax.grad(elementary.clamp_min)(3.0, 3.0) == 1
    assert jax.grad(elementary.clamp_min)(2.9, 3.0) == 0
    assert np.isnan(elementary.clamp_min(jnp.nan, 3.0))
    x = jnp.array([-0.1, 0.0, 0.5, 1.0, 1.1, jnp.nan])
    np.testing.assert_array_equal(elementary.clamp(x, 0, 1), np.float32([0, 0, 0.5, 1, 1, np.nan]))
    slopes = jax.vmap(jax.grad(elementary.clamp), (0, None, None))(x, 0, 1)
    np.testing.assert_array_equal(slopes, [0, 1, 1, 1, 0, 1])


def test_divide():
    value, gradients = jax.value_and_grad(elementary.divide, argnums=(0, 1))(3.0, 0.0)
    assert (value, *gradients) == (0, 0, 0)
    assert elementary.divide(jnp.float32(3), jnp.float32(2)) == 1.5


def test_arctan2(x64):
    def grid(*numbers):
        numbers = [*(-x for x in numbers), *numbers]
        return (x.ravel() for x in np.meshgrid(numbers, numbers))

    x, y = grid(0.0, 1e-300, 1e-5, 0.7, 3, 1e200)
    expected = np.where((x == 0) & (y == 0), 0, np.arctan2(y, x))
    np.testing.assert_allclose(elementary.arctan2(y, x), expected, rtol=1e-15)
    gradient = jax.grad(elementary.arctan2, (0, 1))
    x, y = grid(1e-5, 0.7, 3)
    by_y, by_x = jax.vmap(gradient)(y, x)
    np.testing.assert_allclose(by_y, x / (x * x + y * y), rtol=1e-14)
    np.testing.assert_allclose(by_x, -y / (x * x + y * y), rtol=1e-14)
    assert np.isfinite(gradient(0.0, 0.0)).all()


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_power_at_0(exponent):
    value, (slope, other) = jax.value_and_grad(power.power, argnums=(0, 1))(0.0, exponent)
    assert value == float(exponent == 0)
    assert slope == float(exponent == 1)
    assert other == 0
    traced = jax.jit(jax.grad(power.power))(0.0, exponent)
    assert traced == slope


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_power_elsewhere(exponent, x64):
    base = jnp.array([1e-300, 1e-3, 0.5, 1.0, 3.0], jnp.float64)
    np.testing.assert_allclose(power.power(base, exponent), np.power(base, exponent))
    slopes = jax.vmap(jax.grad(power.power, argnums=(0, 1)), (0, None))(base, exponent)
    with np.errstate(all="ignore"):
        expected = exponent * np.power(base, exponent - 1)
    np.testing.assert_allclose(slopes[0], expected, rtol=1e-12)
    np.testing.assert_allclose(slopes[1], np.power(base, exponent) * np.log(base), rtol=1e-12)


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4])
def test_power_of_a_known_exponent(exponent, x64):
    base = jnp.array([0.0, 1e-3, 0.5, 1.0, 3.0], jnp.float64)
    known = power.WholeExponent(exponent)
    both = power.power_and_derivative(base, float(exponent))
    np.testing.assert_allclose(power.power(base, float(exponent)), both[0])
    np.testing.assert_allclose(power.power(base, known), both[0])
    np.testing.assert_allclose(power.power_and_derivative(base, known), both)
    slopes = jax.vmap(jax.grad(power.power), (0, None))(base, known)
    np.testing.assert_allclose(slopes, both[1])
    assert np.isfinite(power.power_and_derivative(jnp.float64(1e-310), float(exponent))).all()


@pytest.mark.parametrize("exponent", [0.0, 0.1, 0.5, 1.0, 1.7, 2.0, 4.0, 7.3, -0.75])
def test_power_in_float32_has_its_digits(exponent):
    base = 10 ** np.random.default_rng(0).uniform(-37, 38, 100_000)
    base = np.append(base, [0.5, 1, 2, 2.0**-126]).astype(np.float32)
    expected = base.astype(np.float64) ** np.float32(exponent)
    power = jax.jit(power.power)(base, exponent)
    finite = (expected > 2.0**-126) & (expected < 2.0**127)
    rtol = 2e-7 + 1e-7 * abs(exponent)
    np.testing.assert_allclose(power[finite], expected[finite], rtol)
    assert (power[expected <= 2.0**-126] <= 2.0**-126).all()
    assert (power[expected >= 2.0**127] > 2.0**126).all()
    assert power[-3] == 1
    if exponent > 0:
        edges = jnp.array([0, 1e-40, np.inf, np.nan], jnp.float32)
        np.testing.assert_array_equal(power.power(edges, exponent), [0, 0, np.inf, np.nan])


LOGITS = np.array([-1e4, -100, -20, -1e-3, 0, 1e-3, 20, 100, 1e4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_bce_with_logits(dtype, target, x64):
    x, t = LOGITS.astype(dtype), np.full(LOGITS.shape, target, dtype)
    exact = t * np.logaddexp(0, -LOGITS) + (1 - t) * np.logaddexp(0, LOGITS)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(sigmoid.bce_with_logits(x, t), exact, rtol=rtol, atol=1e-38)
    gradient = jax.grad(lambda x, t: sigmoid.bce_with_logits(x, t).sum(), argnums=(0, 1))(x, t)
    sigmoid = np.exp(-np.logaddexp(0, -LOGITS))
    np.testing.assert_allclose(gradient[0], sigmoid - target, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient[1], -LOGITS, rtol=1e-6)


@pytest.mark.parametrize("logistic", [sigmoid.sigmoid_parts, sigmoid.sigmoid_parts_in_derivative])
@pytest.mark.parametrize(("dtype", "ulp"), [(np.float32, 3), (np.float64, 7)])
def test_logistic(logistic, dtype, ulp, x64):
    """Of few ulp each, for small probabilities too."""
    x = np.concatenate([LOGITS, np.linspace(-60, 60, 997)]).astype(dtype)
    exact = x.astype(np.longdouble)
    e = np.exp(-np.abs(exact))
    near, far = 1 / (1 + e), e / (1 + e)
    expected = np.where(x >= 0, near, far), np.where(x >= 0, far, near), np.log1p(e)
    for got, want in zip(jax.jit(logistic)(x), expected, strict=True):
        # XLA flushes what is below the smallest normal number to 0.
        atol, rtol = float(np.finfo(dtype).tiny), ulp * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(got, want.astype(np.float64), rtol=rtol, atol=atol)


def test_slopes_of_logistic(x64):
    x = jnp.array([-30.0, -1.0, 0.0, 2.0, 40.0])
    p, not_p, tail = (
        jax.vmap(jax.grad(lambda x, i=i: sigmoid.sigmoid_parts(x)[i]))(x) for i in range(3)
    )
    sigmoid = 1 / (1 + np.exp(-x))
    np.testing.assert_allclose(p, sigmoid / (1 + np.exp(x)), rtol=1e-14)
    np.testing.assert_allclose(not_p, -p)
    # Of log(1 + exp(-|x|)); by symmetry 0 at 0.
    np.testing.assert_allclose(tail, -np.sign(x) / (1 + np.exp(np.abs(x))), rtol=1e-14)


def test_softplus(x64):
    np.testing.assert_allclose(sigmoid.softplus(LOGITS), np.logaddexp(0, LOGITS), rtol=1e-15)
    assert jax.grad(sigmoid.softplus)(0.0) == 0.5
    assert jax.grad(jax.grad(sigmoid.softplus))(0.0) == 0.25


def test_bce_with_probs_at_its_bounds():
    p, t = jnp.array([0.0, 1.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(sigmoid.bce_with_probs(p, t), [0, 0, 100, 100])
    gradient = jax.grad(lambda p: sigmoid.bce_with_probs(p, t).sum())(p)
    np.testing.assert_allclose(gradient, [0, 0, -1e12, 1e12])
    assert np.isnan(sigmoid.bce_with_probs(jnp.array([1.5, -0.5]), t[:2])).all()


def test_log1p_excess_keeps_its_digits(x64):
    v = np.geomspace(1e-12, 1e4, 200)
    # Below 1e-3 the series v²/2 - v³/6 + v⁴/12 - ... is exact to 1e-16 of the sum.
    series = sum((-1) ** k * v**k / (k * (k - 1)) for k in range(2, 9))
    # The plain form in extended precision is good to 1e-19 / v of the value.
    extended = v.astype(np.longdouble)
    plain = ((1 + extended) * np.log1p(extended) - extended).astype(np.float64)
    exact = np.where(v < 1e-2, series, plain)
    np.testing.assert_allclose(numerics.log1p_excess(v), exact, rtol=2e-14)
    single = numerics.log1p_excess(v.astype(np.float32))
    np.testing.assert_allclose(single, exact, rtol=2e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(numerics.log1p_excess))(v), np.log1p(v))
