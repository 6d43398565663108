"""Squared error."""

import jax
import numpy as np

import visdet_jax as v

PRED = np.random.default_rng(0).normal(0, 3, (16, 5)).astype(np.float32)


def test_equal_inputs_cost_nothing():
    value, gradient = jax.value_and_grad(lambda p: v.mse_loss(p, PRED))(PRED)
    assert value == 0
    assert not gradient.any()
