"""Losses in closed form: what is read, and derivatives of every order and argument."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from programs import temporary_bytes
from visdet_jax import (
    asymmetric_loss,
    gaussian_focal_loss,
    sigmoid_focal_loss,
    varifocal_loss,
)
from visdet_jax.core.closed_form import closed_form


def value(x, t):
    return jnp.sin(x) * t


def derivative(x, t):
    return jnp.cos(x) * t


def row_value(x, t):
    return (jnp.sin(x) * t).sum(1)


def row_value_alone(x, t, alone=False):
    return row_value(x, t)


def inputs(weight_shape):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 3, 4))
    return rng.uniform(0.5, 2, weight_shape), x, t


FORMS = {
    "entries": (closed_form(value, derivative), value, (3, 4)),
    "rows of entries": (closed_form(value, derivative), value, (3, 1)),
    "rows": (closed_form(row_value, derivative, axis=1), row_value, (3,)),
    "alone": (closed_form(row_value_alone, derivative, axis=(1,), has_alone=True), row_value, (3,)),
}


@pytest.mark.parametrize("name", FORMS)
def test_equals_autodiff(name, x64):
    """Value, gradients by weight, pred and the other, and second derivatives, at once."""
    weighted, formula, shape = FORMS[name]
    arguments = inputs(shape)

    def given(weight, x, t):
        return weighted(weight, x, t).sum()

    def plain(weight, x, t):
        return (weight * formula(x, t)).sum()

    both = jax.jit(lambda *a: [(f(*a), jax.grad(f, (0, 1, 2))(*a), jax.hessian(f, (0, 1, 2))(*a))
                               for f in (given, plain)])  # fmt: skip
    got, expected = both(*arguments)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), got, expected)


@pytest.mark.parametrize("name", FORMS)
def test_reads_nothing_of_weight_0(name, x64):
    weighted, _, shape = FORMS[name]
    weight, x, t = inputs(shape)
    weight[1] = 0
    bad = x.copy()
    bad[1] = np.nan

    def given(x, t):
        return weighted(weight, x, t).sum()

    @jax.jit
    def derivatives(x):
        second = jax.jvp(jax.grad(given), (x, t), (jnp.ones_like(x), jnp.ones_like(t)))[1]
        return given(x, t), jax.grad(given, (0, 1))(x, t), second

    got, expected = derivatives(bad), derivatives(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), got, expected)
    for gradient in got[1]:
        assert not np.any(gradient[1])


def test_nan_of_a_weighted_entry_stays():
    weighted, _, _ = FORMS["entries"]
    x = jnp.array([[jnp.nan, 1.0]])
    assert np.isnan(weighted(None, x, jnp.ones_like(x))).tolist() == [[True, False]]
    assert np.isnan(weighted(jnp.ones_like(x), x, jnp.ones_like(x))).tolist() == [[True, False]]


def test_without_weight_and_with_integers():
    """The others may be integers, such as labels: they have no derivative."""
    weighted = closed_form(
        lambda x, n: jnp.where(n == 1, x * x, 0), lambda x, n: jnp.where(n == 1, 2 * x, 0)
    )
    x = jnp.array([[0.5, -1.0]])
    gradient = jax.grad(lambda x: weighted(None, x, jnp.array([[1, 2]])).sum())(x)
    np.testing.assert_array_equal(gradient, [[1, 0]])


def test_keeps_nothing_for_the_backward_pass():
    """Value and gradient of an elementwise loss need one array of pred's size beside them."""
    weighted, _, _ = FORMS["entries"]
    x = jnp.ones((1000, 8))
    both = jax.jit(jax.value_and_grad(lambda x, w: weighted(w, x, 2.0).sum()))
    assert temporary_bytes(both, x, jnp.ones((1000, 1))) <= 1.1 * x.nbytes


PROBABILITIES = np.linspace(0.01, 0.99, 8000, dtype=np.float32).reshape(1000, 8)


@pytest.mark.parametrize("weight", [None, np.ones(1000, np.float32)], ids=["alone", "weighted"])
@pytest.mark.parametrize(
    "loss", [sigmoid_focal_loss, varifocal_loss, asymmetric_loss], ids=lambda loss: loss.__name__
)
def test_value_and_derivative_share_nothing_of_the_sigmoid(loss, weight):
    """Two arrays more where both spell -|x| in the same way; see `sigmoid_parts`."""

    def total(pred, target, weight):
        return loss(pred, target, weight)

    both = jax.value_and_grad(total)
    needed = temporary_bytes(both, PROBABILITIES, PROBABILITIES, weight)
    assert needed <= 1.1 * PROBABILITIES.nbytes


@pytest.mark.parametrize("function", [gaussian_focal_loss, jax.value_and_grad(gaussian_focal_loss)])
def test_the_sum_of_a_loss_without_weight_stays_one_loop(function):
    """Three or four arrays without the `where` that closed_form's comment says to keep."""
    needed = temporary_bytes(function, PROBABILITIES, PROBABILITIES)
    assert needed <= 1.1 * PROBABILITIES.nbytes


@pytest.mark.parametrize("loss", [varifocal_loss, gaussian_focal_loss])
def test_only_the_value_looks_for_nan(loss):
    """Where the derivative does too, a TPU stores what was found and takes 4.5 times as long."""
    x = jnp.full((4, 4), 0.5)
    text = jax.jit(jax.value_and_grad(loss)).lower(x, x).as_text()
    found = re.findall(r"stablehlo.compare +NE, (%\w+), \1, +FLOAT", text)
    assert len(found) == 1
