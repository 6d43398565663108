"""Polynomials that stand for functions on [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.polynomial import evaluate, fit_polynomials, log1p_on_unit


def test_a_polynomial_is_found_again(x64):
    """And evaluated by the coefficients of x's own type."""
    fits = fit_polynomials(lambda x: 1 - 3 * x + x**3, {np.float32: 1, np.float64: 3})
    assert [len(fits[np.dtype(dtype)]) for dtype in (np.float32, np.float64)] == [2, 4]
    x = jnp.linspace(0, 1, 11, dtype=jnp.float64)
    np.testing.assert_allclose(evaluate(fits, x), 1 - 3 * x + x**3, atol=1e-15)
    assert evaluate(fits, x.astype(jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize(("dtype", "ulp"), [(np.float32, 2), (np.float64, 6)])
def test_log1p_on_unit_keeps_its_digits(dtype, ulp, x64):
    e = np.concatenate([[0], np.geomspace(1e-30, 1, 500), np.linspace(0, 1, 500)]).astype(dtype)
    exact = np.log1p(e.astype(np.longdouble)).astype(np.float64)
    value = jax.jit(log1p_on_unit)(e)
    assert value.dtype == dtype
    np.testing.assert_allclose(value, exact, rtol=ulp * float(np.finfo(dtype).eps))
