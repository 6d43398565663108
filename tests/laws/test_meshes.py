"""Every loss over 8 devices: the value and the gradient of one device.

In every mode one rule: a device's loss is divided by the mean of the devices' normalisers, and then
averaged over the devices. `tests/laws/test_contract.py` has the explicit mesh,
`tests/laws/test_state.py` the losses with statistics, `tests/detectors/heads/test_sharded_heads.py`
the heads.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cases import close, few
from visdet_jax import FocalLoss, reduce_mean, reduce_sum
from whole_batch import (
    DEVICES,
    EVERY,
    ROW_BY_ROW,
    batch_for,
    on_one_device,
    positives,
    value_and_gradient,
)


def mesh_of(axis_type=AxisType.Auto):
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(EVERY))
def test_jit_over_rows_of_an_auto_mesh(name):
    loss, batch = batch_for(name)
    sharded = jax.device_put(batch, NamedSharding(mesh_of(), P("data")))
    actual = jax.jit(lambda b: value_and_gradient(loss, b, positives))(sharded)
    close(jax.device_get(actual), on_one_device(name))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(ROW_BY_ROW))
def test_shard_map_and_vmap_with_an_axis_name(name):
    loss, batch = batch_for(name)
    expected = on_one_device(name)

    def on_a_device(batch):
        normaliser = functools.partial(positives, axis_name="data")
        value, gradient = value_and_gradient(loss, batch, normaliser)
        return reduce_mean(value, "data"), gradient / DEVICES

    # Without check_vma it is as vmap: see TestNormalisers.
    mapped = jax.shard_map(
        on_a_device, mesh=mesh_of(), in_specs=P("data"), out_specs=(P(), P("data"))
    )
    close(jax.device_get(jax.jit(mapped)(batch)), expected)
    parts = jax.tree.map(lambda x: np.asarray(x)[:, None], batch)
    values, gradients = jax.jit(jax.vmap(on_a_device, axis_name="data"))(parts)
    close((values, gradients.squeeze(1)), (np.full(DEVICES, expected[0]), expected[1]))


# (normaliser, loss, gradients): the factor in vmap and shard_map(check_vma=False), and where
# JAX itself adds up the gradients of replicated parameters, in shard_map.
TABLE = {
    ("mean", "local", "mean"): (1, 8),
    ("mean", "mean", "mean"): (1, 1),
    ("sum", "local", "sum"): (1, 8),
    ("sum", "local", "none"): (None, 1),
    ("sum", "sum", "mean"): (1, 1),
    ("sum", "mean", "sum"): (1, 1),
    ("own", "local", "mean"): (None, None),
    ("own", "mean", "mean"): (None, None),
}  # fmt: skip
REDUCE = {
    "mean": reduce_mean,
    "sum": reduce_sum,
    "own": lambda x, axis_name: x,
    "local": lambda x, axis_name: x,
    "none": lambda x, axis_name: x,
}


class TestNormalisers:
    """Which normaliser, loss and reduction of the gradients go together.

    The table of `visdet_jax/losses/README.md`.

    Replicated parameters of a linear network, focal loss, 8 devices of which some have no
    positive. The number is the gradient's factor to that of the whole batch on one device: 1 is
    right, None is no factor at all but another direction.
    """

    @staticmethod
    def data():
        rng = np.random.default_rng(0)
        features = rng.normal(size=(DEVICES, 6, 4)).astype(np.float32)
        labels = np.full((DEVICES, 6), 3, np.int32)  # background
        for device, count in enumerate((5, 0, 1, 0, 2, 0, 3, 1)):
            labels[device, :count] = rng.integers(0, 3, count)
        return rng.normal(size=(4, 3)).astype(np.float32), features, labels

    def gradient(self, normaliser, loss, gradients):
        def of_a_device(parameters, features, labels):
            features, labels = features.reshape(-1, 4), labels.reshape(-1)

            def value(parameters):
                count = (labels < 3).sum(dtype=jnp.float32)
                count = jnp.maximum(REDUCE[normaliser](count, "data"), 1)
                own = FocalLoss()(features @ parameters, labels, avg_factor=count)
                return REDUCE[loss](own, "data")

            return REDUCE[gradients](jax.grad(value)(parameters), "data")

        return of_a_device

    def expected(self):
        parameters, features, labels = self.data()

        def value(parameters):
            count = (labels < 3).sum(dtype=np.float32)
            pred = features.reshape(-1, 4) @ parameters
            return FocalLoss()(pred, labels.reshape(-1), avg_factor=count)

        return value, jax.grad(value)(parameters)

    @pytest.mark.one_in(4)
    @pytest.mark.parametrize("check_vma", [False, True])
    @pytest.mark.parametrize("row", TABLE, ids=" ".join)
    def test_row(self, row, check_vma):
        factor = TABLE[row][check_vma]
        _, expected = self.expected()
        # One gradient a device where they are not reduced to the same.
        mapped = jax.shard_map(
            lambda *arguments: self.gradient(*row)(*arguments)[None],
            mesh=mesh_of(),
            in_specs=(P(), P("data"), P("data")),
            out_specs=P("data"),
            check_vma=check_vma,
        )
        modes = [jax.jit(mapped)]
        if not check_vma:
            modes.append(jax.vmap(self.gradient(*row), (None, 0, 0), axis_name="data"))
        for mode in modes:
            actual = np.asarray(mode(*self.data()))
            if factor is None:
                assert not any(np.allclose(x, expected, rtol=0.02) for x in actual)
            else:
                close(actual, np.stack([factor * expected] * DEVICES))

    def test_under_jit_nothing_is_to_be_done(self):
        value, expected = self.expected()
        parameters, features, labels = self.data()
        mesh = mesh_of()
        rows = jax.device_put((features, labels), NamedSharding(mesh, P("data")))
        parameters = jax.device_put(parameters, NamedSharding(mesh, P()))

        def total(parameters, features, labels):
            count = (labels < 3).sum(dtype=jnp.float32)
            pred = features.reshape(-1, 4) @ parameters
            return FocalLoss()(pred, labels.reshape(-1), avg_factor=count)

        actual = jax.jit(jax.value_and_grad(total))(parameters, *rows)
        close(jax.device_get(actual), (value(parameters), expected))
