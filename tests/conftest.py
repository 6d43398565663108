"""Strict JAX for all tests but the examples': no dtype or rank promotion; and less waiting."""

import contextlib
import gc
import os
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

# Most of the time is compilation, of programs that run once. Without LLVM's optimizations it takes
# three quarters, and without MLIR's passes for every fusion a third of that, where jaxlib still
# has XLA's older emitters. The passes over the HLO are as users have them, and with
# XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" all is.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
        if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11)
        else "",
        os.environ.get("XLA_FLAGS", ""),  # the last counts
    ]
)

import jax
import pytest

gc.disable()  # until the tests are collected: imports and their parameters leave no garbage

# Before the first computation: the sharding tests need more than one device.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Most of the rest is tracing, and a twentieth of that the recording of Python's frames.
jax.config.update("jax_traceback_in_locations_limit", 0)


@pytest.fixture(autouse=True)
def strict_jax(request):
    """The library must hold where users have switched promotion off; examples use others' code."""
    with contextlib.ExitStack() as stack:
        if "example" not in request.keywords:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield


# Relative to this folder. Files of one name may be in several folders.
LONGEST = (
    "laws/test_contract.py",
    "laws/test_golden.py",
    "laws/test_golden_later.py",
    "examples/test_train_detector.py",
    "examples/test_train_distributed.py",
    "detectors/heads/test_detr.py",
    "test_checked.py",
    "laws/test_hosts.py",
    "laws/test_export.py",
    "laws/test_meshes.py",
    "laws/test_accumulation.py",
)


def path_in_tests(path):
    return path.relative_to(Path(__file__).parent).as_posix()


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_file(request):
    """Tests of a file share compiled programs; those of long files, kept, would fill 8 GB."""
    yield
    if path_in_tests(request.path) in LONGEST:
        jax.clear_caches()
        gc.unfreeze()
        gc.collect()


@pytest.fixture(autouse=True)
def programs_hold_no_garbage():
    """What a test leaves is compiled programs: no use to search them again and again."""
    yield
    gc.freeze()


@pytest.fixture
def x64():
    """float64 on for one test."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="the long tests too, see tests/README.md")
    parser.addoption(
        "--fuzz", type=int, default=0, metavar="N", help="examples for test_fuzz.py, drawn anew"
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "example: runs an example; JAX's promotion is as users have it"
    )
    config.addinivalue_line("markers", "long: runs with --all, or where it is asked for by name")


def pytest_collection_modifyitems(config, items):
    """Long tests are left out. The longest files first, or one worker has them in the end."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(path_in_tests(item.path), len(ranks)))
    if config.getoption("--all") or config.getoption("--fuzz"):
        return
    named = tuple(arg for arg in config.args if "::" in arg)
    left_out = [
        item
        for item in items
        if item.get_closest_marker("long") and not item.nodeid.startswith(named or ("::",))
    ]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_runtest_protocol(item, nextitem):
    """Runs each test above a frame so large that all others find room beside it.

    Python keeps its frames in pieces of 16 KiB. Tracing, 200 frames deep, goes over the end of a
    piece and back thousands of times, and each time the next piece is mapped and unmapped: a
    seventh of the time. A frame that needs 8 MiB gets a piece of 16.
    """
    runner = item.config.pluginmanager.get_plugin("runner")
    return above_a_large_frame(runner.pytest_runtest_protocol, item, nextitem)


def above_a_large_frame(function, *arguments):
    return function(*arguments)


above_a_large_frame.__code__ = above_a_large_frame.__code__.replace(co_stacksize=1_100_000)


def pytest_terminal_summary(terminalreporter):
    """What the golden replay covered, printed whether or not anything failed."""
    covered = defaultdict(Counter)
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "golden replay" and report.when == "call":
                precision, counts = value
                covered[precision].update(counts)
    for precision, counts in sorted(covered.items()):
        terminalreporter.write_line(
            f"golden replay in {precision}: {counts['equal']} cases equal the reference, "
            f"{counts['error']} raise as it does, {counts['ours']} differ on purpose, 0 skipped"
        )
