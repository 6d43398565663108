"""The edge of every public function: one jit, checked hyperparameters, errors with a name."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.hyperparameters import Exponent, Positive
from visdet_jax.core.jitted import errors_named, jitted
from visdet_jax.core.power import WholeExponent

X = np.arange(3, dtype=np.float32)


def counting():
    """A jitted function, and what its traces were given."""
    traces = []

    @jitted
    def counted(x, *, gamma: Exponent = 2.0, scale: Positive = 1.0, mode="a", flag=False):
        """Its docstring."""
        traces.append((gamma, scale, mode, flag))
        return x * scale

    return counted, traces


def test_numbers_of_any_kind_share_one_trace():
    counted, traces = counting()
    for scale in (3, 3.0, np.float64(3), np.float32(3.5), 4):
        np.testing.assert_allclose(counted(X, scale=scale), scale * X)
    assert len(traces) == 1
    assert isinstance(traces[0][1], jax.core.Tracer)


def test_strings_and_flags_choose_the_program():
    counted, traces = counting()
    for options in ({"mode": "b"}, {"mode": "a"}, {"flag": True}, {"mode": "b"}):
        counted(X, **options)
    assert [trace[2:] for trace in traces] == [("b", False), ("a", False), ("a", True)]


def test_whole_exponents_are_static_and_others_traced():
    counted, traces = counting()
    for gamma in (0, 4.0, 2, 0.5, 1.5, 5, jnp.float32(2)):
        counted(X, gamma=gamma)
    counted(X)
    exponents = [trace[0] for trace in traces]
    assert exponents[:3] == [WholeExponent(0), WholeExponent(4), WholeExponent(2)]
    # One trace for 0.5, 1.5 and 5, and one for the array, whose type is float32 as well.
    assert 1 <= len(exponents[3:]) <= 2
    assert all(isinstance(x, jax.core.Tracer) for x in exponents[3:])


def test_hyperparameters_are_swept_by_vmap_and_differentiated():
    counted, _ = counting()
    swept = jax.vmap(lambda scale: counted(X, scale=scale))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(swept, [X, 2 * X])
    assert jax.grad(lambda scale: counted(X, scale=scale).sum())(1.0) == X.sum()


def test_static_names():
    @jitted(static=("bins",))
    def binned(x, *, bins=3, axis_name=None):
        assert isinstance(bins, int)
        return jnp.zeros(bins) + x.sum()

    assert binned(X, bins=5).shape == (5,)
    swept = jax.vmap(lambda x: binned(x, axis_name="data"), axis_name="data")(X[None])
    assert swept.shape == (1, 3)


def test_ranges_are_checked_before_anything_is_traced():
    counted, traces = counting()
    with pytest.raises(ValueError, match=r"^counted: scale must be above 0, got -1$"):
        counted(X, scale=-1)
    with pytest.raises(ValueError, match=r"^counted: gamma must be at least 0, got -0\.5$"):
        counted(X, gamma=-0.5)
    assert not traces


def test_an_unknown_argument_says_what_was_meant_and_names_the_function_once():
    counted, _ = counting()
    with pytest.raises(TypeError) as caught:
        counted(X, scael=1)
    assert str(caught.value) == (
        "counted: there is no argument 'scael'. Did you mean 'scale'? The arguments: x, gamma, "
        "scale, mode, flag."
    )


def test_a_missing_argument_is_named():
    counted, _ = counting()
    with pytest.raises(TypeError, match=r"^counted: the argument 'x' is missing$"):
        counted(scale=1.0)


def test_it_looks_as_the_function_does():
    counted, _ = counting()
    assert counted.__name__ == "counted"
    assert counted.__doc__ == "Its docstring."
    names = ["x", "gamma", "scale", "mode", "flag"]
    assert list(inspect.signature(counted).parameters) == names


class TestErrorsNamed:
    """Errors are given the name of a function, once."""

    @pytest.mark.parametrize("kind", [TypeError, ValueError])
    def test_a_name_is_put_in_front(self, kind):
        with pytest.raises(kind, match=r"^loss: wrong shape$"), errors_named("loss"):
            raise kind("wrong shape")

    def test_but_not_twice(self):
        with (
            pytest.raises(ValueError, match=r"^loss: wrong shape$"),
            errors_named("loss"),
            errors_named("loss"),
        ):
            raise ValueError("wrong shape")

    def test_the_cause_is_kept(self):
        cause = ValueError("wrong shape")
        with pytest.raises(ValueError, match=r"^loss: wrong") as caught, errors_named("loss"):
            raise cause
        assert caught.value.__cause__ is cause

    def test_errors_of_other_kinds_stay_as_they_are(self):
        class Other(ValueError):
            def __init__(self):
                super().__init__("an error with a constructor of its own")

        for error in (Other(), KeyError("key"), jax.errors.UnexpectedTracerError("leak")):
            with pytest.raises(type(error)) as caught, errors_named("loss"):
                raise error
            assert caught.value is error

    def test_errors_inside_the_jit_have_the_name(self):
        @jitted
        def picky(x):
            raise ValueError(f"x must have shape (2,), got {x.shape}")

        with pytest.raises(ValueError, match=r"^picky: x must have shape \(2,\), got \(3,\)$"):
            picky(X)
