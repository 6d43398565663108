"""The "Args:" sections of docstrings, so that each argument is described in one place."""

import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Docstring(NamedTuple):
    """A docstring in three parts: the text before "Args:", the arguments, and the text after."""

    before: str
    arguments: Mapping[str, str]
    after: str


def parse(docstring: str | None) -> Docstring:
    """The parts of a docstring. An entry "pred, target: ..." describes both."""
    lines = inspect.cleandoc(docstring or "").split("\n")
    if "Args:" not in lines:
        return Docstring("\n".join(lines).strip(), {}, "")
    start = lines.index("Args:")
    end = start + 1
    while end < len(lines) and (not lines[end] or lines[end].startswith("  ")):
        end += 1
    arguments: dict[str, str] = {}
    names: list[str] = []
    for line in lines[start + 1 : end]:
        if entry := re.match(r"  ([*\w]+(?:, [*\w]+)*): (.*)", line):
            names = entry[1].split(", ")
            arguments |= dict.fromkeys(names, entry[2])
        elif line.strip():
            arguments |= {name: f"{arguments[name]} {line.strip()}" for name in names}
    return Docstring("\n".join(lines[:start]).strip(), arguments, "\n".join(lines[end:]).strip())


def with_arguments(docstring: str | None, names: Iterable[str], sources: Iterable[str]) -> str:
    """A docstring whose "Args:" section describes all of `names`.

    An argument that the docstring itself does not describe is described by the first of the other
    docstrings, `sources`, that does.
    """
    own = parse(docstring)
    described = [own.arguments, *(parse(source).arguments for source in sources)]
    entries = []
    for name in names:
        text = next((arguments[name] for arguments in described if name in arguments), None)
        if text is not None:
            entries += textwrap.wrap(
                f"{name}: {text}",
                92,
                initial_indent="  ",
                subsequent_indent="    ",
                break_on_hyphens=False,
            )
    parts = [own.before, "\n".join(["Args:", *entries]) if entries else "", own.after]
    return "\n\n".join(part for part in parts if part)


def described_by(*sources: Callable[..., Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator of a function some of whose arguments are described where others have them too."""

    def describe(function: Callable[P, R]) -> Callable[P, R]:
        names = inspect.signature(function).parameters
        function.__doc__ = with_arguments(
            function.__doc__, names, [x.__doc__ or "" for x in sources]
        )
        return function

    return describe
