"""Weight, reduction and avg_factor on their own."""

import inspect
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax import giou_loss, reduce_loss, reduce_mean, weight_reduce_loss, weighted_loss
from visdet_jax.core.elementary import absolute
from visdet_jax.core.hyperparameters import Positive
from visdet_jax.reduction import Reduce

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    "weight",
    [
        np.array([1, 0, 2, -1], np.float32),
        np.array([[1], [0], [2], [-1]], np.float32),
        np.array([[1, 0, 2]], np.float32),
        VALUES > 4,
        np.arange(4),
    ],
)
def test_weights_that_fit(weight):
    full = np.broadcast_to(weight.reshape(weight.shape + (1,) * (2 - weight.ndim)), VALUES.shape)
    expected = VALUES * full
    np.testing.assert_allclose(weight_reduce_loss(VALUES, weight, "none"), expected)
    np.testing.assert_allclose(weight_reduce_loss(VALUES, weight, "sum"), expected.sum())
    np.testing.assert_allclose(weight_reduce_loss(VALUES, weight), expected.sum() / 12)
    np.testing.assert_allclose(
        weight_reduce_loss(VALUES, weight, avg_factor=4), expected.sum() / 4, rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3,), (), (4, 2), (2, 3), (4, 3, 1), (12,), (1,)])
def test_weights_that_do_not_fit(shape):
    with pytest.raises(ValueError, match=r"weight \(.*\) does not fit values \(4, 3\)"):
        weight_reduce_loss(VALUES, np.ones(shape, np.float32))


def test_square_values_take_a_weight_a_row():
    square = np.ones((4, 4), np.float32)
    weight = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(
        weight_reduce_loss(square, weight, "none"), np.repeat(weight[:, None], 4, 1)
    )


def test_weight_0_hides_nan_and_inf_and_a_nan_weight_does_not():
    values = jnp.array([1.0, jnp.nan, jnp.inf])
    weight = jnp.array([1.0, 0.0, 0.0])
    value, gradient = jax.value_and_grad(weight_reduce_loss)(values, weight)
    np.testing.assert_allclose(value, 1 / 3)
    np.testing.assert_allclose(gradient, [1 / 3, 0, 0])
    assert np.isnan(weight_reduce_loss(values, weight.at[0].set(jnp.nan)))


def test_avg_factor():
    assert weight_reduce_loss(VALUES, avg_factor=0) == np.float32(66 / 1.1920929e-07)
    assert weight_reduce_loss(VALUES * 0, avg_factor=0) == 0
    half = jnp.full(4, 3, jnp.bfloat16)
    assert np.isfinite(weight_reduce_loss(half, avg_factor=jnp.bfloat16(0)))
    with pytest.raises(ValueError, match="avg_factor must be a number, got an array of shape"):
        weight_reduce_loss(VALUES, avg_factor=np.ones(1))


def test_half_floats_are_summed_in_float32():
    total = reduce_loss(jnp.ones(70_000, jnp.float16), "sum")
    assert total == 70_000
    assert total.dtype == jnp.float32


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of none, mean, sum; got 'avg'"):
        reduce_loss(VALUES, "avg")


def test_numbers_of_any_kind_share_one_trace():
    traces = []

    @weighted_loss
    def counted(pred, target, *, beta=1.0):
        traces.append(beta)
        return (pred - target) * beta

    for number in (3, 3.5, np.float32(3), np.float64(4), jnp.float32(7)):
        counted(VALUES, VALUES, avg_factor=number, beta=float(number))
    assert len(traces) == 1


def test_help_shows_the_whole_signature():
    parameters = inspect.signature(giou_loss).parameters.values()
    assert [str(p.replace(annotation=p.empty)) for p in parameters] == [
        "pred",
        "target",
        "weight=None",
        "eps=1e-06",
        "inner_ratio=None",
        "focaler=None",
        "reduction='mean'",
        "avg_factor=None",
    ]
    assert [p.name for p in parameters if p.kind != p.KEYWORD_ONLY] == ["pred", "target", "weight"]
    assert giou_loss.__name__ == "giou_loss"
    assert "Rezatofighi" in giou_loss.__doc__


def test_a_misspelt_keyword_says_what_was_meant_and_names_the_function_once():
    boxes = jnp.zeros((2, 4))
    with pytest.raises(TypeError) as caught:
        giou_loss(boxes, boxes, ep=1)
    assert str(caught.value) == (
        "giou_loss: there is no argument 'ep'. Did you mean 'eps'? The arguments: pred, target, "
        "weight, eps, inner_ratio, focaler, reduction, avg_factor."
    )


def test_a_missing_hyperparameter_is_named():
    @weighted_loss
    def scaled(pred, target, *, scale: Positive):
        return (pred - target) * scale

    assert scaled(VALUES, 0 * VALUES, scale=2.0, reduction="sum") == 132
    with pytest.raises(TypeError, match=r"^scaled: the argument 'scale' is missing$"):
        scaled(VALUES, VALUES)


class TestDecoration:
    """What `weighted_loss` takes for a formula."""

    def test_positional_hyperparameters_are_taken_and_shown_as_keywords(self):
        """mmdet's form."""

        @weighted_loss
        def scaled(pred, target, eps=1e-6, scale=2.0):
            return (pred - target) * scale + eps

        names = ["pred", "target", "weight", "eps", "scale", "reduction", "avg_factor"]
        parameters = inspect.signature(scaled).parameters
        assert list(parameters) == names
        assert parameters["eps"].kind == parameters["scale"].kind == inspect.Parameter.KEYWORD_ONLY
        assert parameters["eps"].default == 1e-6
        np.testing.assert_allclose(scaled(VALUES, 0 * VALUES, scale=3.0), 16.5, rtol=1e-6)
        weight = np.array([1, 0, 0, 0], np.float32)
        np.testing.assert_allclose(scaled(VALUES, 0 * VALUES, weight, eps=0.0), 0.5, rtol=1e-6)

    def test_a_whole_default_is_an_error(self):
        with pytest.raises(
            TypeError,
            match=r"^steep: the hyperparameter 'power' has the default 2: numbers are traced, so "
            r"write 2\.0, or static=\('power',\) for a count$",
        ):

            @weighted_loss
            def steep(pred, target, *, power=2):
                return (pred - target) ** power

    def test_a_static_count_may_have_a_whole_default(self):
        @weighted_loss(static=("power",))
        def steep(pred, target, *, power=2):
            return (pred - target) ** power

        assert steep(VALUES, 0 * VALUES, reduction="sum") == (VALUES**2).sum()
        assert steep(VALUES, 0 * VALUES, power=3, reduction="sum") == (VALUES**3).sum()

    def test_what_cannot_be_given_by_name_is_an_error(self):
        with pytest.raises(
            TypeError, match=r"^any_number: the hyperparameter 'scales' cannot be given by its name"
        ):

            @weighted_loss
            def any_number(pred, target, *scales):
                return pred - target

        with pytest.raises(TypeError, match=r"^nameless: the hyperparameter .scale. cannot"):

            @weighted_loss
            def nameless(pred, target, scale=1.0, /):
                return pred - target

    @pytest.mark.parametrize("name", ["weight", "reduction", "avg_factor"])
    def test_the_names_of_the_added_arguments_are_taken(self, name):
        parameters = [
            inspect.Parameter(parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            for parameter in ("pred", "target", name)
        ]

        def formula(pred, target, **options):
            return pred - target

        formula.__signature__ = inspect.Signature(parameters)
        with pytest.raises(
            TypeError,
            match=f"^formula: the hyperparameter '{name}' has the name of an argument that "
            "weighted_loss adds$",
        ):
            weighted_loss(formula)

    def test_a_formula_without_target_is_an_error(self):
        with pytest.raises(TypeError, match=r"^alone: a formula takes pred and target, and then"):

            @weighted_loss
            def alone(pred, *, scale=1.0):
                return pred

    def test_reduce_is_not_given_to_the_formula(self):
        given = []

        @weighted_loss
        def counted(pred, target, *, scale=1.0, **reduce: Unpack[Reduce]):
            given.append(reduce)
            return (pred - target) * scale

        counted(VALUES, VALUES, reduction="sum")
        counted(VALUES, VALUES, avg_factor=3)
        assert given == [{}, {}]
        assert "reduce" not in inspect.signature(counted).parameters


def test_a_hyperparameter_is_swept_by_vmap():
    pred = jnp.array([[0.0, 0, 10, 10]])
    target = jnp.array([[50.0, 50, 60, 60]])
    swept = jax.vmap(lambda eps: giou_loss(pred, target, eps=eps))(jnp.array([1e-6, 1e6]))
    assert swept[0] != swept[1]


def test_gradients_with_respect_to_target_weight_and_hyperparameter():
    @weighted_loss
    def scaled(pred, target, *, scale=1.0):
        return absolute(pred - target) * scale

    pred, target, weight = jnp.array([1.0, 5.0]), jnp.array([0.0, 7.0]), jnp.array([1.0, 2.0])
    gradients = jax.grad(
        lambda t, w, s: scaled(pred, t, w, scale=s, reduction="sum"), argnums=(0, 1, 2)
    )(target, weight, 3.0)
    for gradient, expected in zip(gradients, ([-3.0, 6.0], [3.0, 6.0], 5.0), strict=True):
        np.testing.assert_allclose(gradient, expected)


@pytest.mark.parametrize("derivative", [None, lambda pred, target, *, bounds: bounds[0] + 0 * pred])
def test_a_hyperparameter_may_be_none_or_a_tuple_of_numbers(derivative):
    @weighted_loss(derivative=derivative)
    def scaled(pred, target, *, bounds=None):
        return pred if bounds is None else bounds[0] * pred + bounds[1]

    pred = jnp.array([1.0, 5.0])
    np.testing.assert_allclose(scaled(pred, pred, reduction="none"), pred)
    swept = jax.vmap(lambda low: scaled(pred, pred, bounds=(low, 3), reduction="none"))(pred)
    np.testing.assert_allclose(swept, [[4, 8], [8, 28]])
    of_bounds = jax.grad(lambda bounds: scaled(pred, pred, bounds=bounds, reduction="sum"))
    np.testing.assert_allclose(of_bounds((2.0, 3.0)), [6, 2])
    of_pred = jax.grad(lambda x: scaled(x, pred, pred * 0, bounds=(2.0, 3.0)))
    np.testing.assert_array_equal(of_pred(pred * jnp.nan), [0, 0])


def test_reduce_mean():
    counts = jnp.array([0.0, 4.0])
    assert reduce_mean(counts) is counts
    np.testing.assert_array_equal(
        jax.vmap(lambda n: reduce_mean(n, "devices"), axis_name="devices")(counts), [2.0, 2.0]
    )
