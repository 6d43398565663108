"""Batches spread over devices or over time, and what they must give: the numbers of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cases import CASES, ROWS
from visdet_jax import build_loss, reduce_mean

DEVICES = ROWS
# Rows of these losses depend on the other rows: within shard_map they would see their own device's
# only. Under jit over sharded arrays they see all.
WHOLE_BATCH = {
    "DecoupledDistillationFocalLoss": "matched rows, counted over axis_name: its own tests",
    "TripletLoss": "the furthest and the nearest of the batch",
    "MarginL2Loss": "negatives are mined by the number of positives",
    "L2Loss": "the mean is over the entries that mining leaves",
    "SeesawLoss": "statistics, merged by axis_name: tests/laws/test_state.py",
    "EQLV2Loss": "statistics, merged by axis_name: tests/laws/test_state.py",
    "GHMC": "statistics, merged by axis_name: tests/laws/test_state.py",
    "GHMR": "statistics, merged by axis_name: tests/laws/test_state.py",
    "WIoULoss": "statistics, merged by axis_name: tests/laws/test_state.py",
}
EVERY = [name for name, (row, *_) in CASES.items() if not row.is_metric and not row.is_bare]
ROW_BY_ROW = [name for name in EVERY if name not in WHOLE_BATCH]


def batch_for(name):
    """The loss, and a batch whose rows count differently: some devices have nothing."""
    row = CASES[name][0]
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = row.inputs(np.random.default_rng(0))
    weight = np.array([1, 0, 2, 0, 0, 0.5, 1, 0], np.float32)
    return loss, (pred, target, weight, keywords[0] if keywords else {})


def value_and_gradient(loss, batch, normaliser, wrap=lambda value: value):
    pred, target, weight, keywords = batch

    def value(pred):
        options = {"avg_factor": normaliser(weight), **keywords}
        parts = loss.update(loss.init(), pred, target, weight, **options)[0]
        return sum(jax.tree.leaves(parts))

    return jax.value_and_grad(wrap(value))(pred)


def positives(weight, axis_name=None):
    """The mean over the devices of the number of rows that count: mmdet's reduce_mean."""
    return reduce_mean((weight > 0).sum(dtype=jnp.float32), axis_name)


@functools.cache
def on_one_device(name):
    loss, batch = batch_for(name)
    return jax.device_get(jax.jit(lambda b: value_and_gradient(loss, b, positives))(batch))
