"""Losses and heads in the modules, training loops and config systems that they are used from."""

from operator import itemgetter

import fiddle as fdl
import hydra
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from cases import ONE_EACH_WITH_BARE, WITH_METRICS, added, close, few, first_state, updated
from head_cases import ROWS as HEADS
from head_cases import boxes_for, outputs_for, total
from visdet_jax import FocalLoss, GIoULoss, build_loss
from visdet_jax.detectors import FCOSHead, build_head


def identity(key, shape, dtype=jnp.float32):
    """A layer that starts by passing its input on, so that a loss gets what its row means."""
    return jnp.eye(*shape, dtype=dtype)


def batches_of(row, steps):
    """(pred, target, keywords) of each step, stacked."""
    inputs = [(*row.inputs(np.random.default_rng(seed)), {})[:3] for seed in range(steps)]
    return jax.tree.map(lambda *x: np.stack(x), *inputs)


def each_of(batches):
    return [jax.tree.map(itemgetter(step), batches) for step in range(len(batches[0]))]


def alone(loss, batches):
    """The sum over the steps and its gradient by kernel and bias, without any module."""

    def value(kernel, bias):
        state, values = first_state(loss), []
        for x, target, keywords in each_of(batches):
            pred = x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
            result, state = updated(loss, state, pred, target, **keywords)
            values.append(added(result))
        return sum(values)

    width = batches[0].shape[-1]
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))(jnp.eye(width), jnp.zeros(width))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "row"), few(ONE_EACH_WITH_BARE))
def test_losses_in_modules(name, row):
    """The loss as a field; its state as a variable of nnx, and as the carry of linen.scan."""

    class Host(nnx.Module):
        def __init__(self, loss, width):
            self.layer = nnx.Linear(width, width, kernel_init=identity, rngs=nnx.Rngs(0))
            self.loss = loss
            self.loss_state = nnx.Variable(first_state(loss))

        def __call__(self, x, target, keywords):
            state = self.loss_state.get_value()
            value, after = updated(self.loss, state, self.layer(x), target, **keywords)
            self.loss_state.set_value(after)
            return added(value)

    def run(host, batches):
        return sum(host(*batch) for batch in each_of(batches))

    loss = build_loss({"type": name, **row.config})
    batches = batches_of(row, 2 if jax.tree.leaves(first_state(loss)) else 1)
    host = Host(loss, batches[0].shape[-1])
    value, gradient = nnx.jit(nnx.value_and_grad(run))(host, batches)
    layer, expected = gradient["layer"], alone(loss, batches)
    close((value, (layer["kernel"].get_value(), layer["bias"].get_value())), expected)

    class LinenHost(linen.Module):
        loss: object

        @linen.compact
        def __call__(self, state, batch):
            x, target, keywords = batch
            pred = linen.Dense(x.shape[-1], kernel_init=identity, name="layer")(x)
            value, state = updated(self.loss, state, pred, target, **keywords)
            return state, added(value)

    steps = linen.scan(LinenHost, variable_broadcast="params", split_rngs={"params": False})(loss)
    variables = jax.jit(steps.init)(jax.random.key(0), first_state(loss), batches)

    @jax.jit
    @jax.value_and_grad
    def run_linen(variables):
        return steps.apply(variables, first_state(loss), batches)[1].sum()

    value, gradient = run_linen(variables)
    layer = gradient["params"]["layer"]
    close((value, (layer["kernel"], layer["bias"])), expected)


@pytest.mark.parametrize("name", few(HEADS, ["FCOSHead"]))
def test_heads_in_modules(name):
    head = HEADS[name].head()
    outputs, truth = outputs_for(head), boxes_for((2, 0), 3)

    def scaled(scale):
        return total(head.loss(jax.tree.map(lambda x: scale * x, outputs), *truth))

    class Host(nnx.Module):
        def __init__(self):
            self.scale, self.head = nnx.Param(jnp.float32(0.9)), head

        def __call__(self, outputs):
            outputs = jax.tree.map(lambda x: self.scale.get_value() * x, outputs)
            return total(self.head.loss(outputs, *truth))

    class LinenHost(linen.Module):
        head: object

        @linen.compact
        def __call__(self, outputs):
            scale = self.param("scale", linen.initializers.constant(0.9), ())
            return total(self.head.loss(jax.tree.map(lambda x: scale * x, outputs), *truth))

    expected = jax.value_and_grad(scaled)(jnp.float32(0.9))
    value, gradient = nnx.jit(nnx.value_and_grad(lambda host, x: host(x)))(Host(), outputs)
    close((value, gradient["scale"].get_value()), expected)
    host = LinenHost(head)
    variables = host.init(jax.random.key(0), outputs)
    value, gradient = jax.jit(jax.value_and_grad(host.apply))(variables, outputs)
    close((value, gradient["params"]["scale"]), expected)


# What the training loops learn: a box and a class from eight numbers.
INPUTS = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
BOXES = np.abs(INPUTS[:, :4]) * [1, 1, 0, 0] + [0, 0, 4, 4]
CLASSES = (INPUTS[:, 4] > 0).astype(np.int32)
LOSS_CLS, LOSS_BBOX = FocalLoss(), GIoULoss()


def both(outputs):
    boxes = jnp.abs(outputs[:, :4]) + jnp.array([[0.0, 0, 4, 4]])
    return LOSS_CLS(outputs[:, 4:], CLASSES) + LOSS_BBOX(boxes, BOXES.astype(np.float32))


@pytest.mark.example  # optax and flax promote
def test_an_optax_loop_over_a_linen_train_state():
    model = linen.Dense(6)
    params = model.init(jax.random.key(0), INPUTS)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(3e-2))

    @jax.jit
    def step(state, _):
        value, gradient = jax.value_and_grad(lambda p: both(state.apply_fn(p, INPUTS)))(
            state.params
        )
        return state.apply_gradients(grads=gradient), value

    _, values = jax.lax.scan(step, state, length=100)
    assert values[-1] < 0.5 * values[0]


@pytest.mark.example
def test_an_nnx_optimizer():
    model = nnx.Linear(8, 6, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(3e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradient = nnx.value_and_grad(lambda model: both(model(INPUTS)))(model)
        optimizer.update(model, gradient)
        return value

    values = [step(model, optimizer) for _ in range(100)]
    assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize(("name", "row"), WITH_METRICS)
def test_config_systems_build_every_loss(name, row):
    loss = build_loss({"type": name, **row.config})
    built = fdl.build(fdl.Config(type(loss), **row.config))
    assert (built, hash(built)) == (loss, hash(loss))
    config = OmegaConf.create({"_target_": f"visdet_jax.{name}", **row.config})
    instantiated = hydra.utils.instantiate(config)
    assert (instantiated, hash(instantiated)) == (loss, hash(loss))


def test_fiddle_builds_heads_and_says_what_is_wrong():
    row = HEADS["FCOSHead"]
    assert fdl.build(fdl.Config(build_head, row.config)) == row.head()
    parts = {k: v for k, v in row.config.items() if k != "type" and "loss" not in k}
    config = fdl.Config(FCOSHead, **parts, loss_bbox=fdl.Config(GIoULoss, eps=1e-5))
    config.loss_bbox.loss_weight = 2.0
    assert fdl.build(config).loss_bbox == GIoULoss(eps=1e-5, loss_weight=2.0)
    wrong = fdl.Config(build_loss, {"type": "FocalLoss", "gama": 2.0})
    with pytest.raises(ValueError, match="Did you mean 'gamma'"):
        fdl.build(wrong)


def test_hydra_builds_heads_and_says_what_is_wrong():
    row = HEADS["FCOSHead"]
    config = OmegaConf.create(
        {"_target_": "visdet_jax.detectors.build_head", "bbox_head": row.config}
    )
    assert hydra.utils.instantiate(config) == row.head()
    parts = {k: v for k, v in row.config.items() if k != "type" and "loss" not in k}
    nested = {"_target_": "visdet_jax.GIoULoss", "eps": 1e-5}
    config = OmegaConf.create(
        {"_target_": "visdet_jax.detectors.FCOSHead", **parts, "loss_bbox": nested}
    )
    assert hydra.utils.instantiate(config).loss_bbox == GIoULoss(eps=1e-5)
    wrong = {"_target_": "visdet_jax.build_loss", "config": {"type": "FocalLoss", "gama": 2.0}}
    with pytest.raises(InstantiationException, match="Did you mean 'gamma'"):
        hydra.utils.instantiate(wrong)
