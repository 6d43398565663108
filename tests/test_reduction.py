"""Weight, reduction and avg_factor on their own."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax import giou_loss, reduce_loss, reduce_mean, weight_reduce_loss, weighted_loss
from visdet_jax.core.elementary import absolute

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
    assert str(inspect.signature(giou_loss)) == (
        "(pred, target, weight=None, *, eps=1e-06, inner_ratio=None, focaler=None, "
        "reduction='mean', avg_factor=None)"
    )
    assert giou_loss.__name__ == "giou_loss"
    assert "Rezatofighi" in giou_loss.__doc__


def test_a_misspelt_keyword_is_a_type_error():
    boxes = jnp.zeros((2, 4))
    with pytest.raises(TypeError, match=r"giou_loss: .*unexpected keyword argument 'epz'"):
        giou_loss(boxes, boxes, epz=1.0)


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


@pytest.mark.parametrize("slope", [None, lambda pred, target, *, bounds: bounds[0] + 0 * pred])
def test_a_hyperparameter_may_be_none_or_a_tuple_of_numbers(slope):
    @functools.partial(weighted_loss, slope=slope)
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
