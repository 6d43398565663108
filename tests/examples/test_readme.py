"""The README is true: its snippets run, its tables list the registry, its commands exist."""

import dataclasses
import re
from collections import Counter
from types import ModuleType

import pytest

import visdet_jax
from adapters import DIFFERENCES as LATER
from golden.differences import DIFFERENCES
from golden.read_golden import read
from pages import ROOT, Page
from visdet_jax import LOSSES, Loss

README = Page("README.md").text
COMMON = {f.name for f in dataclasses.fields(Loss)}


@pytest.fixture
def registry_restored():
    """What a snippet registers is removed after the test."""
    before = dict(LOSSES.module_dict)
    yield
    LOSSES._classes.clear()
    LOSSES._classes.update(before)


@pytest.mark.example
def test_python_snippets_run(registry_restored):
    snippets = Page("README.md").snippets()
    assert len(snippets) >= 5
    namespace = {}
    printed = "".join(snippet.run(namespace) for snippet in snippets)
    assert "GIoULoss" in printed
    assert namespace["value"] > 0
    assert namespace["gradient"][0].any()
    assert not namespace["gradient"][1].any()
    assert "LogCoshLoss" in LOSSES


def table_rows():
    """Name, functions and keys of each row of the README's tables of losses."""
    tables = [part.split("\n\n")[0] for part in README.split("<!-- losses:")[1:]]
    for line in (line for table in tables for line in table.splitlines()[3:]):
        names, _, functions, keys, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        for name in re.findall(r"`(\w+)`", names):
            yield name, re.findall(r"`(\w+)`", functions), keys


def test_the_table_is_the_registry():
    rows = list(table_rows())
    assert sorted(name for name, _, _ in rows) == sorted(LOSSES)
    before = []
    for name, functions, keys in rows:
        assert all(callable(getattr(visdet_jax, function)) for function in functions)
        listed = re.findall(r"`([^`]+)`", keys)
        if keys.startswith("those above"):
            listed = before + listed
        fields = [f for f in dataclasses.fields(LOSSES[name]) if f.name not in COMMON]
        expected = [
            f.name
            if f.default is dataclasses.MISSING
            else f"{f.name}={f.default!r}".replace("'", '"')
            for f in fields
        ]
        assert sorted(listed) == sorted(expected), name
        before = listed


def test_every_public_function_is_in_the_table_or_beside_it():
    names = [
        name
        for name, value in vars(visdet_jax).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert len(names) > 100
    for name in names:
        assert re.search(rf"\b{name}\b", README), name


def test_the_counts_of_golden_cases():
    counts = Counter()
    for path in sorted((ROOT / "tests" / "golden").glob("*.npz")):
        for case, expected in read(path):
            key = case["loss"], case["name"].partition("/")[2].partition("_")[2]
            kind = "error" if "error" in expected else "equal"
            counts["ours" if key in DIFFERENCES else kind] += 1
    equal = f"{counts['equal']:,}".replace(",", " ")
    assert f"{equal} recorded cases equal" in README
    assert f"{counts['error']} raise as they do. The other {counts['ours']} are" in README


def test_the_counts_of_later_cases():
    counts = Counter()
    for path in sorted((ROOT / "tests" / "golden" / "later").glob("*.npz")):
        for case, expected in read(path):
            name = case["name"].partition("/")[2]
            ours = {(path.stem, name), (path.stem, name.partition("_")[2])} & LATER.keys()
            kind = "error" if "error" in expected else "equal"
            counts["ours" if ours else kind] += 1
    assert f"of which {counts.total()} cases are replayed" in README
    assert f"Of the later losses {counts['equal']} cases equal" in README
    assert f"{counts['error']} raise as it does, and {counts['ours']} are answered" in README


def test_commands_and_files_exist():
    commands = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1].splitlines()
    assert [c.split()[-1] for c in commands] == ["examples/train_detector.py", "pytest"]
    for path in re.findall(r"(?:examples|tests|visdet_jax)/[\w/]+\.\w+", README):
        assert (ROOT / path).exists(), path
