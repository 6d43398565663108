"""What annotations say of a hyperparameter, and what is checked of it."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.hyperparameters import (
    Allowed,
    AtLeastOne,
    Count,
    Exponent,
    Finite,
    Fraction,
    FractionBelowOne,
    NonNegative,
    Number,
    Positive,
    Range,
    allowed,
    field_rules,
)

RANGES = {
    "finite": (Finite, "finite", [-1e30, 0], [np.nan, np.inf, -np.inf]),
    "positive": (Positive, "above 0", [1e-30, 3], [0, -1, np.inf]),
    "not negative": (NonNegative, "at least 0", [0, 3], [-1e-30, np.nan]),
    "at least one": (AtLeastOne, "at least 1", [1, 3], [0.999, 0]),
    "fraction": (Fraction, r"in [0, 1]", [0, 0.5, 1], [-0.1, 1.1, np.nan]),
    "fraction below one": (FractionBelowOne, r"in [0, 1)", [0, 0.999], [1, -0.1]),
    "count": (Count, "at least 1", [1, 2], [0, -3]),
    "exponent": (Exponent, "at least 0", [0, 2, 0.5], [-1, np.inf]),
}


def rule_of(annotation):
    """What an annotation says of a parameter that has it."""

    def function(x: annotation):
        return x

    return allowed(function).get("x")


@pytest.mark.parametrize("name", RANGES)
def test_the_numbers_of_each_kind(name):
    annotation, words, inside, outside = RANGES[name]
    rule = rule_of(annotation)
    assert repr(rule.range) == words
    for value in inside:
        rule.check("x", value)
        rule.check("x", np.float32(value))
        rule.check("x", jnp.float32(value))
    for value in outside:
        message = re.escape(f"x must be {words}, got {value!r}")
        with pytest.raises(ValueError, match=f"^{message}$"):
            rule.check("x", value)


def test_a_half_open_range_from_below():
    assert repr(Range(0, 1, without_low=True)) == "in (0, 1]"
    assert 0 not in Range(0, 1, without_low=True)
    assert 1 in Range(0, 1, without_low=True)


def test_all_numbers_of_an_array_are_checked():
    rule = rule_of(Positive)
    rule.check("x", np.array([1.0, 2.0]))
    for array in (np.array([1.0, -2.0]), jnp.array([1.0, -2.0]), [1.0, -2.0]):
        with pytest.raises(ValueError, match="x must be above 0"):
            rule.check("x", array)


def test_a_number_that_is_traced_passes():
    rule = rule_of(Positive)

    def check(x):
        rule.check("x", x)
        return x

    assert jax.jit(check)(-1.0) == -1
    np.testing.assert_array_equal(jax.vmap(check)(jnp.array([-1.0])), [-1])


def test_none_and_how_to_switch_off():
    rule = rule_of(Fraction | None)
    rule.check("alpha", None)
    with pytest.raises(ValueError, match=r"1\.5; alpha=None switches it off$"):
        rule.check("alpha", 1.5)
    rule_of(Fraction).check("alpha", None)  # The type is checked elsewhere.


def test_choices():
    rule = rule_of(Literal["linear", "square"])
    rule.check("mode", "linear")
    with pytest.raises(ValueError, match=r"^mode must be one of linear, square; got 'cubic'$"):
        rule.check("mode", "cubic")
    with pytest.raises(ValueError, match=r"^mode must be one of linear, square; got None$"):
        rule.check("mode", None)
    rule_of(Literal["linear", "square"] | None).check("mode", None)
    with pytest.raises(ValueError, match=r"version must be one of 1, 2, 3; got 4"):
        rule_of(Literal[1, 2, 3]).check("version", 4)


def test_what_says_nothing_is_left_out():
    def function(a, b: int, c: str | None, d: Number, e: Any, f: Annotated[float, "a note"]): ...

    assert allowed(function) == {}


def test_which_exponents_may_be_static():
    assert rule_of(Exponent) == Allowed(Range(0), exponent=True)
    assert rule_of(Exponent | None) == Allowed(Range(0), none=True, exponent=True)
    assert not rule_of(NonNegative).exponent


def test_the_rules_of_fields():
    @dataclass
    class Fields:
        bins: Count
        names: tuple[str, ...] = ()
        size: float = 1.0

    assert field_rules(Fields) == {"bins": Allowed(Range(1))}
