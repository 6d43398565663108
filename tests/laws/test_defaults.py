"""A function and its class share one default."""

import dataclasses
import inspect

import pytest

import visdet_jax
from visdet_jax import LOSSES


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_numbers_and_flags_of_a_family(name):
    cls = LOSSES[name]
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    # A subclass shares the functions of its base's file.
    families = {c.__module__ for c in cls.__mro__ if c.__module__.startswith("visdet_jax.losses.")}
    public = [getattr(visdet_jax, n) for n in visdet_jax.__all__ if n.islower()]
    functions = [f for f in public if not inspect.ismodule(f)]
    own = [f for f in functions if inspect.unwrap(f).__module__ in families]
    assert own
    for function in own:
        for parameter in inspect.signature(function).parameters.values():
            default = fields.get(parameter.name)
            if isinstance(default, int | float) and isinstance(parameter.default, int | float):
                assert parameter.default == default, (function.__name__, parameter.name)
