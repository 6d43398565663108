import gc
import os
from importlib.metadata import version

import pytest

OFF = os.environ.get("FASTER_OFF", "").split(",")
FLAGS = []
if "opt" not in OFF:
    FLAGS.append("--xla_backend_optimization_level=0")
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    if "emit" not in OFF:
        FLAGS.append("--xla_cpu_use_fusion_emitters=false")
    if "split" not in OFF:
        FLAGS.append("--xla_cpu_parallel_codegen_split_count=1")
os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])

import jax

if "collectgc" not in OFF:
    gc.disable()
if "trace" not in OFF:
    jax.config.update("jax_traceback_in_locations_limit", 0)


if "freeze" not in OFF:

    @pytest.fixture(autouse=True)
    def programs_hold_no_garbage():
        yield
        gc.freeze()


def pytest_collection_finish():
    if "collectgc" not in OFF:
        gc.freeze()
        gc.enable()


if "frame" not in OFF:

    def pytest_runtest_protocol(item, nextitem):
        runner = item.config.pluginmanager.get_plugin("runner")
        return above_a_large_frame(runner.pytest_runtest_protocol, item, nextitem)


def above_a_large_frame(function, *arguments):
    return function(*arguments)


above_a_large_frame.__code__ = above_a_large_frame.__code__.replace(co_stacksize=1_100_000)
