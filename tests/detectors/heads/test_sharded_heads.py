"""Heads over several devices: the losses and gradients of one device."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from head_cases import IMAGE, ROWS, boxes_for, outputs_for, value_and_gradient

DEVICES = 8
COUNTS = (3, 0, 1, 0, 2, 1, 4, 0)  # boxes of an image, and each device has one image
close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-15)
every_head = pytest.mark.parametrize("name", ROWS)


def batch(head):
    """One image a device: with boxes, without, and on the sixth with one that nothing matches."""
    boxes, labels = boxes_for(COUNTS, 4, np.float64)
    boxes[5, 0] = 900, 900, 901, 901
    shapes = np.tile(np.array(IMAGE), (DEVICES, 1))
    return outputs_for(head, DEVICES, np.float64), boxes, labels, shapes, shapes


@functools.cache
def on_one_device(name):
    head = ROWS[name].head()
    arguments = batch(head)
    return jax.device_get(jax.jit(value_and_gradient(head))(*arguments))


@every_head
def test_some_shards_have_no_positives(name, x64):
    head = ROWS[name].head()
    positives = np.asarray(jax.jit(head.targets)(*batch(head)).bbox_weights.sum(1))
    assert (positives[[1, 3, 7]] == 0).all()
    assert len(set(positives)) > 3
    if name != "RetinaHead":  # to whose low-quality rule a box that overlaps nothing is near all
        assert positives[5] == 0


@every_head
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_over_sharded_images(name, axis_type, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    head = ROWS[name].head()
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch(head), NamedSharding(mesh, P("data")))
        actual = jax.jit(value_and_gradient(head))(*sharded)
    close(jax.device_get(actual), on_one_device(name))


@every_head
@pytest.mark.parametrize("check_vma", [True, False])
def test_shard_map_means_the_devices_losses(name, check_vma, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    head = ROWS[name].head()

    def mean_of_devices(*arguments):
        value, gradient = value_and_gradient(head, "data")(*arguments)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda x: x / DEVICES, gradient)

    mapped = jax.shard_map(
        mean_of_devices,
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data")),
        check_vma=check_vma,
    )
    close(jax.device_get(jax.jit(mapped)(*batch(head))), on_one_device(name))


@every_head
def test_vmap_with_an_axis_name(name, x64):
    head = ROWS[name].head()
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch(head))
    loss = functools.partial(head.loss, axis_name="data")
    losses = jax.jit(jax.vmap(loss, axis_name="data"))(*parts)
    (_, expected), _ = on_one_device(name)
    close(jax.tree.map(lambda x: x.mean(), losses), expected)


@every_head
def test_float32_stays_float32_where_x64_is_on(name, x64):
    head = ROWS[name].head()
    images = (outputs_for(head), *boxes_for((3, 1), 4))
    parts = jax.tree.map(lambda x: x[:, None], images)
    for axis_name, batch in ((None, images), ("data", parts)):
        loss = functools.partial(head.loss, axis_name=axis_name)
        mapped = loss if axis_name is None else jax.vmap(loss, axis_name=axis_name)
        for value in jax.eval_shape(mapped, *batch).values():
            assert value.dtype == np.float32
