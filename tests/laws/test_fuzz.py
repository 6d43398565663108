"""Random inputs, extreme and degenerate ones included: nothing crashes, all stays finite.

With `--all` 2 000 examples, with one combination of rows, types and weight for each loss; without
it, those of a few losses. With `--fuzz N` it is N examples with all combinations, drawn anew each
time:

    python -m pytest tests/laws/test_fuzz.py --fuzz 100000
"""

import functools
import itertools
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cases import ROWS, WITH_BARE, value_of
from visdet_jax import build_loss
from visdet_jax.core.rules import BOXES, FINITE, LOGITS, ROTATED_BOXES, UNIT

# What is tried without `--all`: labels, boxes, elements.
FEW = ("FocalLoss-0", "GIoULoss-0", "SmoothL1Loss-0")


class Combination(NamedTuple):
    """What a program is compiled for."""

    rows: int
    dtype: type
    weighted: bool
    labels: type


LABELS = (np.int32, np.uint8, np.int8, np.uint16, np.int16)
COMBINATIONS = [
    Combination(*values, LABELS[i % len(LABELS)])
    for i, values in enumerate(
        itertools.product((ROWS, 1, 3, 0), (jnp.float32, jnp.bfloat16, jnp.float16), (True, False))
    )
]


def numbers(most, *special):
    """Finite numbers up to `most`, and special ones more often than they come by themselves."""
    special = [x for x in (0.0, 1.0, 1e-7, 1e-30, most, *special) if abs(x) <= most]
    special = [float(np.float32(x)) for x in (*special, *(-x for x in special))]
    return st.sampled_from(special) | st.floats(-most, most, width=32)


# By what the loss says of its arguments; other floats are as tests/cases.py draws them.
VALUES = {
    LOGITS: numbers(1e4, 17.0, 88.0, 104.0),
    FINITE: numbers(1e4, 1e-3, 0.5),
    BOXES: numbers(1e4, 0.5, 2.0, 1e-3),
    ROTATED_BOXES: numbers(1e4, 0.5, 2.0, 1e-3),
    UNIT: st.sampled_from([0.0, 1.0, 0.5, float(np.float32(1e-30)), float(1 - np.float32(6e-8))])
    | st.floats(0, 1, width=32),
}
WEIGHTS = st.sampled_from([0.0, 1.0, 0.5, 3.0, float(np.float32(1e-6))])


@functools.cache
def compiled(loss, weighted):
    """Value and gradients by pred and, where there is one, weight."""

    @jax.jit
    def run(pred, target, keywords, weight, avg_factor):
        def total(pred, weight):
            reduce = () if weight is None else (weight, avg_factor)
            return value_of(loss, pred, target, *reduce, **keywords)

        argnums = (0, 1) if weighted else 0
        return jax.value_and_grad(total, argnums)(pred, weight)

    return run


def draw_inputs(data, loss, row, combination):
    """(pred, target, keywords, weight, avg_factor) that the loss must cope with."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))
    pred, target, *keywords = row.inputs(rng)
    keywords = keywords[0] if keywords else {}
    rules = {id(x): rule for _, x, rule, _ in loss.expects(pred, target, **keywords)}
    alike = rules.get(id(pred)) is rules.get(id(target))

    def fuzzed(x):
        rule = rules.get(id(x))
        if rule in VALUES:
            return data.draw(hnp.arrays(np.float32, x.shape, elements=VALUES[rule]))
        if rule is not None and rule.ignored and np.issubdtype(x.dtype, np.integer):
            x = np.where(data.draw(hnp.arrays(bool, x.shape)), -1, x)
        return x

    pred, target, keywords = jax.tree.map(fuzzed, (pred, target, keywords))
    if alike and data.draw(st.booleans(), label="some rows equal"):
        equal = data.draw(hnp.arrays(bool, ROWS)).reshape(-1, *[1] * (pred.ndim - 1))
        target = np.where(equal, pred, target)

    def cast(x):
        x = np.asarray(x)[: combination.rows]
        if x.dtype == np.float32:
            return jnp.asarray(x.astype(combination.dtype))
        if np.issubdtype(x.dtype, np.integer):
            least = np.iinfo(combination.labels).min
            return jnp.asarray(np.maximum(x, least).astype(combination.labels))
        return jnp.asarray(x)

    arrays = jax.tree.map(cast, (pred, target, keywords))
    if not combination.weighted or row.is_bare:
        return *arrays, None, None
    weight = data.draw(hnp.arrays(np.float32, combination.rows, elements=WEIGHTS), label="weight")
    # A gradient of float16 ends at 65504: no division by next to nothing there.
    factors = [1.0, 7.5] if combination.dtype == jnp.float16 else [0.0, 1e-3, 1.0, 7.5]
    avg_factor = data.draw(st.sampled_from(factors), label="avg_factor")
    return *arrays, jnp.asarray(weight), np.float32(avg_factor)


def all_finite(tree):
    return all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(tree))


def beyond_float16(gradients, exact):
    """Whether the infinite entries of float16 gradients are those that the type cannot hold."""
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True)
    return all((np.isfinite(x) | (np.abs(y) > 65000)).all() for x, y in pairs)


@pytest.mark.parametrize(
    "index",
    [
        pytest.param(i, id=param.id, marks=() if param.id in FEW else pytest.mark.long)
        for i, param in enumerate(WITH_BARE)
    ],
)
def test_finite_inputs_give_finite_values_and_gradients(index, request):
    name, row = WITH_BARE[index].values
    loss = build_loss({"type": name, **row.config})
    asked = request.config.getoption("--fuzz")
    # One of all, another for the next loss.
    combinations = COMBINATIONS if asked else [COMBINATIONS[5 * index % len(COMBINATIONS)]]

    @settings(
        max_examples=-(-(asked or 2000) // len(WITH_BARE)),
        deadline=None,
        derandomize=not asked,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(st.data())
    def fuzz(data):
        combination = data.draw(st.sampled_from(combinations), label="combination")
        *arguments, weight, avg_factor = draw_inputs(data, loss, row, combination)
        run = compiled(loss, weight is not None)
        value, gradients = run(*arguments, weight, avg_factor)
        assert all_finite(value)
        if combination.dtype != jnp.float16:
            assert all_finite(gradients)
        elif not all_finite(gradients):
            wide = jax.tree.map(
                lambda x: x.astype(jnp.float32) if x.dtype == jnp.float16 else x, arguments
            )
            _, exact = run(*wide, weight, avg_factor)
            assert all_finite(exact)
            assert beyond_float16(gradients, exact)

    fuzz()
