"""How columns are taken apart and put together, by the platform that a program is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v
from boxes.inputs import random_boxes
from visdet_jax.boxes import _pairs
from visdet_jax.losses.boxes import _box_loss

PRED, TARGET = random_boxes(0, 48), random_boxes(1, 48)


def lowered(function, platform, *arguments):
    """The text of a function's program for a platform that need not be there."""
    traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("count", [4, 5])
def test_both_forms_give_the_same_numbers(count):
    boxes = np.random.default_rng(0).normal(size=(3, 7, count)).astype(np.float32)
    boxes[0, 0, 1], boxes[1, 2, 3] = np.inf, -np.inf
    by_sums, by_slices = _pairs._split_by_sums(boxes), _pairs.columns(boxes)
    for a, b in zip(by_sums, by_slices, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(_pairs._join_by_selects(*by_slices), boxes)
    np.testing.assert_array_equal(_pairs._join_by_stack(*by_slices), boxes)


def test_a_nan_stays_in_its_column():
    split = _pairs._split_by_sums(jnp.float32([[1, np.nan, 3, 4]]))
    np.testing.assert_array_equal(np.stack(split, -1), [[1, np.nan, 3, 4]])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("loss", [v.ciou_loss, v.siou_loss])
def test_a_loss_in_the_form_of_a_tpu(loss, monkeypatch):
    """Value, gradient, forward mode and second derivative, as in the form of a CPU."""
    pred, target = (jnp.asarray(x[:11]) for x in (PRED, TARGET))

    def numbers():
        jax.clear_caches()
        value, gradient = jax.value_and_grad(loss)(pred, target)
        _, along = jax.jvp(lambda p: loss(p, target), (pred,), (target,))
        second = jax.jvp(lambda p: jax.grad(loss)(p, target), (pred,), (target,))[1]
        over_images = jax.vmap(jax.grad(loss))(pred[None], target[None])[0]
        return value, gradient, along, second, over_images

    expected = numbers()
    monkeypatch.setattr(_box_loss, "split_columns", _pairs._split_by_sums)
    monkeypatch.setattr(_box_loss, "join_columns", lambda parts: _pairs._join_by_selects(*parts))
    for actual, number in zip(numbers(), expected, strict=True):
        np.testing.assert_allclose(actual, number, rtol=1e-5, atol=1e-7)
    monkeypatch.undo()
    jax.clear_caches()


def test_a_tpu_gets_sums_and_selects_and_others_slices_and_a_stack():
    both = jax.value_and_grad(v.giou_loss)
    tpu, cpu, cuda = (lowered(both, name, PRED, TARGET) for name in ("tpu", "cpu", "cuda"))
    assert "stablehlo.slice" not in tpu
    assert "stablehlo.concatenate" not in tpu
    for text in (cpu, cuda):
        assert "stablehlo.slice" in text
        assert text.count("stablehlo.concatenate") == 1
    # See `_join_by_stack`.
    assert "stablehlo.optimization_barrier" in cuda


def test_explicitly_sharded_boxes_take_both_forms():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        pred, target = (jax.device_put(x, NamedSharding(mesh, P("rows"))) for x in (PRED, TARGET))
        both = jax.value_and_grad(v.giou_loss)
        assert jax.typeof(both(pred, target)[1]).sharding.spec == P("rows", None)
        assert "stablehlo.slice" not in lowered(both, "tpu", pred, target)
        on_devices = jax.shard_map(
            lambda p, t: jax.lax.pmean(v.giou_loss(p, t), "rows"),
            in_specs=(P("rows"), P("rows")),
            out_specs=P(),
        )
        gradient = jax.grad(on_devices)(pred, target)
    np.testing.assert_allclose(gradient, jax.grad(v.giou_loss)(PRED, TARGET), rtol=1e-6, atol=1e-9)


def test_one_exported_program_serves_all_platforms():
    both = jax.jit(jax.value_and_grad(functools.partial(v.ciou_loss, eps=1e-6)))
    exported = jax.export.export(both, platforms=("cpu", "tpu", "cuda"))(PRED, TARGET)
    called = jax.export.deserialize(exported.serialize()).call(PRED, TARGET)
    for actual, expected in zip(called, both(PRED, TARGET), strict=True):
        np.testing.assert_array_equal(actual, expected)
