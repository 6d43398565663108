"""JAX's own switches for finding faults: none of them complains of a loss or head on valid input.

Rank and dtype promotion are forbidden in every test (conftest.py). NaN in padding, which is never
read, is for `jax_debug_nans` a NaN as any other: such a head is given real boxes there.
"""

import gc

import jax
import numpy as np
import pytest

from cases import CASES, few, value_of
from head_cases import ROWS as HEADS
from head_cases import boxes_for, outputs_for, total
from visdet_jax import build_loss


def without_leaks(function, *arguments):
    """Traced alone. The check collects garbage many times a trace, here of what came since."""
    gc.freeze()
    with jax.checking_leaks():
        jax.eval_shape(function, *arguments)


def without_nans(function, *arguments):
    """Not in one jit: each of the library's own gives its results to the check."""
    with jax.debug_nans(True):
        values = function(*arguments)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(values))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("make", "runs"), [("inputs", without_leaks), ("extremes", without_nans)])
@pytest.mark.parametrize("name", few(CASES))
def test_losses(name, make, runs):
    for row in CASES[name]:
        loss = build_loss({"type": name, **row.config})
        pred, target, *keywords = getattr(row, make)(np.random.default_rng(0))
        keywords = keywords[0] if keywords else {}

        def value(pred, loss=loss, target=target, keywords=keywords):
            return value_of(loss, pred, target, **keywords)

        runs(value if row.is_metric else jax.value_and_grad(value), pred)


@pytest.mark.parametrize("runs", [without_leaks, without_nans])
@pytest.mark.parametrize("name", few(HEADS, ["FCOSHead"]))
def test_heads(name, runs):
    head = HEADS[name].head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((3, 0), 3)
    boxes = np.nan_to_num(boxes)
    runs(jax.value_and_grad(lambda o: total(head.loss(o, boxes, labels))), outputs)
