"""What a hyperparameter may be, said once: in the annotation of the function's parameter.

    def sigmoid_focal_loss(pred, target, weight=None, *, gamma: Exponent = 2.0,
                           alpha: Fraction | None = 0.25, mode: Literal["a", "b"] = "a", ...)

`jitted` reads the annotations and checks every call of the function; the class made of the
function (`FrozenModule`) checks its fields by the same annotations. Numbers that are not known
yet, because they are being traced, pass.
"""

import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jax
import numpy as np

Number = jax.Array | float


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, with or without these two; always finite."""

    low: float = -math.inf
    high: float = math.inf
    without_low: bool = False
    without_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.without_low else value >= self.low
        below = value < self.high if self.without_high else value <= self.high
        return above and below and math.isfinite(value)

    def __repr__(self) -> str:
        if self.high == math.inf and self.low == -math.inf:
            return "finite"
        if self.high == math.inf:
            return f"above {self.low:g}" if self.without_low else f"at least {self.low:g}"
        brackets = "(" if self.without_low else "[", ")" if self.without_high else "]"
        return f"in {brackets[0]}{self.low:g}, {self.high:g}{brackets[1]}"


class _WholeIsStatic:
    """Marks an exponent: as a whole Python number it is known when the program is compiled."""


Finite = Annotated[Number, Range()]
Positive = Annotated[Number, Range(0, without_low=True)]
NonNegative = Annotated[Number, Range(0)]
AtLeastOne = Annotated[Number, Range(1)]
Fraction = Annotated[Number, Range(0, 1)]
FractionBelowOne = Annotated[Number, Range(0, 1, without_high=True)]
# A number of classes, of bins, of neighbours.
Count = Annotated[int, Range(1)]
# Powers up to 4 that are whole Python numbers are compiled as products, several times faster than
# a power that may be anything; see `core.power`.
Exponent = Annotated[Number, Range(0), _WholeIsStatic]


class Allowed(typing.NamedTuple):
    """What the annotation of one parameter says about its values."""

    range: Range | None = None
    choices: tuple[Any, ...] = ()
    none: bool = False
    exponent: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raises a ValueError for a value that is known and not allowed."""
        if self.choices and value not in self.choices:
            raise ValueError(f"{name} must be one of {_listed(self.choices)}; got {value!r}")
        if self.range is None or value is None:
            return
        if isinstance(value, int | float):  # Nearly every call; the rest is for arrays and tuples.
            inside = value in self.range
        else:
            known = [x for x in jax.tree.leaves(value) if _is_known(x)]
            inside = all(number in self.range for x in known for number in np.ravel(x).tolist())
        if not inside:
            switched_off = f"; {name}=None switches it off" if self.none else ""
            raise ValueError(f"{name} must be {self.range}, got {value!r}{switched_off}")


def _is_known(x: Any) -> bool:
    """Whether a number can be read: it is not being traced, nor on another process's devices."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not isinstance(x, jax.Array) or x.is_fully_addressable


@functools.cache
def allowed(function: Callable[..., Any]) -> Mapping[str, Allowed]:
    """What each parameter of a function may be, for those whose annotation says anything."""
    found = {
        parameter.name: _read(parameter.annotation)
        for parameter in inspect.signature(function).parameters.values()
    }
    return {name: what for name, what in found.items() if what != Allowed()}


@functools.cache
def field_rules(cls: type) -> Mapping[str, Allowed]:
    """What the fields of a dataclass may be, for those whose own annotation says anything."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = {field.name: _read(hints[field.name]) for field in dataclasses.fields(cls)}
    return {name: what for name, what in found.items() if what != Allowed()}


def _read(annotation: Any) -> Allowed:
    """What an annotation says: `Annotated` numbers, `Literal` choices, and unions with None."""
    what = Allowed()
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    for option in typing.get_args(annotation) if union else (annotation,):
        if option is type(None):
            what = what._replace(none=True)
        elif typing.get_origin(option) is Literal:
            what = what._replace(choices=typing.get_args(option))
        elif typing.get_origin(option) is Annotated:
            _, *notes = typing.get_args(option)
            ranges = [note for note in notes if isinstance(note, Range)]
            exponent = _WholeIsStatic in notes
            what = what._replace(range=ranges[0] if ranges else None, exponent=exponent)
    if what.choices:
        return what._replace(choices=(*what.choices, None) if what.none else what.choices)
    return what if what.range is not None else Allowed()


def _listed(choices: tuple[Any, ...]) -> str:
    """The choices without quotes where they are plain words."""
    words = all(isinstance(choice, str) and choice.isidentifier() for choice in choices)
    return ", ".join(map(str if words else repr, choices))
