"""The page of the examples lists what is there."""

import re

from detector.config import DETECTORS, WITH_MASKS
from pages import ROOT

EXAMPLES = ROOT / "examples"
PAGE = (EXAMPLES / "README.md").read_text(encoding="utf-8")


def test_every_script_has_a_line():
    listed = re.findall(r"^\| `(\w+\.py)` \|", PAGE, re.MULTILINE)
    assert len(listed) == len(set(listed))
    for script in EXAMPLES.glob("*.py"):
        assert script.name in listed, f"add a line for {script.name} to examples/README.md"


def test_the_table_of_digits_has_all_detectors():
    _, table = PAGE.split("| digits, 600 steps |")
    rows = re.findall(r"^\| (`\w+`(?:, \w+)?) \|", table.split("\n\n")[0], re.MULTILINE)
    expected = []
    for name in sorted(DETECTORS):
        parts = (", boxes", ", masks") if name in WITH_MASKS else ("",)
        expected += [f"`{name}`{part}" for part in parts]
    assert sorted(rows) == sorted(expected)
    (named,) = re.findall(r"The detectors are (.*?)\. Each", PAGE)
    assert sorted(re.findall(r"`(\w+)`", named)) == sorted(DETECTORS)


def test_links_and_commands_lead_to_files():
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (EXAMPLES / path).exists(), path
    for path in re.findall(r"python (examples/\w+\.py)", PAGE):
        assert (ROOT / path).exists(), path
