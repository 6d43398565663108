"""The types of a dataclass's fields: what they hold, and how an error message calls them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.fields import (
    as_tuple,
    describe,
    field_types,
    fits,
    item_type,
    union_members,
)

NUMBERS = float | tuple[float, ...] | None


def test_field_types():
    @dataclass
    class Fields:
        size: "float | None"
        names: tuple[str, ...] = ()

    assert field_types(Fields) == {"size": float | None, "names": tuple[str, ...]}


def test_union_members():
    assert union_members(float | None) == (float, type(None))
    assert union_members(Optional[float]) == (float, type(None))  # noqa: UP045
    assert union_members(float) == (float,)
    assert union_members(tuple[float, ...]) == (tuple[float, ...],)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([1, [2.0, "3"]], (1, (2.0, "3"))),
        ((1, 2), (1, 2)),
        (np.array([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        ("text", "text"),
        (b"bytes", b"bytes"),
        (None, None),
        (1.5, 1.5),
    ],
)
def test_as_tuple(value, expected):
    assert as_tuple(value) == expected


def test_as_tuple_of_any_sequence():
    class Own(Sequence):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return (3, 4)[index]

    assert as_tuple(Own()) == (3, 4)


def test_item_type():
    assert item_type(tuple[float, ...]) is float
    assert item_type(NUMBERS) is float
    assert item_type(float) is object


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (float, "a number"),
        (float | None, "a number or None"),
        (int, "an integer"),
        (bool, "True or False"),
        (str | None, "a string or None"),
        (NUMBERS, "a number or a tuple of numbers or None"),
        (dict, "dict"),
    ],
)
def test_describe(kind, words):
    assert describe(kind) == words


@pytest.mark.parametrize(
    ("kind", "values", "others"),
    [
        (float, [1, 1.5, np.float32(1), np.int64(2), jnp.ones(())], [True, "1", None, (1,)]),
        (int, [1, np.int64(2), jnp.int32(3)], [1.5, True, np.bool_(True), "1", np.float32(1)]),
        (bool, [True, np.bool_(False)], [0, 1, None]),
        (str, ["a"], [1, None]),
        (NUMBERS, [None, 1.5, (1.0, 2), ()], [(True,), ("1",), [1.0], "1"]),
        (tuple[int, ...], [(1, 2)], [(1.5,), 1]),
        (object, [1, None, "a"], []),
        (float | str, ["a", 1.0], [None]),
    ],
)
def test_fits(kind, values, others):
    assert all(fits(value, kind) for value in values)
    assert not any(fits(value, kind) for value in others)


def test_a_traced_number_fits():
    found = []

    def look(x):
        found.append(fits(x, float | None))
        return x

    jax.jit(look)(1.0)
    assert found == [True]
