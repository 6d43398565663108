"""Losses and heads may be made inside a trace, or made outside and put into a model made inside.

Large models are made under `nnx.jit`, so that their parameters are sharded from the start, and
ensembles under `nnx.vmap`. Losses and heads hold no variables, so all of this must work.
"""

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from cases import ONE_EACH
from head_cases import ROWS as HEADS
from visdet_jax import build_loss


def make_losses():
    return {
        name: build_loss({"type": name, **row.config})
        for name, row in (param.values for param in ONE_EACH)
    }


def make_heads():
    return {name: row.head() for name, row in HEADS.items()}


class Model(nnx.Module):
    """A layer, and every loss or head as an attribute."""

    def __init__(self, rngs, parts):
        self.layer = nnx.Linear(2, 3, rngs=rngs)
        for name, part in parts.items():
            setattr(self, name, part)


every_kind = pytest.mark.parametrize("make", [make_losses, make_heads])


@every_kind
def test_made_inside_nnx_jit(make):
    model = nnx.jit(lambda: Model(nnx.Rngs(0), make()))()
    assert {name: getattr(model, name) for name in make()} == make()


@every_kind
def test_made_outside_and_attached_inside_nnx_jit(make):
    parts = make()
    model = nnx.jit(lambda: Model(nnx.Rngs(0), parts))()
    assert {name: getattr(model, name) for name in parts} == parts


@every_kind
def test_made_inside_nnx_vmap(make):
    make_model = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Model(rngs, make())))
    model = make_model(nnx.Rngs(0))
    assert model.layer.kernel.shape == (2, 2, 3)
    assert {name: getattr(model, name) for name in make()} == make()


@every_kind
def test_made_outside_and_attached_inside_nnx_vmap(make):
    parts = make()
    make_model = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Model(rngs, parts)))
    model = make_model(nnx.Rngs(0))
    assert {name: getattr(model, name) for name in parts} == parts


@every_kind
def test_a_model_with_them_goes_through_nnx_jit_again(make):
    model = nnx.jit(lambda: Model(nnx.Rngs(0), make()))()
    value = nnx.jit(lambda model, x: model.layer(x).sum())(model, jnp.ones((1, 2)))
    assert jnp.isfinite(value)
    graph, state = nnx.split(model)
    assert nnx.merge(graph, state).layer.kernel.shape == (2, 3)


@every_kind
def test_made_inside_linen_under_jit(make):
    made = {}

    class Host(linen.Module):
        @linen.compact
        def __call__(self, x):
            made.update(make())
            return linen.Dense(3)(x)

    jax.jit(Host().init)(jax.random.key(0), jnp.ones((1, 2)))
    assert made == make()
