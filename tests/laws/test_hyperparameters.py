"""A hyperparameter that means nothing raises, in a class and in a function, and says what would do.

What may be is stated once, in the annotations; see `visdet_jax/core/hyperparameters.py`.
"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax
from cases import CASES, value_of
from settings import another_number, built, is_allowed, number_fields, outside, rules
from visdet_jax import LOSSES
from visdet_jax.core.hyperparameters import allowed

FUNCTIONS = {
    name: function
    for name, function in vars(visdet_jax).items()
    if inspect.isfunction(function) and allowed(function)
}


def pairs(names_of):
    """(name, hyperparameter) to parametrize with, of {name: its hyperparameters}."""
    return [
        pytest.param(name, parameter, id=f"{name}-{parameter}")
        for name, parameters in names_of.items()
        for parameter in parameters
    ]


OF_CLASSES = pairs({name: rules(cls) for name, cls in LOSSES.items()})
NUMBERS_OF_CLASSES = pairs(
    {name: [x for x in number_fields(cls) if x in rules(cls)] for name, cls in LOSSES.items()}
)
OF_FUNCTIONS = pairs({name: allowed(function) for name, function in FUNCTIONS.items()})


# For `accuracy`, which is no jitted function itself.
ARRAYS = {"pred": np.zeros((2, 3), np.float32), "target": np.zeros(2, np.int32)}


def call_with(function, **options):
    """A call of a function that comes no further than the check of its hyperparameters."""
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and name not in options:
            has_choices = name in allowed(function) and allowed(function)[name].choices
            options[name] = allowed(function)[name].choices[0] if has_choices else ARRAYS.get(name)
    return function(**options)


def bad_values(rule, is_count):
    """(value, message) of what is not allowed."""
    if rule.choices:
        strings = isinstance(rule.choices[0], str)
        yield "nonsense" if strings else -97, "must be one of "
    elif is_count:
        yield int(rule.range.low) - 1, f"must be {rule.range}, got "
    else:
        values = outside(rule.range)
        for value in (*values, np.float32(values[0]), jnp.float32(values[0])):
            yield value, f"must be {rule.range}, got "


@pytest.mark.parametrize(("name", "field"), OF_CLASSES)
def test_a_class_raises(name, field):
    cls = LOSSES[name]
    config, rule = CASES[name][0].config, rules(cls)[field]
    is_count = field not in number_fields(cls)
    for value, message in bad_values(rule, is_count):
        with pytest.raises(ValueError, match=f"^{name}: {field} {re.escape(message)}"):
            cls(**{**config, field: value})


@pytest.mark.parametrize(("name", "parameter"), OF_FUNCTIONS)
def test_a_function_raises(name, parameter):
    function = FUNCTIONS[name]
    rule = allowed(function)[parameter]
    is_count = isinstance(inspect.signature(function).parameters[parameter].default, int)
    for value, message in bad_values(rule, is_count):
        # A count may say what it must be in the words of its own function.
        words = r".*must be " if is_count else re.escape(message)
        with pytest.raises(ValueError, match=f"^{name}: {parameter} {words}"):
            call_with(function, **{parameter: value})


@pytest.mark.parametrize(("name", "field"), NUMBERS_OF_CLASSES)
def test_a_number_that_is_traced_passes(name, field):
    """Its value is not known when the loss is built and called, so it cannot raise."""
    cls, other = LOSSES[name], another_number(rules(LOSSES[name])[field])
    row = next(row for row in CASES[name] if is_allowed(cls, {**row.config, field: other}))
    pred, target, keywords = row.arguments()

    def value(number):
        loss = built(cls, **{**row.config, field: number})
        return value_of(loss, pred, target, **keywords)

    assert jax.eval_shape(value, other).shape == ()
