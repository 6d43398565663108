"""How columns are taken apart and put together, by the platform that a program is for."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v
from boxes.inputs import random_boxes
from visdet_jax.boxes import _pairs
from visdet_jax.core import closed_form
from visdet_jax.losses.boxes import box_loss

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


def joined_by_selects(parts):
    return _pairs._join_by_selects(*parts)


@pytest.fixture(params=["tpu", "gpu"])
def as_if_on(request, monkeypatch):
    """A function after whose call this CPU computes with the form of a TPU or of a GPU."""

    def take_its_form():
        jax.clear_caches()
        if request.param == "gpu":
            monkeypatch.setattr(closed_form, "_by_platform", lambda formula, on_gpu: on_gpu)
        else:
            monkeypatch.setattr(box_loss, "split_columns", _pairs._split_by_sums)
            monkeypatch.setattr(box_loss, "join_columns", joined_by_selects)

    yield take_its_form
    jax.clear_caches()


@pytest.mark.one_in(6)
@pytest.mark.parametrize(
    ("loss", "numbers"),
    [
        (v.ciou_loss, {}),
        (v.siou_loss, {}),
        (v.efficient_iou_loss, {"focal_gamma": 0.5, "focaler": (0.1, 0.9)}),
        (v.mpdiou_loss, {"image_shape": np.full((11, 2), 900, np.float32)}),
    ],
    ids=["ciou", "siou", "efficient", "mpdiou"],
)
def test_a_loss_in_the_form_of_an_accelerator(loss, numbers, as_if_on):
    """Value, gradient, forward mode, second derivative and vmap, as in the form of a CPU."""
    pred, target = (jnp.asarray(x[:11]) for x in (PRED, TARGET))
    weight = jnp.arange(11.0)

    def total(pred, target=target):
        return loss(pred, target, weight, **numbers)

    def results():
        value, gradients = jax.value_and_grad(total, argnums=(0, 1))(pred, target)
        each = loss(pred, target, reduction="none", **numbers)
        _, along = jax.jvp(total, (pred,), (target,))
        second = jax.jvp(jax.grad(total), (pred,), (target,))[1]
        over_images = jax.vmap(jax.grad(total))(pred[None], target[None])[0]
        return value, *gradients, each, along, second, over_images

    expected = results()
    as_if_on()
    for actual, number in zip(results(), expected, strict=True):
        np.testing.assert_allclose(actual, number, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_go_through_lanes_as_they_are(dtype):
    values = np.array([0, -0.0, 1, -1 / 3, 1e-40, np.inf, -np.inf, np.nan, 3e38], dtype)
    with jax.enable_x64(dtype is np.float64):
        lanes = jnp.repeat(values[:, None], 4, axis=1)
        joined = jax.jit(_pairs.join_lanes)(lanes)
    assert joined.dtype == dtype
    np.testing.assert_array_equal(np.asarray(joined).view(np.uint8), values.view(np.uint8))


def test_a_nan_stays_in_its_lane_too():
    boxes = jnp.float32([[1, np.nan, 3, 4]])
    lanes = _pairs.in_lanes(lambda box: box, boxes)
    np.testing.assert_array_equal(np.stack(lanes)[:, 0, 0], boxes[0])
    np.testing.assert_array_equal(_pairs.one_of_each_lane(lanes), boxes)


def test_each_platform_gets_its_form():
    both = jax.value_and_grad(v.giou_loss)
    tpu, cpu, cuda = (lowered(both, name, PRED, TARGET) for name in ("tpu", "cpu", "cuda"))
    assert "stablehlo.slice" not in tpu
    assert "stablehlo.concatenate" not in tpu
    assert "stablehlo.slice" in cpu
    assert cpu.count("stablehlo.concatenate") == 1
    # Neither columns nor a stack, and values that are bytes: see `join_lanes`.
    assert "stablehlo.concatenate" not in cuda
    assert "stablehlo.divide" in cuda
    assert not re.search(r"stablehlo.divide .* : tensor<48xf32>", cuda)
    assert "(tensor<48x4xui8>) -> tensor<48xf32>" in cuda
    # The selects that keep XLA from columns: see `_lanes_of_columns`.
    lanes = lowered(_pairs._lanes_of_columns, "cuda", PRED)
    assert lanes.count("call @_where") == 4


def test_rotated_boxes_are_stacked_behind_a_barrier_on_a_gpu():
    """See `_join_by_stack`."""
    boxes = jnp.ones((8, 5))
    both = jax.value_and_grad(v.GDLoss(loss_type="kld"))
    assert "stablehlo.optimization_barrier" in lowered(both, "cuda", boxes, boxes)


@pytest.mark.one_in(2)
def test_explicitly_sharded_boxes_take_each_form(as_if_on):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        pred, target = (jax.device_put(x, NamedSharding(mesh, P("rows"))) for x in (PRED, TARGET))
        both = jax.value_and_grad(v.giou_loss)
        assert jax.typeof(both(pred, target)[1]).sharding.spec == P("rows", None)
        assert "stablehlo.slice" not in lowered(both, "tpu", pred, target)
        as_if_on()
        assert jax.typeof(both(pred, target)[1]).sharding.spec == P("rows", None)
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
