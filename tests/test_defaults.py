"""A function and its class share one default."""

import dataclasses
import inspect
import sys

import pytest

import visdet_jax
from visdet_jax import LOSSES


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_numbers_and_flags_of_a_family(name):
    cls = LOSSES[name]
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    family = vars(sys.modules[cls.__module__])
    functions = [f for n, f in family.items() if n.islower() and n in visdet_jax.__all__]
    own = [f for f in functions if inspect.unwrap(f).__module__ == cls.__module__]
    assert own
    for function in own:
        for parameter in inspect.signature(function).parameters.values():
            default = fields.get(parameter.name)
            if isinstance(default, int | float) and isinstance(parameter.default, int | float):
                assert parameter.default == default, (function.__name__, parameter.name)
