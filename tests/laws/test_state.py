"""What every loss that keeps running statistics does with them: where they live, how they merge."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cases import CASES, ROWS, added, close, few
from visdet_jax import LOSSES, StatefulLoss, build_loss, reduce_mean

STEPS = 4
DEVICES = 8


def stateful_rows():
    for name, rows in CASES.items():
        for i, row in enumerate(rows):
            loss = build_loss({"type": name, **row.config})
            if isinstance(loss, StatefulLoss) and jax.tree.leaves(loss.init()):
                yield pytest.param(loss, row, id=f"{name}-{i}")


ROWS_WITH_STATE = list(stateful_rows())
every_state = pytest.mark.parametrize(("loss", "row"), few(ROWS_WITH_STATE, ["SeesawLoss"]))


def batches(row, steps=STEPS):
    """(pred, target) of several steps, stacked."""
    inputs = [row.inputs(np.random.default_rng(seed)) for seed in range(steps)]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *inputs)


def step_of(stacked, i):
    return jax.tree.map(lambda x: x[i], stacked)


def looped(loss, stacked, state=None):
    """The values of all steps and the state after them, one call after the other."""
    state = loss.init() if state is None else state
    values = []
    for i in range(len(stacked[0])):
        value, state = loss.update(state, *step_of(stacked, i))
        values.append(value)
    return jax.tree.map(lambda *parts: jnp.stack(parts), *values), state


def test_all_stateful_losses_are_here():
    names = {type(param.values[0]).__name__ for param in ROWS_WITH_STATE}
    missing = {name for name, cls in LOSSES.items() if issubclass(cls, StatefulLoss)} - names
    assert not missing, f"add a row with statistics for {missing} to tests/cases.py"


@every_state
def test_the_state_moves_and_matters(loss, row):
    stacked = batches(row)
    values, state = looped(loss, stacked)
    assert not np.array_equal(jax.tree.leaves(state)[0], jax.tree.leaves(loss.init())[0])
    again, _ = loss.update(state, *step_of(stacked, 0))
    assert not np.allclose(added(again), added(step_of(values, 0)))
    chex.assert_trees_all_equal_shapes_and_dtypes(state, loss.init())


@every_state
def test_scan_over_steps(loss, row):
    stacked = batches(row)

    @jax.jit
    def scanned(stacked):
        def body(state, batch):
            value, state = loss.update(state, *batch)
            return state, value

        state, values = jax.lax.scan(body, loss.init(), stacked)
        return values, state

    close(scanned(stacked), looped(loss, stacked))


@every_state
def test_value_and_grad_carries_the_state(loss, row):
    stacked = batches(row)
    values, expected = looped(loss, stacked)
    state = loss.init()
    step = jax.jit(
        jax.value_and_grad(
            lambda pred, state, target: _scalar(loss.update(state, pred, target)), has_aux=True
        ),
        donate_argnums=1,
    )
    for i in range(STEPS):
        pred, target = step_of(stacked, i)
        (value, state), gradient = step(pred, state, target)
        close(value, added(step_of(values, i)))
        assert gradient.shape == pred.shape
        assert np.any(gradient)
    close(state, expected)


def _scalar(result):
    value, state = result
    return added(value), state


@every_state
def test_no_gradient_flows_through_the_statistics(loss, row):
    stacked = batches(row)
    _, state = looped(loss, stacked)
    pred, target = step_of(stacked, 0)

    def next_state(pred):
        return sum(x.sum() for x in loss.update(state, pred, target)[1])

    def value(state):
        return added(loss.update(state, pred, target)[0])

    assert not np.any(jax.grad(next_state)(pred))
    assert not any(map(np.any, jax.grad(value)(state)))


@every_state
def test_vmap_over_states(loss, row):
    stacked = batches(row)
    states = [looped(loss, step_of(stacked, slice(0, i + 1)))[1] for i in range(STEPS)]
    alone = [loss.update(states[i], *step_of(stacked, i)) for i in range(STEPS)]
    stack = functools.partial(jax.tree.map, lambda *parts: jnp.stack(parts))
    close(jax.vmap(loss.update)(stack(*states), *stacked), stack(*alone))


@every_state
def test_state_in_an_nnx_variable(loss, row):
    class LossState(nnx.Variable):
        pass

    class Head(nnx.Module):
        def __init__(self):
            self.loss = loss
            self.loss_state = LossState(loss.init())

        def __call__(self, pred, target):
            value, after = self.loss.update(self.loss_state.get_value(), pred, target)
            self.loss_state.set_value(after)
            return added(value)

    stacked = batches(row)
    values, expected = looped(loss, stacked)
    head = Head()
    run = nnx.jit(lambda head, pred, target: head(pred, target))
    for i in range(STEPS):
        close(run(head, *step_of(stacked, i)), added(step_of(values, i)))
    close(head.loss_state.get_value(), expected)


@every_state
def test_state_in_a_linen_collection(loss, row):
    class Head(linen.Module):
        @linen.compact
        def __call__(self, pred, target):
            state = self.variable("loss_state", "loss", loss.init)
            value, after = loss.update(state.value, pred, target)
            if not self.is_initializing():
                state.value = after
            return added(value)

    stacked = batches(row)
    values, expected = looped(loss, stacked)
    variables = Head().init(jax.random.key(0), *step_of(stacked, 0))
    run = jax.jit(functools.partial(Head().apply, mutable=["loss_state"]))
    for i in range(STEPS):
        value, variables = run(variables, *step_of(stacked, i))
        close(value, added(step_of(values, i)))
    close(variables["loss_state"]["loss"], expected)


@every_state
def test_a_checkpoint_goes_on_with_the_same_numbers(loss, row, tmp_path):
    stacked = batches(row)
    _, state = looped(loss, stacked)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", {"loss_state": state})
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "step", {"loss_state": loss.init()})
    chex.assert_trees_all_equal(restored["loss_state"], state)
    chex.assert_trees_all_equal(
        looped(loss, stacked, restored["loss_state"]), looped(loss, stacked, state)
    )


@every_state
def test_a_batch_with_nothing_valid_costs_0_and_changes_no_state(loss, row):
    stacked = batches(row)
    pred, target = step_of(stacked, 0)
    none = jnp.zeros(ROWS)
    for state in (loss.init(), looped(loss, stacked)[1]):
        for arguments in ((pred, target, none), (pred[:0], target[:0])):
            value, after = jax.jit(loss.update)(state, *arguments)
            chex.assert_trees_all_equal(after, state)
            assert added(value) == 0


@every_state
def test_what_is_no_state_is_an_error(loss, row):
    pred, target = step_of(batches(row), 0)
    name = type(loss).__name__
    wider = jax.tree.map(lambda x: jnp.zeros(x.size + 1), loss.init())
    for state in ((), None, wider, tuple(loss.init())):
        with pytest.raises(ValueError, match=rf"{name}: state must come from init\(\) or update"):
            loss.update(state, pred, target)


def uneven(row):
    """A batch for 8 devices whose parts have little in common: classes, sizes, weights."""
    pred, target = (x.reshape(-1, *x.shape[2:]) for x in batches(row, DEVICES))
    order = np.argsort(np.asarray(target).reshape(len(target), -1).sum(1), kind="stable")
    pred, target = pred[order], target[order]
    size = jnp.linspace(0.02, 3, len(pred), dtype=pred.dtype)
    weight = jnp.ones(len(pred)).at[2 * ROWS : 3 * ROWS].set(0)  # all of the third device's
    weight = weight.at[5::7].set(0)
    return pred * size[:, None], target, weight


def two_steps(update, state, pred, target, weight):
    """Value and gradient of the second of two steps, and the state after it."""
    _, state = update(state, pred[::-1], target[::-1], weight[::-1])

    def total(pred):
        value, after = update(state, pred, target, weight)
        return added(value), after

    return jax.value_and_grad(total, has_aux=True)(pred)


@pytest.mark.long
@every_state
def test_shard_map_merges_by_axis_name(loss, row):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=(P(), P()),
    )
    def update(state, pred, target, weight):
        value, state = loss.update(state, pred, target, weight, axis_name="data")
        return reduce_mean(value, "data"), state

    arguments = (loss.init(), *uneven(row))
    actual = jax.jit(functools.partial(two_steps, update))(*arguments)
    close(actual, two_steps(loss.update, *arguments))


@pytest.mark.long
@every_state
def test_vmap_merges_by_axis_name(loss, row):
    batch = uneven(row)
    parts = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)

    def update(pred, target, weight):
        value, state = loss.update(loss.init(), pred, target, weight, axis_name="data")
        return reduce_mean(added(value), "data"), state

    values, states = jax.vmap(update, axis_name="data")(*parts)
    value, state = loss.update(loss.init(), *batch)
    close(values, jnp.full(DEVICES, added(value)))
    close(states, jax.tree.map(lambda x: jnp.stack([x] * DEVICES), state))


@every_state
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_with_sharded_inputs_merges_by_itself(loss, row, axis_type):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))
    batch = uneven(row)
    expected = two_steps(loss.update, loss.init(), *batch)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(batch, NamedSharding(mesh, P("data")))
        state = jax.device_put(loss.init(), NamedSharding(mesh, P()))
        actual = jax.jit(functools.partial(two_steps, loss.update))(state, *sharded)
    close(jax.device_get(actual), expected)
