"""Every head over several devices: the losses and gradients of one device."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cases import as_long, few
from head_cases import (
    EVERY_ROW,
    FEW,
    ROWS,
    batch_for,
    boxes_for,
    outputs_for,
    shapes_for,
    sharding_specs,
    value_and_gradient,
)

DEVICES = 8
COUNTS = (3, 0, 1, 0, 2, 1, 4, 0)  # Boxes of an image, and each device has one image.
close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-14)
every_head = pytest.mark.parametrize("name", few(EVERY_ROW, FEW))
# Of the two forms of a law, the stricter one is asked of every head, the other of one of each kind.
OF_BOTH_FORMS = ("RetinaHead", *FEW)


def in_both_forms(argument, strict, other):
    cases = [(name, strict) for name in EVERY_ROW] + [(name, other) for name in OF_BOTH_FORMS]
    params = [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in cases]
    params = [param if param.values[0] in FEW else as_long(param) for param in params]
    return pytest.mark.parametrize(("name", argument), params)


def batch(head):
    """One image a device: with boxes, without, and on the sixth with one that nothing matches."""
    boxes, labels = boxes_for(COUNTS, 4, np.float64)
    boxes[5, 0] = 900, 900, 901, 901
    return outputs_for(head, DEVICES, np.float64), boxes, labels, shapes_for(DEVICES)


def sharded_over(mesh, head):
    """The batch, with its images spread over the mesh."""
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), sharding_specs(head))
    return tuple(jax.device_put(x, s) for x, s in zip(batch(head), shardings, strict=True))


def image_axes(head):
    """The axis of the images in each argument, as `vmap` takes it; None where there is none."""

    def axis(spec):
        names = tuple(spec)
        return names.index("data") if "data" in names else None

    return tuple(jax.tree.map(axis, specs) for specs in sharding_specs(head))


def by_image(change, arguments, axes):
    """`change(x, axis)` of all arrays that have an axis of images."""

    def of_argument(x, axis):
        if isinstance(axis, tuple):
            return type(x)(*map(of_argument, x, axis))
        return x if axis is None else jax.tree.map(lambda leaf: change(leaf, axis), x)

    return [of_argument(x, axis) for x, axis in zip(arguments, axes, strict=True)]


@functools.cache
def on_one_device(name):
    head = EVERY_ROW[name].head()
    arguments = batch(head)
    return jax.device_get(jax.jit(value_and_gradient(head))(*arguments))


@pytest.mark.one_in(2)
@every_head
def test_some_shards_have_no_positives(name, x64):
    head = EVERY_ROW[name].head()
    weights = np.asarray(jax.jit(head.targets)(*batch(head)).bbox_weights)
    positives = weights.sum(-1).reshape(-1, DEVICES)[0]
    assert (positives[[1, 3, 7]] == 0).all()
    assert len(set(positives)) > 3
    # By RetinaHead's rule for boxes of low quality a box that overlaps nothing is near everything,
    # and in DETR every box has a query.
    if name in ("FCOSHead", "ATSSHead", "GFLHead"):
        assert positives[5] == 0


@pytest.mark.one_in(4)
@in_both_forms("axis_type", AxisType.Explicit, AxisType.Auto)
def test_jit_over_sharded_images(name, axis_type, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    head = EVERY_ROW[name].head()
    with jax.set_mesh(mesh):
        sharded = sharded_over(mesh, head)
        actual = jax.jit(value_and_gradient(head))(*sharded)
    close(jax.device_get(actual), on_one_device(name))


@pytest.mark.long
@in_both_forms("axis_type", AxisType.Explicit, AxisType.Auto)
def test_sharded_images_of_listed_shapes(name, axis_type, x64):
    """Shapes that are listed, or left to the head, lie on no device yet."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    head = EVERY_ROW[name].head()
    _, expected = on_one_device(name)[0]
    with jax.set_mesh(mesh):
        *sharded, shapes = sharded_over(mesh, head)
        listed = np.asarray(shapes).tolist()
        close(jax.device_get(head.loss(*sharded, listed)), expected)
        if name in ROWS:
            close(jax.device_get(head.loss(*sharded)), expected)
            close(jax.device_get(head.loss(*sharded, shapes, shapes)), expected)
        boxes = jax.device_get(head.decode(sharded[0], listed).boxes)
    close(boxes, jax.device_get(head.decode(batch(head)[0], shapes_for(DEVICES)).boxes))


@pytest.mark.one_in(4)
@in_both_forms("check_vma", True, False)
def test_shard_map_means_the_devices_losses(name, check_vma, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    head = EVERY_ROW[name].head()

    def mean_of_devices(*arguments):
        value, gradient = value_and_gradient(head, "data")(*arguments)
        return jax.lax.pmean(value, "data"), jax.tree.map(lambda x: x / DEVICES, gradient)

    specs = sharding_specs(head)
    mapped = jax.shard_map(
        mean_of_devices,
        mesh=mesh,
        in_specs=specs,
        out_specs=(P(), specs[0]),
        check_vma=check_vma,
    )
    close(jax.device_get(jax.jit(mapped)(*batch(head))), on_one_device(name))


@pytest.mark.one_in(2)
@every_head
def test_vmap_with_an_axis_name(name, x64):
    head = EVERY_ROW[name].head()
    images = image_axes(head)

    def in_pairs(x, axis):
        return x.reshape(*x.shape[:axis], 4, 2, *x.shape[axis + 1 :])

    parts = by_image(in_pairs, batch(head), images)
    loss = functools.partial(head.loss, axis_name="data")
    losses = jax.jit(jax.vmap(loss, in_axes=images, axis_name="data"))(*parts)
    (_, expected), _ = on_one_device(name)
    close(jax.tree.map(lambda x: x.mean(), losses), expected)


@every_head
def test_float32_stays_float32_where_x64_is_on(name, x64):
    head = EVERY_ROW[name].head()
    images = image_axes(head)
    loss = functools.partial(head.loss, axis_name="data")
    parts = by_image(lambda x, axis: np.expand_dims(x, axis + 1), batch_for(head), images)
    mapped = jax.vmap(loss, in_axes=images, axis_name="data")
    for value in jax.eval_shape(mapped, *parts).values():
        assert value.dtype == np.float32
