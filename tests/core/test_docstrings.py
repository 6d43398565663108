"""The "Args:" sections of docstrings: read, and written from several."""

import pytest

from visdet_jax.core.docstrings import parse, with_arguments

DOCSTRING = """What it is.

    More of it.

    Args:
      pred, target: Arrays of
        one shape.
      *rest: Others.

      beta: A number.

    Returns: values.
    Raises: ValueError.
    """


def test_parse():
    parts = parse(DOCSTRING)
    assert parts.before == "What it is.\n\nMore of it."
    assert parts.arguments == {
        "pred": "Arrays of one shape.",
        "target": "Arrays of one shape.",
        "*rest": "Others.",
        "beta": "A number.",
    }
    assert parts.after == "Returns: values.\nRaises: ValueError."


@pytest.mark.parametrize("docstring", [None, "", "Short."])
def test_parse_what_has_no_arguments(docstring):
    assert parse(docstring) == ((docstring or ""), {}, "")


def test_a_missing_description_is_taken_from_the_first_other_that_has_it():
    text = with_arguments(
        "A class.\n\nArgs:\n  beta: Its own.\n\nSource: somewhere.",
        ["beta", "gamma", "alpha", "unknown"],
        [
            "F.\n\nArgs:\n  beta: Another's.\n  gamma: First.",
            "G.\n\nArgs:\n  gamma: No.\n  alpha: A.",
        ],
    )
    assert text == (
        "A class.\n\nArgs:\n  beta: Its own.\n  gamma: First.\n  alpha: A.\n\nSource: somewhere."
    )
    assert with_arguments(text, ["beta", "gamma", "alpha"], []) == text


def test_long_descriptions_are_wrapped():
    long = "word " * 30
    text = with_arguments("A class.", ["beta"], [f"F.\n\nArgs:\n  beta: {long}"])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 92
    assert all(line.startswith("    ") for line in lines[4:])
    assert parse(text).arguments == {"beta": long.strip()}


def test_without_any_argument_there_is_no_section():
    assert with_arguments("A class.", ["beta"], ["A function."]) == "A class."
