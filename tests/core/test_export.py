"""States may be arguments of a function that is exported."""

from typing import NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import pytest

from visdet_jax.core.export import exportable


def exported(state):
    program = jax.export.export(jax.jit(lambda state: state._replace(mean=2 * state.mean)))(state)
    return jax.export.deserialize(program.serialize()).call(state)


def test_a_named_tuple_is_read_again():
    @exportable
    class ExportedState(NamedTuple):
        mean: jax.Array

    assert exported(ExportedState(jnp.ones(()))) == ExportedState(jnp.float32(2))


def test_without_the_decorator_jax_raises():
    class OtherState(NamedTuple):
        mean: jax.Array

    with pytest.raises(ValueError, match="OtherState"):
        exported(OtherState(jnp.ones(())))
