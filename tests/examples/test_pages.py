"""The pages are true: each snippet runs alone, tables list the registries, links lead somewhere."""

import dataclasses
import re
from collections import Counter
from types import ModuleType

import numpy as np
import pytest

import visdet_jax
from adapters import DIFFERENCES as LATER
from golden.differences import DIFFERENCES
from golden.read_golden import read
from pages import ROOT, Page, numbers, words
from visdet_jax import LOSSES, Loss
from visdet_jax.detectors import HEADS, TASK_UTILS, MatchCost

README = Page("README.md")
LOSS_PAGE = Page("visdet_jax/losses/README.md")
DETECTOR_PAGE = Page("visdet_jax/detectors/README.md")
GOLDEN_PAGE = Page("tests/golden/README.md")
PAGES = [
    Page(path.relative_to(ROOT).as_posix())
    for folder in (".", "visdet_jax", "visdet_jax/*", "examples", "tests", "tests/golden")
    for path in sorted(ROOT.glob(f"{folder}/*.md"))
]
SNIPPETS = [
    snippet
    for page in PAGES
    if page.path != "examples/migrating.md"  # It has a test file of its own.
    for snippet in page.snippets()
]
# What snippets name that compile for more than five seconds.
LONG = ("MASK_RCNN",)
COMMON = {f.name for f in dataclasses.fields(Loss)}


@pytest.fixture
def registries_restored():
    """What a snippet registers is removed after the test."""
    registries = [LOSSES, HEADS, TASK_UTILS]
    before = [dict(registry._classes) for registry in registries]
    yield
    for registry, classes in zip(registries, before, strict=True):
        registry._classes.clear()
        registry._classes.update(classes)


def parameter(snippet):
    marks = [pytest.mark.long] if any(name in snippet.code for name in LONG) else []
    return pytest.param(snippet, id=f"{snippet.path}:{snippet.line}", marks=marks)


@pytest.mark.one_in(6)
@pytest.mark.example
@pytest.mark.parametrize("snippet", [parameter(snippet) for snippet in SNIPPETS])
def test_each_snippet_runs_alone(snippet, registries_restored):
    """As it stands, in a namespace of its own; and prints what the page shows below it."""
    printed = snippet.run({})
    if snippet.shown:
        assert words(printed) == words(snippet.shown)
        np.testing.assert_allclose(numbers(printed), numbers(snippet.shown), rtol=1e-3, atol=1e-4)


def test_the_snippets_are_found():
    found = Counter(snippet.path for snippet in SNIPPETS)
    for page in (README, LOSS_PAGE, DETECTOR_PAGE):
        assert found[page.path] == page.text.count("```python") > 4


def loss_rows():
    """Name, functions and keys of each row of the tables of losses."""
    for names, _, functions, keys, _ in LOSS_PAGE.rows("| config name |"):
        for name in re.findall(r"`(\w+)`", names):
            yield name, re.findall(r"`(\w+)`", functions), keys


def test_the_table_of_losses_is_the_registry():
    rows = list(loss_rows())
    assert sorted(name for name, _, _ in rows) == sorted(LOSSES)
    before = []
    for name, functions, keys in rows:
        assert all(callable(getattr(visdet_jax, function)) for function in functions)
        listed = re.findall(r"`([^`]+)`", keys)
        if keys.startswith("those above"):
            listed = before + listed
        assert sorted(listed) == sorted(keys_of(LOSSES[name], COMMON)), name
        before = listed


def keys_of(cls, common):
    """The keys of a class as the tables list them: `gamma=2.0`, or the name of a required one."""
    return [
        f.name if f.default is dataclasses.MISSING else f"{f.name}={f.default!r}".replace("'", '"')
        for f in dataclasses.fields(cls)
        if f.name not in common
    ]


def test_the_table_of_costs_is_the_registry():
    rows = {names.strip("`"): keys for names, _, keys in DETECTOR_PAGE.rows("| match cost |")}
    costs = {name for name, cls in TASK_UTILS.module_dict.items() if issubclass(cls, MatchCost)}
    assert rows.keys() == costs
    for name, keys in rows.items():
        assert sorted(re.findall(r"`([^`]+)`", keys)) == sorted(keys_of(TASK_UTILS[name], set()))


def test_the_tables_of_heads_are_the_registry():
    """Each head is in the first column of one table, and nothing else is."""
    rows = [names for names, *_ in DETECTOR_PAGE.rows("| head |")]
    found = Counter(name for names in rows for name in re.findall(r"`(\w+)`", names))
    assert found == Counter(set(HEADS)), "the tables of visdet_jax/detectors/README.md"


def test_the_tables_of_parts_are_the_registry():
    rows = [names for names, *_ in DETECTOR_PAGE.rows("| config name |")]
    found = Counter(name for names in rows for name in re.findall(r"`(\w+)`", names))
    others = {
        name for name, cls in TASK_UTILS.module_dict.items() if not issubclass(cls, MatchCost)
    }
    assert found == Counter(others), "the table of parts of visdet_jax/detectors/README.md"


def test_every_public_function_is_in_the_table_or_beside_it():
    names = [
        name
        for name, value in vars(visdet_jax).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert len(names) > 100
    text = "".join(page.text for page in PAGES)
    for name in names:
        assert re.search(rf"\b{name}\b", text), name


def test_the_counts_of_golden_cases():
    counts = Counter()
    for path in sorted((ROOT / "tests" / "golden").glob("*.npz")):
        for case, expected in read(path):
            key = case["loss"], case["name"].partition("/")[2].partition("_")[2]
            kind = "error" if "error" in expected else "equal"
            counts["ours" if key in DIFFERENCES else kind] += 1
    equal = f"{counts['equal']:,}".replace(",", " ")
    assert f"{equal} recorded cases equal" in GOLDEN_PAGE.text
    assert f"{equal} recorded cases" in README.text
    assert f"{counts['error']} raise as they do. The other {counts['ours']} are" in GOLDEN_PAGE.text


def test_the_counts_of_later_cases():
    counts = Counter()
    for path in sorted((ROOT / "tests" / "golden" / "later").glob("*.npz")):
        for case, expected in read(path):
            name = case["name"].partition("/")[2]
            ours = {(path.stem, name), (path.stem, name.partition("_")[2])} & LATER.keys()
            kind = "error" if "error" in expected else "equal"
            counts["ours" if ours else kind] += 1
    assert f"{counts.total()} recorded cases of these are replayed" in LOSS_PAGE.text
    assert f"Of the later losses {counts['equal']} cases equal" in GOLDEN_PAGE.text
    assert f"| {counts['equal']} of {counts.total()} cases of" in README.text
    assert (
        f"{counts['error']} raise as it does, and {counts['ours']} are answered" in GOLDEN_PAGE.text
    )


def test_the_commands_of_the_front_page():
    """`.ci/run` reads them there."""
    commands = re.search(r"```bash\n(.*?)```", README.text, re.DOTALL)[1].splitlines()
    assert [c.split()[-1] for c in commands] == ["examples/train_detector.py", "pytest"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_files_and_links_exist(page):
    folder = (ROOT / page.path).parent
    for path in re.findall(r"(?<![\w/.])(?:examples|tests|visdet_jax)/[\w/]+\.\w+", page.text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)\s]+)\)", page.text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        file = (folder / path).resolve() if path else ROOT / page.path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in anchors, link
