"""What the fields of a class may be, read off the class: so the laws hold for a new loss for free.

The ranges and choices are those of `visdet_jax/core/hyperparameters.py`, which stand in the
annotations of the class's functions or of the class itself; flags, numbers and None are seen in the
types of the fields. What cannot be derived is in EXAMPLES of `tests/cases.py`.
"""

import dataclasses
import warnings
from typing import Any

import numpy as np
import pytest

from cases import EXAMPLES
from visdet_jax.core.fields import field_types, union_members
from visdet_jax.core.hyperparameters import Allowed, Range, allowed, field_rules

NUMBERS = (0.7, 1.3, 0.35, 1.7, 0.45, 2.6, 0.85, -0.6)
WHOLE = (3, 2, 1, 4)


def rules(cls: type) -> dict[str, Allowed]:
    """What the annotations say of each field, by name; the class's own come first."""
    names = field_types(cls)
    found = {}
    for function in reversed(getattr(cls, "functions", ())):
        found |= {name: rule for name, rule in allowed(function).items() if name in names}
    return found | dict(field_rules(cls))


def number_fields(cls: type) -> list[str]:
    """The fields that hold a number, or a number or None."""
    return [name for name, kind in field_types(cls).items() if float in union_members(kind)]


def another_number(rule: Allowed, *taken: Any, whole: bool = False) -> float:
    """A number that is allowed, and none of those that are taken."""
    span = rule.range or Range()
    for number in WHOLE if whole else NUMBERS:
        if number in span and number not in taken:
            return number
    raise ValueError(f"tests/settings.py knows no other number that is {span}")


def numbers(cls: type, config: dict[str, Any]) -> dict[str, float]:
    """Another number than the default for each field that holds one, no two the same."""
    settings, found = defaults(cls) | config, {}
    for name in number_fields(cls):
        if isinstance(settings.get(name), int | float):
            rule = rules(cls).get(name, Allowed())
            try:
                found[name] = another_number(rule, settings[name], *found.values())
            except ValueError:  # too narrow for that many
                found[name] = another_number(rule, settings[name])
    return found


def whole_exponents(cls: type, config: dict[str, Any]) -> dict[str, int]:
    """Another whole number than the default for each exponent: it is known when compiled."""
    settings = defaults(cls) | config
    return {
        name: another_number(rule, settings[name], whole=True)
        for name, rule in rules(cls).items()
        if rule.exponent and settings.get(name) is not None
    }


def options(cls: type) -> list[tuple[str, Any]]:
    """(field, value) of each choice: flags, choices of strings, and None or something else."""
    found, of_class = [], rules(cls)
    for name, kind in field_types(cls).items():
        members, rule = union_members(kind), of_class.get(name, Allowed())
        if name == "reduction":
            continue  # the contract's
        if bool in members:
            found += [(name, False), (name, True)]
        found += [(name, choice) for choice in rule.choices if choice is not None]
        if str in members and not rule.choices:
            pytest.fail(
                f"{cls.__name__}.{name} is a string, and nothing says which: annotate the parameter"
                f" {name!r} of its function with Literal[...]"
            )
        if type(None) not in members:
            continue
        found.append((name, None))
        if float in members:
            found.append((name, another_number(rule)))
        if name in EXAMPLES:
            found.append((name, EXAMPLES[name]))
        elif float not in members:
            pytest.fail(
                f"add an example of {name!r} ({cls.__name__}) to EXAMPLES in tests/cases.py"
            )
    return found


def defaults(cls: type) -> dict[str, Any]:
    """The defaults of the fields that have one."""
    return {
        field.name: field.default
        for field in dataclasses.fields(cls)
        if field.default is not dataclasses.MISSING
    }


def built(cls: type, **config: Any) -> Any:
    """An instance, without the warnings that some configs are built with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(**config)


def is_allowed(cls, config):
    """Whether the class takes this combination of options."""
    try:
        built(cls, **config)
    except ValueError:
        return False
    return True


def outside(span: Range) -> list[float]:
    """Numbers that are not in a range."""
    ends = [span.low if span.without_low else span.low - 1]
    ends += [span.high if span.without_high else span.high + 1]
    return [*(end for end in ends if np.isfinite(end)), np.nan, np.inf, -np.inf]
