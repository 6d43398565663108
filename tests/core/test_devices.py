"""Sums and arrays that are spread over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from visdet_jax.core.devices import reduce_mean, reduce_sum, replicated, sharded_as

COUNTS = jnp.array([0.0, 4.0])


@pytest.mark.parametrize(("reduce", "expected"), [(reduce_mean, 2.0), (reduce_sum, 4.0)])
def test_over_a_named_axis_and_without_one(reduce, expected):
    assert reduce(COUNTS) is COUNTS
    reduced = jax.vmap(lambda n: reduce(n, "devices"), axis_name="devices")(COUNTS)
    np.testing.assert_array_equal(reduced, [expected, expected])


def test_over_two_axes():
    def total(x):
        return reduce_sum(x, ("rows", "columns"))

    of_columns = jax.vmap(total, axis_name="columns")
    both = jax.vmap(of_columns, axis_name="rows")(jnp.ones((2, 3)))
    np.testing.assert_array_equal(both, np.full((2, 3), 6.0))


@pytest.fixture
def mesh():
    mesh = jax.make_mesh((4, 2), ("rows", "classes"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        yield mesh


def on(mesh, *axes):
    shape = [8] * len(axes)
    return jax.device_put(jnp.zeros(shape), NamedSharding(mesh, P(*axes)))


def spec(x):
    return tuple(jax.typeof(x).sharding.spec)


def test_replicated(mesh):
    for axes in (("rows", "classes"), ("rows", None), (None, "classes")):
        assert spec(replicated(on(mesh, *axes))) == (None, None)
    whole = on(mesh, None, None)
    assert replicated(whole) is whole
    assert isinstance(replicated(np.zeros(3)), jax.Array)


def test_sharded_as(mesh):
    x = jnp.zeros((8, 8))
    assert spec(sharded_as(x, on(mesh, "rows", "classes"))) == ("rows", "classes")
    assert spec(sharded_as(x, on(mesh, "rows"))) == ("rows", None)
    assert spec(sharded_as(x[0], on(mesh, "rows", "classes"))) == ("rows",)
    assert sharded_as(x, on(mesh, None, None)) is x


def test_without_a_mesh_arrays_stay():
    x = jnp.zeros((2, 3))
    assert replicated(x) is x
    assert sharded_as(x, x) is x
