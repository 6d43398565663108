"""Gradient accumulation and rematerialisation: the numbers of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import ROWS, close, few
from head_cases import ROWS as HEADS
from head_cases import boxes_for, outputs_for, total
from whole_batch import EVERY, ROW_BY_ROW, batch_for, on_one_device, positives, value_and_gradient

PARTS = 4


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(ROW_BY_ROW))
def test_sums_and_counts_of_micro_batches_are_the_whole_batch(name):
    """`reduction_override="sum"`, added up as the counts are; divided once, at the end."""
    loss, (pred, target, weight, keywords) = batch_for(name)
    expected, gradient = on_one_device(name)

    def summed(scale, pred, target, weight, keywords):
        return loss(scale * pred, target, weight, reduction_override="sum", **keywords)

    def step(sums, micro_batch):
        value, derivative = jax.value_and_grad(summed)(scale, *micro_batch)
        count = (micro_batch[2] > 0).sum(dtype=jnp.float32)
        return jax.tree.map(jnp.add, sums, (value, derivative, count)), None

    scale = jnp.float32(1.0)  # the parameters
    micro_batches = jax.tree.map(
        lambda x: x.reshape(PARTS, ROWS // PARTS, *x.shape[1:]), (pred, target, weight, keywords)
    )
    (value, derivative, count), _ = jax.lax.scan(step, (jnp.zeros(()),) * 3, micro_batches)
    close((value / count, derivative / count), (expected, np.vdot(gradient, pred)))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(EVERY))
def test_rematerialised_losses_are_the_same(name):
    loss, batch = batch_for(name)
    remade = jax.jit(lambda b: value_and_gradient(loss, b, positives, jax.checkpoint))(batch)
    close(jax.device_get(remade), on_one_device(name))


@pytest.mark.long
@pytest.mark.parametrize("name", few(HEADS, ["FCOSHead"]))
def test_rematerialised_heads_are_the_same(name):
    head = HEADS[name].head()
    outputs, truth = outputs_for(head), boxes_for((2, 0), 3)

    def value(outputs):
        return total(head.loss(outputs, *truth))

    remade = jax.value_and_grad(jax.checkpoint(value))(outputs)
    close(remade, jax.value_and_grad(value)(outputs))


@pytest.mark.long
@pytest.mark.parametrize("name", few(HEADS, ["FCOSHead"]))
def test_a_head_after_a_network_in_micro_batches(name):
    """A head divides by its batch's counts, so it takes the outputs of all micro-batches."""
    head = HEADS[name].head()
    outputs, truth = outputs_for(head), boxes_for((2, 0), 3)

    def network(scale, images):
        return jax.tree.map(lambda x: scale * x, images)

    def whole(scale):
        return total(head.loss(network(scale, outputs), *truth))

    def in_parts(scale):
        parts = jax.tree.map(lambda x: x.reshape(2, -1, *x.shape[1:]), outputs)
        parts = jax.lax.map(jax.checkpoint(functools.partial(network, scale)), parts)
        return total(head.loss(jax.tree.map(jnp.concatenate, parts), *truth))

    scale = jnp.float32(0.9)
    close(jax.jit(jax.value_and_grad(in_parts))(scale), jax.value_and_grad(whole)(scale))
