"""The pages in Markdown: the snippets that a reader runs, what they print, and the tables."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Page:
    """A page by its path from the repository's root."""

    def __init__(self, path: str) -> None:
        self.path, self.text = path, (ROOT / path).read_text()

    def snippets(self) -> list["Snippet"]:
        """Its blocks of `python`, in order, each with the block of `text` after it."""
        blocks = re.finditer(
            r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?",
            self.text,
            re.DOTALL | re.MULTILINE,
        )
        return [
            Snippet(
                self.path, block[1], block[2] or "", self.text.count("\n", 0, block.start()) + 1
            )
            for block in blocks
        ]

    def rows(self, header: str) -> list[list[str]]:
        """The cells of the rows of each table whose header begins so, of all tables together."""
        tables = re.findall(
            rf"^{re.escape(header)}.*\n\|[-| :]+\|\n((?:\|.*\n?)+)", self.text, re.MULTILINE
        )
        lines = [line for table in tables for line in table.splitlines()]
        return [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


class Snippet(NamedTuple):
    """A block of code of a page."""

    path: str
    code: str
    shown: str  # What the page says that it prints, or nothing.
    line: int  # Where it begins.

    def run(self, namespace: dict[str, Any]) -> str:
        """Runs it in the repository's root, with these names, and gives back what it prints."""
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(self.code, self.path, "exec"), namespace)
        return printed.getvalue()


NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def numbers(text: str) -> list[float]:
    """All numbers of a text."""
    return [float(number) for number in NUMBER.findall(text)]


def words(text: str) -> str:
    """A text with a mark in the place of each number, and single spaces."""
    return " ".join(NUMBER.sub("#", text).split())
