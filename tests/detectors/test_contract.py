"""The laws that every assigner, match cost, box coder and prior generator obeys.

Each law is asked of every class registered in TASK_UTILS, by the rows of contract_rows.py.
"""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax.boxes
import visdet_jax.detectors
from cases import as_long
from detectors.contract_rows import CLASSES, ROWS, SHARED, PriorRow, rows_where
from visdet_jax.core.docstrings import parse
from visdet_jax.core.fields import field_types, union_members
from visdet_jax.core.hyperparameters import allowed, field_rules
from visdet_jax.detectors import TASK_UTILS

every_class = pytest.mark.parametrize("name", sorted(TASK_UTILS))
every_row = pytest.mark.parametrize(("name", "row"), rows_where())
every_call = pytest.mark.parametrize(("name", "row"), rows_where(lambda row: row.is_called))
every_call_with_independent_rows = pytest.mark.parametrize(
    ("name", "row"), rows_where(lambda row: row.rows_are_independent)
)
every_call_with_labels = pytest.mark.parametrize(
    ("name", "row"), rows_where(lambda row: row.has_labels)
)
every_call_with_gradient = pytest.mark.parametrize(
    ("name", "row"), rows_where(lambda row: row.has_gradient)
)
every_call_with_tuples = pytest.mark.parametrize(
    ("name", "row"),
    rows_where(
        lambda row: row.is_called and any(isinstance(x, tuple) for x in row.config.values())
    ),
)
every_generator = pytest.mark.parametrize(
    ("name", "row"), rows_where(lambda row: isinstance(row, PriorRow))
)
close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=1e-6)


def build(name, row, **changes):
    return TASK_UTILS.build({"type": name, **row.config, **changes})


def inputs_of(row, seed=0):
    return row.inputs(np.random.default_rng(seed))


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def cast_floats(inputs, dtype):
    """The inputs with their floats in another type."""
    return {key: x.astype(dtype) if is_float(x) else x for key, x in inputs.items()}


def rows_of(inputs, index, truth):
    """The inputs with some of their ground truths, or some of their predictions or priors."""
    return {
        key: x[index] if key not in SHARED and key.startswith("gt_") == truth else x
        for key, x in inputs.items()
    }


JITTED = {}


def jitted_call(name, row):
    """One jitted function for all laws of a row: those of the same shapes share its programs."""
    if id(row) not in JITTED:
        JITTED[id(row)] = jax.jit(functools.partial(row.call, build(name, row)))
    return JITTED[id(row)]


# What a class is.


@every_class
def test_every_registered_class_has_a_row(name):
    assert name in ROWS, f"add a row for {name!r} to tests/detectors/contract_rows.py"


def test_every_row_is_of_a_registered_class():
    for name in ROWS:
        assert name in TASK_UTILS, f"{name!r} of contract_rows.py is not registered in TASK_UTILS"


@every_class
def test_classes_and_their_functions_are_exported(name):
    cls = TASK_UTILS[name]
    assert getattr(visdet_jax.detectors, cls.__name__, None) is cls, (
        f"export {cls.__name__!r} from visdet_jax/detectors/__init__.py"
    )
    for function in cls.functions:
        places = visdet_jax.detectors, visdet_jax.boxes
        assert any(getattr(place, function.__name__, None) is function for place in places), (
            f"export {function.__name__!r} from visdet_jax/detectors/__init__.py"
        )


@every_class
def test_every_field_and_hyperparameter_is_described(name):
    cls = TASK_UTILS[name]
    described = parse(cls.__doc__).arguments
    for field in dataclasses.fields(cls):
        assert field.name in described, f"describe {field.name!r} under Args: of {name}"
    for function in cls.functions:
        described |= parse(function.__doc__).arguments
        for parameter in inspect.signature(function).parameters:
            assert parameter in described, f"describe {parameter!r} in {function.__name__}"
    for key, text in described.items():
        assert not text[0].islower(), f"{name}: {key}: begin with a capital"
        assert text.endswith("."), f"{name}: {key}: end with a full stop"


@every_row
def test_every_number_has_a_range_outside_of_which_it_raises(name, row):
    built = build(name, row)
    rules = dict(field_rules(type(built)))
    for function in type(built).functions:
        rules |= allowed(function)
    for key, kind in field_types(type(built)).items():
        value = getattr(built, key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or key in row.untraced:
            continue
        allowed_range = rules[key].range if key in rules else None
        assert allowed_range, (
            f"give {key!r} of {name} a range of visdet_jax.core.hyperparameters in its annotation"
        )
        low, high = allowed_range.low, allowed_range.high
        outside = [x for x in (low - 1, high + 1, np.nan, -np.inf) if x not in allowed_range]
        if float not in union_members(kind):
            outside = [int(x) for x in outside if np.isfinite(x)]
        for number in outside:
            with pytest.raises(ValueError, match=f"{type(built).__name__}: {key} must be "):
                build(name, row, **{key: number})


@every_row
def test_wrong_types_of_fields_raise(name, row):
    for key in field_types(TASK_UTILS[name]):
        with pytest.raises((TypeError, ValueError), match=f"{TASK_UTILS[name].__name__}: {key}"):
            build(name, row, **{key: object()})
    with pytest.raises(ValueError, match=f"{TASK_UTILS[name].__name__} has no key 'nonsense'"):
        build(name, row, nonsense=1)


@every_row
def test_an_object_is_its_fields(name, row):
    built = build(name, row)
    fields = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    for again in (build(name, row), TASK_UTILS.build({"type": name, **fields})):
        assert again == built
        assert hash(again) == hash(built)
    assert jax.tree.leaves(built) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.anything = 1
    for key, value in fields.items():
        if isinstance(value, float) and key not in row.untraced:
            assert dataclasses.replace(built, **{key: 0.7 * value + 0.1}) != built


# What a call gives.


@pytest.mark.one_in(8)
@every_call
def test_equal_objects_share_one_trace(name, row):
    inputs, traces = inputs_of(row), []

    def call(built, inputs):
        traces.append(built)
        return row.call(built, inputs)

    for jitted in (jax.jit(call), jax.jit(call, static_argnums=0)):
        traces.clear()
        for _ in range(3):
            jitted(build(name, row), inputs)
        assert len(traces) == 1


@pytest.mark.one_in(16)
@every_call
def test_jit_equals_eager(name, row):
    inputs = inputs_of(row)
    with jax.disable_jit():
        eager = row.call(build(name, row), inputs)
    close(jitted_call(name, row)(inputs), eager)


@pytest.mark.one_in(8)
@every_call
def test_vmap_equals_the_loop(name, row):
    images = [inputs_of(row, seed) for seed in range(3)]
    call = jitted_call(name, row)
    loop = [call(image) for image in images]
    batch, expected = (jax.tree.map(lambda *x: np.stack(x), *trees) for trees in (images, loop))
    close(jax.vmap(call)(batch), expected)


@pytest.mark.one_in(12)
@every_call
def test_images_may_be_spread_over_devices(name, row):
    images = [inputs_of(row, seed) for seed in range(4)]
    call = jitted_call(name, row)
    loop = [call(image) for image in images]
    batch, expected = (jax.tree.map(lambda *x: np.stack(x), *trees) for trees in (images, loop))
    mesh = jax.make_mesh((2,), ("images",), (AxisType.Auto,), devices=jax.devices()[:2])
    mapped = jax.shard_map(jax.vmap(call), mesh=mesh, in_specs=P("images"), out_specs=P("images"))
    close(jax.jit(mapped)(batch), expected)
    if not row.works_on_explicit_meshes:
        return
    mesh = jax.make_mesh((2,), ("images",), (AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        batch = jax.device_put(batch, NamedSharding(mesh, P("images")))
        close(jax.device_get(jax.jit(jax.vmap(call))(batch)), expected)


def assert_sound(row, inputs, results, dtype=np.float32):
    """The documented shapes and types, and nothing but finite numbers."""
    shapes = row.shapes(inputs)
    assert results.keys() == shapes.keys()
    for key, result in results.items():
        assert result.shape == shapes[key], key
        assert result.dtype == (np.int32 if key in row.integers else dtype), key
    for key, result in row.meaningful(inputs, results).items():
        assert np.isfinite(result).all(), f"{key} is not finite"


@every_call
@pytest.mark.parametrize("make", ["inputs", "extremes"])
def test_results_are_finite_and_of_the_documented_shapes_and_types(name, row, make):
    call = jitted_call(name, row)
    for seed in range(3):
        inputs = getattr(row, make)(np.random.default_rng(seed))
        assert_sound(row, inputs, call(inputs))


@pytest.mark.one_in(6)
@every_call_with_gradient
@pytest.mark.parametrize("make", ["inputs", "extremes"])
def test_gradients_are_finite(name, row, make):
    inputs = getattr(row, make)(np.random.default_rng(0))
    if row.has_labels:
        inputs = rows_of(inputs, inputs["gt_labels"] >= 0, True)
    floats = {key: x for key, x in inputs.items() if is_float(x) and not key.startswith("gt_")}

    def total(floats):
        return sum(x.sum() for x in row.call(build(name, row), inputs | floats).values())

    for key, gradient in jax.jit(jax.grad(total))(floats).items():
        assert np.isfinite(gradient).all(), f"the gradient by {key} is not finite"


@pytest.mark.one_in(8)
@every_call
def test_there_may_be_no_ground_truth_and_no_prediction(name, row):
    inputs = inputs_of(row)
    for truth in (True, False):
        fewer = rows_of(inputs, slice(0, 0), truth)
        assert_sound(row, fewer, row.call(build(name, row), fewer))


@every_call_with_independent_rows
def test_rows_are_independent(name, row):
    inputs = inputs_of(row)
    call, spoilt = jitted_call(name, row), cast_floats(inputs, np.float32)
    for key, x in spoilt.items():
        if is_float(x) and key not in SHARED and not key.startswith("gt_"):
            spoilt[key] = x.copy()
            spoilt[key][1] = np.nan
    expected, results = call(inputs), call(spoilt)
    for key in expected:
        kept = np.arange(len(expected[key])) != 1
        np.testing.assert_array_equal(results[key][kept], expected[key][kept])


@pytest.mark.one_in(8)
@every_call_with_labels
def test_padded_ground_truth_changes_nothing(name, row):
    inputs, call = inputs_of(row), jitted_call(name, row)
    padded = inputs["gt_labels"] < 0
    expected = row.meaningful(inputs, call(inputs))
    for filling, label in ((np.nan, -1), (np.inf, -7), (-1e30, -100), (33.0, -1)):
        filled = dict(inputs)
        for key, x in inputs.items():
            if key.startswith("gt_"):
                value = label if key == "gt_labels" else filling
                mask = padded.reshape(-1, *[1] * (x.ndim - 1))
                filled[key] = np.where(mask, np.asarray(value, x.dtype), x)
        results = row.meaningful(filled, call(filled))
        chex.assert_trees_all_equal(results, expected)
    # And nothing of it is needed: the same without these rows.
    without = row.call(build(name, row), rows_of(inputs, ~padded, True))
    if "gt_inds" in without:
        numbers = np.flatnonzero(~padded) + 1
        gt_inds = np.asarray(without["gt_inds"])
        without["gt_inds"] = np.where(gt_inds > 0, numbers[np.maximum(gt_inds, 1) - 1], gt_inds)
    close(without, expected)


@pytest.mark.one_in(8)
@every_call_with_labels
@pytest.mark.parametrize("dtype", [np.int8, *map(as_long, [np.uint8, np.int16, np.uint16])])
def test_labels_of_every_integer_type_give_what_int32_gives(name, row, dtype):
    inputs, call = inputs_of(row), jitted_call(name, row)
    labels = np.minimum(inputs["gt_labels"], np.iinfo(dtype).max)
    if np.iinfo(dtype).min == 0:
        labels = np.where(labels < 0, CLASSES - 1, labels)  # There is no padding.
    expected = call(inputs | {"gt_labels": labels.astype(np.int32)})
    results = call(inputs | {"gt_labels": labels.astype(dtype)})
    chex.assert_trees_all_equal(results, expected)
    chex.assert_trees_all_equal_dtypes(results, expected)


@pytest.mark.one_in(8)
@every_call
@pytest.mark.parametrize("dtype", [jnp.bfloat16, as_long(jnp.float16)])
def test_half_floats_are_computed_in_float32(name, row, dtype):
    half = cast_floats(inputs_of(row), dtype)
    call = jitted_call(name, row)
    results = call(half)
    close(results, call(cast_floats(half, np.float32)), rtol=2e-6)
    assert_sound(row, half, results)


@pytest.mark.one_in(6)
@every_call
def test_float64_stays_float64_and_float32_float32(name, row, x64):
    inputs = inputs_of(row)
    for dtype in (np.float64, np.float32):
        floats = cast_floats(inputs, dtype)
        results = jax.eval_shape(functools.partial(row.call, build(name, row)), floats)
        for key, result in results.items():
            assert result.dtype == (np.int32 if key in row.integers else dtype), key


def numbers_of(name, row):
    """The fields that a call may read and that are numbers, and those that are tuples of them."""
    built = build(name, row)
    values = {field.name: getattr(built, field.name) for field in dataclasses.fields(built)}
    values = {k: v for k, v in values.items() if k not in (*row.untraced, *row.static)}
    numbers = {key: value for key, value in values.items() if isinstance(value, float)}
    tuples = {key: value for key, value in values.items() if isinstance(value, tuple)}
    return numbers, tuples


def assert_traceable(name, row, fields):
    """A sweep over two values of each of the fields by vmap is a loop over them."""
    inputs = inputs_of(row)
    others = jax.tree.map(lambda x: 0.7 * x + 0.1, fields)

    def call(fields):
        return row.call(dataclasses.replace(build(name, row), **fields), inputs)

    swept = jax.jit(jax.vmap(call))(jax.tree.map(lambda *x: jnp.array(x), fields, others))
    alone = call(fields), call(others)
    close(swept, jax.tree.map(lambda *x: np.stack(x), *alone))


@pytest.mark.one_in(8)
@every_call
def test_numbers_may_be_traced(name, row):
    numbers, _ = numbers_of(name, row)
    if numbers:
        assert_traceable(name, row, numbers)


@every_call_with_tuples
def test_numbers_in_tuples_may_be_traced(name, row):
    _, tuples = numbers_of(name, row)
    assert_traceable(name, row, tuples)


# The prior generators, which take no arrays.


@every_generator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_grid_is_finite_and_of_the_documented_shapes_and_types(name, row, dtype):
    sizes = (3, 5), (2, 1)
    built = build(name, row)
    grid = built.grid(sizes, dtype)
    levels = tuple(built.num_base_priors * height * width for height, width in sizes)
    assert grid.level_sizes == levels
    shapes = {
        "priors": (sum(levels), row.size),
        "corners": (sum(levels), 2),
        "strides": (sum(levels),),
    }
    for key, shape in shapes.items():
        x = getattr(grid, key)
        assert isinstance(x, np.ndarray)
        assert (x.shape, x.dtype) == (shape, dtype), key
        assert np.isfinite(x).all(), key
    with pytest.raises(ValueError, match=f"{name}: 1 feature maps do not fit 2 strides"):
        built.grid(sizes[:1])
