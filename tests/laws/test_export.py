"""Every loss and head exported for every platform, with any number of rows, and called again."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax import export

from cases import CASES, ONE_EACH, few, value_of
from head_cases import ROWS as HEADS
from head_cases import boxes_for, outputs_for, total
from visdet_jax import build_loss

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=1e-6)


def exported(function, *arguments):
    """`function` serialised and read again, with a symbolic number of rows in all arguments."""
    (rows,) = export.symbolic_shape("rows")

    def any_rows(x):
        return jax.ShapeDtypeStruct((rows, *np.shape(x)[1:]), np.asarray(x).dtype)

    shapes = jax.tree.map(any_rows, arguments)
    program = export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)
    assert program.platforms == PLATFORMS
    return export.deserialize(program.serialize()).call


def take(n, arguments):
    return jax.tree.map(lambda x: np.asarray(x)[:n], arguments)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "row"), few(ONE_EACH))
def test_losses(name, row):
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = row.inputs(np.random.default_rng(0))
    keywords = keywords[0] if keywords else {}
    weight = None if row.is_metric or row.is_bare else np.linspace(0, 1, len(pred), dtype="f4")

    def value(pred, target, weight, keywords):
        weights = () if weight is None else (weight,)
        return value_of(loss, pred, target, *weights, **keywords)

    function = value if row.is_metric else jax.value_and_grad(value)
    arguments = (pred, target, weight, keywords)
    part = take(3, arguments)
    close(exported(function, *arguments)(*part), function(*part))


HEADS_AS_THEY_ARE = [pytest.param(name, {}, id=name) for name in HEADS]
PLAIN_DISTANCES = pytest.param("YOLOHead", {"reg_max": 1}, id="YOLOHead-distances")


@pytest.mark.parametrize(
    ("name", "changes"), few([*HEADS_AS_THEY_ARE, PLAIN_DISTANCES], ["FCOSHead"])
)
def test_heads(name, changes):
    head = HEADS[name].head(**changes)
    images = (outputs_for(head), *boxes_for((2, 0), 3))
    function = jax.value_and_grad(lambda *arguments: total(head.loss(*arguments)))
    call = exported(function, *images)
    part = take(1, images)
    close(call(*part), function(*part))


@pytest.mark.parametrize("name", few(["GHMC", "EQLV2Loss", "SeesawLoss"]))
def test_states_are_arguments_of_an_export(name):
    row = CASES[name][-1]
    loss = build_loss({"type": name, **row.config})
    pred, target = row.inputs(np.random.default_rng(0))
    program = export.export(jax.jit(loss.update), platforms=PLATFORMS)(loss.init(), pred, target)
    call = export.deserialize(program.serialize()).call
    close(call(loss.init(), pred, target), loss.update(loss.init(), pred, target))


def test_targets_and_detections_are_results_of_an_export():
    head = HEADS["FCOSHead"].head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((2, 0), 3)
    close(exported(head.decode, outputs)(outputs), head.decode(outputs))
    call = exported(head.targets, outputs, boxes, labels)
    close(call(outputs, boxes, labels), head.targets(outputs, boxes, labels))
