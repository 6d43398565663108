"""The tool that compiles for TPUs and GPUs: which wheel is missing, and its table, for real."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import accelerators
from compiled import targets

EXAMPLES = Path(accelerators.__file__).parent
pytestmark = pytest.mark.example


@pytest.mark.parametrize(
    ("target", "command"),
    [("v5e", "pip install libtpu"), ("h200", 'pip install "jax[cuda13]"')],
)
def test_a_missing_wheel_is_named(target, command, monkeypatch, capsys):
    monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as error:
        accelerators.main(["--target", target, "--quick"])
    topology = targets.TARGETS[target].topology
    assert f"the compiler for {topology} is not installed: {command}" in str(error.value)


@pytest.mark.parametrize("target", ["v5e", "h200"])
def test_it_compiles_for_real_where_the_compiler_is(target):
    """In a process of its own: one at a time may hold libtpu, and this one is set up for tests."""
    module, command = targets.WHEELS[targets.TARGETS[target].platform]
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"the compiler is not installed: {command}")
    arguments = ["--target", target, "--quick", "--losses", "--only", "focal", "--markdown"]
    done = subprocess.run(
        [sys.executable, "accelerators.py", *arguments],
        cwd=EXAMPLES,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    header, rule, *rows = (line for line in done.stdout.splitlines() if line.startswith("|"))
    assert header.startswith("| loss | moved, value | moved |")
    assert set(rule) <= set("|-: ")
    columns = [cell.strip() for cell in header.split("|")[1:-1]]
    for row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row.split("|")[1:-1]), strict=True))
        assert 0.5 < float(cells["moved"]) < 20
        assert int(cells["kernels"]) >= 1


def test_a_table_has_a_cell_for_every_figure():
    rows = [{"loss": "a", "moved": 1.25, "kernels": 7}, {"loss": "bc", "moved": 123.4, "time": 2.0}]
    aligned = accelerators.format_table(rows, markdown=False).splitlines()
    assert aligned[0].split() == ["loss", "moved", "kernels", "time"]
    assert aligned[1].split() == ["a", "1.25", "7"]
    markdown = accelerators.format_table(rows, markdown=True).splitlines()
    assert markdown[2] == "| a | 1.25 | 7 |  |"
    assert markdown[3] == "| bc | 123 |  | 2.00 |"
