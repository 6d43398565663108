"""Losses called from many Python threads at once, the first call and the import included."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import chex
import jax
import numpy as np

from cases import CASES, first_state, updated
from visdet_jax import build_loss

THREADS = 16
NAMES = ["FocalLoss", "GIoULoss", "SeesawLoss", "GHMC", "L1Loss", "AssociativeEmbeddingLoss"]


def call(name):
    """A loss of its own, built and called as if nobody else was there."""
    row = CASES[name][0]
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = row.inputs(np.random.default_rng(0))
    keywords = keywords[0] if keywords else {}
    return updated(loss, first_state(loss), pred, target, **keywords)


def test_the_first_calls_come_from_many_threads():
    jax.clear_caches()
    barrier = threading.Barrier(THREADS)

    def together(i):
        barrier.wait()
        names = NAMES[i % 6 :] + NAMES[: i % 6]
        return {name: call(name) for name in names}

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(together, range(THREADS)))
    expected = {name: call(name) for name in NAMES}
    for result in results:
        chex.assert_trees_all_equal(result, expected)


IMPORT = """
import threading
from concurrent.futures import ThreadPoolExecutor

barrier = threading.Barrier(16)

def first(i):
    barrier.wait()
    import visdet_jax
    import numpy as np
    loss = visdet_jax.build_loss(dict(type="FocalLoss", gamma=1.5))
    return float(loss(np.zeros((4, 3), np.float32), np.array([0, 1, 2, 3])))

with ThreadPoolExecutor(16) as pool:
    values = set(pool.map(first, range(16)))
assert len(values) == 1, values
"""


def test_the_first_import_is_in_many_threads():
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
