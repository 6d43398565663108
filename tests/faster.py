"""A pytest plugin, loaded by conftest.py: what makes the tests faster, and what each thing saves.

Most of the time is compilation, of programs that run once. The passes over the HLO stay as users
have them; with XLA_FLAGS="--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true" in
the environment all of the compilation is.

The savings are of user and system CPU time, measured in turns (jax 0.10.2, Python 3.11, Linux), of
some laws and golden files (flags) or of all of laws/test_contract.py (the others). What saved less
than 5 % was taken out: no recording of Python's frames, no garbage collection while tests are
collected.
"""

import gc
import os
from importlib.metadata import version

import pytest

FLAGS = [
    "--xla_backend_optimization_level=0",  # Saves 14 %: LLVM's optimizations.
    # Saves 7 % of the laws, 13 % of tests of heads: a program is compiled in one part, not in 32.
    "--xla_cpu_parallel_codegen_split_count=1",
]
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    # Saves 31 %: MLIR's passes for each fusion. From 0.11 on XLA has no other emitters.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

# Of a flag that is given twice the last counts.
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])


@pytest.fixture(autouse=True)
def programs_hold_no_garbage():
    """Saves 9 %: the compiled programs that a test leaves are not searched again and again."""
    yield
    gc.freeze()


def pytest_runtest_protocol(item, nextitem):
    """Saves 8 %: each test runs above a frame so large that all others find room beside it.

    Python keeps its frames in pieces of 16 KiB. Tracing, 200 frames deep, goes over the end of a
    piece and back thousands of times, and each time the next piece is mapped and unmapped. A frame
    that needs 8 MiB gets a piece of 16.
    """
    runner = item.config.pluginmanager.get_plugin("runner")
    return above_a_large_frame(runner.pytest_runtest_protocol, item, nextitem)


def above_a_large_frame(function, *arguments):
    return function(*arguments)


above_a_large_frame.__code__ = above_a_large_frame.__code__.replace(co_stacksize=1_100_000)
