"""The laws that every registered loss obeys, each asked of all rows of `tests/cases.py`.

Without `--all` the first row of each class stands for it where something is compiled, which takes
most of the time. What only traces, or runs operation by operation (`eagerly`), takes all rows.
"""

import contextlib
import copy
import dataclasses
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cases import (
    CASE_ROWS,
    ONE_EACH,
    ONE_EACH_WITH_BARE,
    ROWS,
    WITH_BARE,
    WITH_METRICS,
    added,
    as_long,
    few,
    first_rows,
)
from settings import number_fields
from visdet_jax import LOSSES, Loss, build_loss

every_row = pytest.mark.parametrize(("name", "row"), WITH_METRICS)
every_row_of_a_loss = pytest.mark.parametrize(("name", "row"), CASE_ROWS)
every_differentiable_row = pytest.mark.parametrize(("name", "row"), WITH_BARE)
every_class = pytest.mark.parametrize(("name", "row"), first_rows(WITH_METRICS))
every_differentiable = pytest.mark.parametrize(("name", "row"), first_rows(WITH_BARE))
every_loss = pytest.mark.parametrize(("name", "row"), first_rows(CASE_ROWS))
# What the base class does.
one_of_each_loss = pytest.mark.parametrize(
    ("name", "row"), few([param for param in ONE_EACH if issubclass(LOSSES[param.id], Loss)])
)
# Gradients are mostly asked for with these, so that the laws share a program.
WEIGHTED = {"weight": np.ones(ROWS, np.float32), "avg_factor": 3.0}


def run(loss, pred, target, *arguments, **options):
    """The result of a first call: through `init` and `update`, which every loss has."""
    if not isinstance(loss, Loss):
        return loss(pred, target, *arguments, **options)
    return loss.update(loss.init(), pred, target, *arguments, **options)[0]


@functools.cache
def compiled_value_and_gradients(loss, **options):
    """One jitted function for all tests of a loss: those of the same shapes share its programs."""

    @jax.jit
    def compiled(pred, target, keywords, weight, avg_factor):
        def total(pred, weight):
            reduce = {"weight": weight, "avg_factor": avg_factor}
            reduce = {key: given for key, given in reduce.items() if given is not None}
            value = added(run(loss, pred, target, **reduce, **keywords, **options))
            return value.sum(), value

        run_total = jax.value_and_grad(total, (0, 1), has_aux=True)
        (_, value), gradients = run_total(pred, weight)
        return value, *gradients

    return compiled


def eagerly(test):
    """Runs a test operation by operation, which compiles little: the first law says it is equal."""
    return jax.disable_jit()(test)


class Call:
    """A loss and its inputs."""

    def __init__(self, name, row, make="inputs", seed=0, **config):
        self.loss = build_loss({"type": name, **row.config, **config})
        arguments = jax.tree.map(jnp.asarray, row.arguments(make, seed))
        self.pred, self.target, self.keywords = arguments

    def __call__(self, pred, weight=None, **options):
        weight = () if weight is None else (weight,)
        return added(run(self.loss, pred, self.target, *weight, **self.keywords, **options))

    def map(self, function):
        """The same call with `function` of each of its arrays."""
        other = copy.copy(self)
        other.pred, other.target, other.keywords = jax.tree.map(
            function, (self.pred, self.target, self.keywords)
        )
        return other

    def rows(self, index):
        """The same call on some of its rows, taken by numpy, which compiles nothing."""
        return self.map(lambda x: jnp.asarray(np.asarray(x)[index]))

    def astype(self, dtype):
        """The same call with its floats in another type."""

        def cast(x):
            is_float = jnp.issubdtype(x.dtype, jnp.floating)
            return jnp.asarray(np.asarray(x).astype(dtype)) if is_float else x

        return self.map(cast)

    def value_and_gradients(self, weight=None, avg_factor=None):
        """Jitted: value, the gradients of its sum by pred and by weight (None without one)."""
        compiled = compiled_value_and_gradients(self.loss)
        return compiled(self.pred, self.target, self.keywords, weight, avg_factor)

    def value_and_gradient(self, weight=None, avg_factor=None):
        return self.value_and_gradients(weight, avg_factor)[:2]

    def shaped_value_and_gradient(self, avg_factor=None, **options):
        """The shapes and types of both, for which nothing is compiled."""
        compiled = compiled_value_and_gradients(self.loss, **options)
        arguments = self.pred, self.target, self.keywords, None, avg_factor
        return jax.eval_shape(compiled, *arguments)[:2]


@pytest.mark.one_in(16)
@every_class
def test_jit_equals_eager_and_vmap_the_loop(name, row):
    # Of the shapes of the other laws, with which they share the programs of single operations.
    calls = [Call(name, row, seed=seed) for seed in range(2)]
    batch = [(call.pred, call.target, call.keywords) for call in calls]

    def first(pred, target, keywords):
        return run(calls[0].loss, pred, target, **keywords)

    jitted = jax.jit(first)
    loop = [jitted(*arguments) for arguments in batch]
    with jax.disable_jit():
        eager = first(*batch[1])
    chex.assert_trees_all_close(loop[1], eager, rtol=2e-5, atol=1e-6)
    stacked, looped = (jax.tree.map(lambda *x: np.stack(x), *trees) for trees in (batch, loop))
    chex.assert_trees_all_close(jax.vmap(jitted)(*stacked), looped, rtol=2e-5, atol=1e-6)


@pytest.mark.one_in(8)
@every_differentiable
def test_numbers_are_traceable(name, row):
    call = Call(name, row)
    settings = {key: getattr(call.loss, key) for key in number_fields(type(call.loss))}
    settings = {key: value for key, value in settings.items() if isinstance(value, int | float)}
    assert row.is_bare or "loss_weight" in settings
    sweep = {key: jnp.array([value, value + 0.25]) for key, value in settings.items()}

    def build_and_run(settings):
        loss = dataclasses.replace(call.loss, **settings)
        return added(run(loss, call.pred, call.target, **call.keywords))

    swept = jax.jit(jax.vmap(build_and_run))(sweep)
    for i in range(2):
        with jax.disable_jit():
            alone = build_and_run({key: float(values[i]) for key, values in sweep.items()})
        np.testing.assert_allclose(swept[i], alone, rtol=2e-5, atol=1e-6)


@pytest.mark.one_in(8)
@every_differentiable
def test_finite_for_every_finite_input(name, row):
    call = Call(name, row, "extremes", **({} if row.is_bare else {"reduction": "none"}))
    value, gradient = call.value_and_gradient()
    assert np.isfinite(value).all(), f"{name} is not finite: {value}"
    assert np.isfinite(gradient).all(), f"the gradient of {name} is not finite: {gradient}"


@pytest.mark.one_in(8)
@every_differentiable
def test_forward_mode_and_second_derivatives(name, row):
    call = Call(name, row)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=call.pred.shape), jnp.float32)

    @jax.jit
    def derivatives(pred, direction):
        return jax.jvp(call, (pred,), (direction,)), jax.jvp(jax.grad(call), (pred,), (direction,))

    (_, derivative), (gradient, second) = derivatives(call.pred, direction)
    np.testing.assert_allclose(derivative, (gradient * direction).sum(), rtol=1e-4, atol=1e-5)
    assert np.isfinite(second).all(), f"a second derivative of {name} is not finite: {second}"


@pytest.mark.one_in(8)
@every_loss
def test_a_row_of_weight_0_is_not_read(name, row):
    call = Call(name, row)
    padding = np.array([0, 3])

    def with_garbage(x):
        x = np.array(x)
        x[padding] = np.nan if np.issubdtype(x.dtype, np.floating) else 10**6
        return jnp.asarray(x)

    weight = np.ones(ROWS, np.float32)
    weight[padding] = 0
    expected, expected_gradient = call.value_and_gradient(weight, avg_factor=3.0)
    padded = call.map(with_garbage)
    value, gradient, weight_gradient = padded.value_and_gradients(weight, avg_factor=3.0)
    np.testing.assert_array_equal(value, expected, f"{name} reads rows of weight 0")
    np.testing.assert_array_equal(gradient, expected_gradient, f"{name} reads rows of weight 0")
    assert not np.any(np.asarray(gradient)[padding])
    kept = call.rows(np.array([1, 2, 4, 5, 6, 7]))
    np.testing.assert_allclose(value, kept(kept.pred, avg_factor=3.0), rtol=1e-5)
    assert np.isfinite(weight_gradient).all()


@pytest.mark.one_in(16)
@every_loss
def test_the_mean_of_nothing_is_0(name, row):
    call = Call(name, row)
    nothing, without = call.rows(slice(0, 0)), np.zeros(ROWS, np.float32)
    value = jax.jit(nothing)(nothing.pred)  # Operation by operation it would be ten programs.
    with jax.disable_jit():
        assert call(call.pred, without) == 0
    assert value.shape == ()
    assert value == 0
    empty, gradient = nothing.shaped_value_and_gradient(reduction_override="none")
    full, _ = call.shaped_value_and_gradient(reduction_override="none")
    assert empty.shape == (0, *full.shape[1:])
    assert gradient.shape == nothing.pred.shape
    value, gradient = call.value_and_gradient(without, avg_factor=0.0)
    assert value == 0
    assert not np.any(gradient)


@pytest.mark.one_in(8)
@pytest.mark.parametrize(
    ("name", "row", "dtype"),
    [
        pytest.param(*param.values, dtype, id=f"{param.id}-{dtype.__name__}", marks=param.marks)
        for dtype, params in (
            (jnp.bfloat16, first_rows(WITH_BARE)),
            (jnp.float16, map(as_long, ONE_EACH_WITH_BARE)),
        )
        for param in params
    ],
)
def test_half_floats_are_computed_in_float32(name, row, dtype):
    half = Call(name, row).astype(dtype)
    reduce = {} if row.is_bare else WEIGHTED
    value, gradient = half.value_and_gradient(**reduce)
    assert value.dtype == jnp.float32
    assert gradient.dtype == dtype
    expected, expected_gradient = half.astype(jnp.float32).value_and_gradient(**reduce)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(gradient, np.asarray(expected_gradient).astype(dtype))


@pytest.mark.one_in(8)
@every_differentiable_row
def test_float64_stays_float64(name, row, x64):
    call = Call(name, row)
    options = {} if row.is_bare else {"avg_factor": 3}
    value, gradient = call.shaped_value_and_gradient(**options)
    assert value.dtype == gradient.dtype == jnp.float32  # what is float32 stays so as well
    call.pred = call.pred.astype(jnp.float64)
    value, gradient = call.shaped_value_and_gradient(**options)
    assert value.dtype == gradient.dtype == jnp.float64


@pytest.mark.one_in(8)
@every_row_of_a_loss
@eagerly
def test_weight_and_loss_weight(name, row):
    call = Call(name, row)
    plain = np.asarray(call(call.pred))
    values = np.asarray(call(call.pred, reduction_override="none")) / call.loss.loss_weight
    np.testing.assert_allclose(call(call.pred, jnp.ones(ROWS)), plain, rtol=1e-6)
    np.testing.assert_allclose(call(call.pred, jnp.ones(values.shape)), plain, rtol=1e-6)
    doubled = Call(name, row, loss_weight=2 * call.loss.loss_weight)
    np.testing.assert_allclose(doubled(call.pred), 2 * plain, rtol=1e-6)
    if row.mean in ("density", "mined"):
        return
    weight = np.linspace(-1, 2, ROWS, dtype=np.float32)
    by_row = values * weight.reshape((ROWS,) + (1,) * (values.ndim - 1))
    weighted = call(call.pred, weight, reduction_override="none")
    np.testing.assert_allclose(weighted, by_row, rtol=1e-6)


@pytest.mark.one_in(8)
@every_row_of_a_loss
@eagerly
def test_reduction_and_avg_factor(name, row):
    call = Call(name, row)
    plain = np.asarray(call(call.pred))
    values = np.asarray(call(call.pred, reduction_override="none")) / call.loss.loss_weight
    assert plain.shape == ()
    np.testing.assert_array_equal(
        call(call.pred, reduction_override="none", avg_factor=7.0), values
    )
    if row.mean == "density":
        with pytest.raises(ValueError, match="must be mean or none"):
            call(call.pred, reduction_override="sum")
        np.testing.assert_allclose(plain * values.size, values.sum(), rtol=1e-5)
        np.testing.assert_array_equal(call(call.pred, avg_factor=7.0), plain)
        return
    total = np.asarray(call(call.pred, reduction_override="sum"))
    assert total.shape == ()
    np.testing.assert_allclose(total, values.sum(), rtol=1e-5)
    if row.mean == "values":
        np.testing.assert_allclose(plain * values.size, total, rtol=1e-5)
    if row.mean != "mined":
        for number in (4, 4.0, jnp.float32(4), np.int32(4)):
            np.testing.assert_allclose(call(call.pred, avg_factor=number), total / 4, rtol=1e-5)
    with pytest.raises(ValueError, match='avg_factor can not be used with reduction="sum"'):
        call(call.pred, reduction_override="sum", avg_factor=2.0)


@contextlib.contextmanager
def explicitly_sharded(call, row):
    """The same call with its rows explicitly sharded over 8 devices, and `weight` for it."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    sharding = NamedSharding(mesh, P("rows"))
    with jax.set_mesh(mesh):
        weight = None if row.is_bare else jax.device_put(WEIGHTED["weight"], sharding)
        yield call.map(lambda x: jax.device_put(x, sharding)), weight


@pytest.mark.one_in(8)
@every_differentiable_row
def test_explicitly_sharded_rows_are_accepted(name, row):
    """JAX raises for what it cannot shard when it traces: nothing is compiled here."""
    with explicitly_sharded(Call(name, row), row) as (call, weight):
        compiled = compiled_value_and_gradients(call.loss)
        avg_factor = None if row.is_bare else 3.0
        arguments = call.pred, call.target, call.keywords, weight, avg_factor
        _, gradient, *_ = jax.eval_shape(compiled, *arguments)
        assert gradient.shape == call.pred.shape


@pytest.mark.one_in(6)
@pytest.mark.parametrize(("name", "row"), few(ONE_EACH_WITH_BARE))
def test_explicitly_sharded_rows_give_the_same_numbers(name, row):
    call, avg_factor = Call(name, row), None if row.is_bare else 3.0
    expected = call.value_and_gradient(None if row.is_bare else WEIGHTED["weight"], avg_factor)
    with explicitly_sharded(call, row) as (sharded, weight):
        actual = sharded.value_and_gradient(weight, avg_factor)
    chex.assert_trees_all_close(jax.device_get(actual), expected, rtol=1e-5, atol=1e-6)


@every_row
def test_bad_input_is_an_error_that_names_the_loss(name, row):
    call = Call(name, row)
    pred, target, keywords = call.pred, call.target, call.keywords
    plain = re.compile(r"_with_logits|sigmoid_|binary_|mask_|_|Custom")
    key = plain.sub("", name).removesuffix("Loss").lower()

    def assert_raises(error, *arguments, **options):
        with pytest.raises(error) as caught:
            run(call.loss, *arguments, **{**keywords, **options})
        message = str(caught.value)
        assert key in plain.sub("", message).lower(), f"this does not name {name}: {message}"

    assert_raises((ValueError, TypeError), pred, jnp.asarray(row.bad_target))
    assert_raises((ValueError, TypeError), pred, target, nonsense=1)
    if row.is_metric:
        return
    assert_raises(TypeError, pred.astype(jnp.int32), target)
    assert_raises(TypeError, [1.0, 2.0], target)
    assert_raises(TypeError, pred, "target")
    if row.is_bare:
        return
    assert_raises(ValueError, pred, target, reduction_override="average")
    assert_raises((ValueError, TypeError), pred, target, jnp.ones(ROWS - 1))
    if row.mean != "density":
        assert_raises(ValueError, pred, target, avg_factor=jnp.ones(1))


@every_row
def test_a_class_is_its_fields(name, row):
    loss = Call(name, row).loss
    fields = {f.name: getattr(loss, f.name) for f in dataclasses.fields(loss)}
    again = build_loss({"type": name, **fields})
    assert again == loss
    assert hash(again) == hash(loss)
    assert jax.tree.leaves(loss) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.reduction = "sum"


@pytest.mark.one_in(6)
@pytest.mark.parametrize(("name", "row"), few(ONE_EACH))
def test_equal_losses_share_one_trace(name, row):
    call = Call(name, row)
    arguments = (call.pred, call.target)
    expected = run(call.loss, *arguments, **call.keywords)
    traces = []

    def traced(loss, pred, target, keywords):
        traces.append(loss)
        return run(loss, pred, target, **keywords)

    for jitted in (jax.jit(traced), jax.jit(traced, static_argnums=0)):
        traces.clear()
        for _ in range(3):
            loss = build_loss({"type": name, **row.config})
            chex.assert_trees_all_close(
                jitted(loss, *arguments, call.keywords), expected, rtol=2e-5, atol=1e-6
            )
        assert len(traces) == 1


@pytest.mark.long
@one_of_each_loss
def test_a_loss_without_state_is_called_and_one_with_state_says_how(name, row):
    call = Call(name, row)
    state = call.loss.init()
    if jax.tree.leaves(state):
        with pytest.raises(TypeError, match=rf"{name} keeps running statistics: .*\.update"):
            call.loss(call.pred, call.target, **call.keywords)
        return
    assert state == ()
    with jax.disable_jit():
        value, after = call.loss.update(state, call.pred, call.target, **call.keywords)
        chex.assert_trees_all_equal(call.loss(call.pred, call.target, **call.keywords), value)
    assert after == ()

    def update(pred, target, keywords):
        return call.loss.update(state, pred, target, **keywords, axis_name="devices")

    one_device = jax.tree.map(lambda x: x[None], (call.pred, call.target, call.keywords))
    (alone,), after = jax.jit(jax.vmap(update, axis_name="devices"))(*one_device)
    assert after == ()
    np.testing.assert_allclose(alone, value, rtol=1e-6)
