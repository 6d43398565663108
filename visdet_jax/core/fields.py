"""The types of a dataclass's fields: what they hold, and how an error message calls them."""

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def union_members(kind: Any) -> tuple[Any, ...]:
    """The members of a union such as `int | None`; any other type as the only member."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    return typing.get_args(kind) if is_union else (kind,)


def as_tuple(value: Any) -> Any:
    """A list or another sequence as a tuple, at every depth; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(as_tuple(item) for item in value)
    return value


def item_type(kind: Any) -> Any:
    """The type of the items of a field that holds a tuple."""
    tuples = (k for k in union_members(kind) if typing.get_origin(k) is tuple)
    return next((typing.get_args(k)[0] for k in tuples), object)


def describe(kind: Any) -> str:
    """A type in the words of an error message: `float | None` is "a number or None"."""
    words = {float: "a number", int: "an integer", bool: "True or False", str: "a string"}

    def one(member: Any) -> str:
        if member is type(None):
            return "None"
        if typing.get_origin(member) is tuple:
            return "a tuple of numbers"
        return words.get(member, getattr(member, "__name__", str(member)))

    # A number may be an array everywhere: it need not be said.
    members = [member for member in union_members(kind) if member is not jax.Array]
    return " or ".join(map(one, members))


def fits(value: Any, kind: Any) -> bool:
    """Whether a field of type `kind` may hold `value`; arrays and tracers count as numbers."""
    return any(_fits_member(value, member) for member in union_members(kind))


def _fits_member(value: Any, member: Any) -> bool:
    is_bool = isinstance(value, bool | np.bool_)
    if member is float:
        return isinstance(value, int | float | np.number | jax.Array) and not is_bool
    if member is int:
        return isinstance(value, int | np.integer | jax.Array) and not is_bool
    if member is bool:
        return is_bool
    if typing.get_origin(member) is tuple:
        item = typing.get_args(member)[0]
        return isinstance(value, tuple) and all(fits(v, item) for v in value)
    return not isinstance(member, type) or isinstance(value, member)
