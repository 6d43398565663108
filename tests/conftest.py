"""What all tests share: strict JAX, eight devices, and which tests run without `--all`.

See README.md beside this file.
"""

import contextlib
import gc
import itertools
import os
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import jax
import pytest

from golden.replay import EVERY

pytest_plugins = ["faster"]

TESTS = Path(__file__).parent
TESTS_DONE = itertools.count(1)
MAPPINGS, MOST_MAPPINGS = Path("/proc/self/maps"), 30_000  # Linux has the file.

# Before the first computation: the sharding tests need more than one device. On another platform,
# such as TESTS_ON=gpu, only tests of values can pass; see examples/measure.py.
if (platform := os.environ.get("TESTS_ON", "cpu")) == "cpu":
    jax.config.update("jax_platforms", platform)
    jax.config.update("jax_num_cpu_devices", 8)

# The files that take longest, relative to this folder (files of one name are in several folders).
# They are started first, or one worker would be left with one of them in the end.
LONGEST = (
    "laws/test_contract.py",
    "laws/test_golden.py",
    "laws/test_golden_later.py",
    "laws/test_gradients.py",
    "examples/test_train_detector.py",
    "examples/test_train_distributed.py",
    "laws/test_labels.py",
    "detectors/test_contract.py",
    "detectors/heads/test_detr.py",
    "detectors/heads/test_golden_criteria.py",
    "test_checked.py",
    "laws/test_hosts.py",
    "laws/test_export.py",
    "laws/test_meshes.py",
    "laws/test_accumulation.py",
)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the long tests too")
    parser.addoption(
        "--fuzz", type=int, default=0, metavar="N", help="examples for test_fuzz.py, drawn anew"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "long: runs with --all, or where it is asked for by name")
    config.addinivalue_line(
        "markers", "one_in(n): without --all, one in n of a test's parameters runs"
    )
    config.addinivalue_line(
        "markers", "example: runs an example; JAX's promotion is as users have it"
    )


def path_in_tests(path):
    return path.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else path.name


def pytest_collection_modifyitems(config, items):
    """The longest files first. Without `--all` some are left out, unless named as FILE::TEST.

    Whoever asks for `--fuzz` has asked for what is long there.
    """
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(path_in_tests(item.path), len(ranks)))
    if config.getoption("--all") or config.getoption("--fuzz"):
        return
    kept = sample([item for item in items if not item.get_closest_marker("long")])
    left_out = {item for item in items if item not in kept and not is_named(item, config)}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def sample(items):
    """The tests that run without `--all`: of one that is marked `one_in(n)`, one parameter in n.

    Another one for each test, so that all laws together ask something of every class.
    """
    functions = defaultdict(list)
    for item in items:
        functions[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for name, parameters in functions.items():
        marker = parameters[0].get_closest_marker("one_in")
        step = min(marker.args[0], len(parameters)) if marker else 1
        kept.update(parameters[zlib.crc32(name.encode()) % step :: step])
    return kept


def is_named(item, config):
    """Whether the command line names this very test, not only its file or folder."""
    for argument in config.args:
        file, _, test = argument.partition("::")
        path = (config.invocation_params.dir / file).resolve()
        if test and path == item.path and item.nodeid.partition("::")[2].startswith(test):
            return True
    return False


@pytest.fixture(autouse=True)
def strict_jax(request):
    """The library must hold where users have switched promotion off; examples use others' code."""
    with contextlib.ExitStack() as stack:
        if "example" not in request.keywords:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file(request):
    """Tests of a file share compiled programs; those of all long files, kept, would fill 8 GB."""
    yield
    if path_in_tests(request.path) in LONGEST:
        let_programs_go()


@pytest.fixture(autouse=True)
def programs_leave_room():
    """Programs are let go before the kernel has no more mappings for them, of 65 530 by default.

    XLA's compiler would crash: without this a whole run had 64 672 in the tests of heads. To count
    them takes some milliseconds, so that it is done after one test in ten.
    """
    yield
    if next(TESTS_DONE) % 10 == 0 and MAPPINGS.exists():
        with MAPPINGS.open("rb") as lines:
            count = sum(1 for _ in lines)
        if count > MOST_MAPPINGS:
            let_programs_go()


def let_programs_go():
    """Empties JAX's caches of compiled programs."""
    jax.clear_caches()
    gc.unfreeze()  # see faster.py
    gc.collect()


@pytest.fixture
def x64():
    """float64 on for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def pytest_terminal_summary(terminalreporter, config):
    """What the golden replay covered, printed whether or not anything failed."""
    left_out = "0 skipped" if config.getoption("--all") else f"1 case in {EVERY} without --all"
    covered = defaultdict(Counter)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "golden replay" and report.when == "call":
                precision, counts = value
                covered[precision].update(counts)
    for precision, counts in sorted(covered.items()):
        terminalreporter.write_line(
            f"golden replay in {precision}: {counts['equal']} cases equal the original, "
            f"{counts['error']} raise as it does, {counts['ours']} differ on purpose, {left_out}"
        )
