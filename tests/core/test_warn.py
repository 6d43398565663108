"""Warnings point at the user's own line, whatever lies between."""

import warnings

import jax
import pytest
from flax import nnx

from visdet_jax import CrossEntropyLoss, build_loss
from visdet_jax.core.warn import warn

CONFIG = {"type": "CrossEntropyLoss", "ignore_index": 255}


def caught_by(call):
    with pytest.warns(UserWarning, match="ignored labels count") as caught:
        call()
    return caught[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: CrossEntropyLoss(ignore_index=255),
        lambda: build_loss(CONFIG),
        lambda: jax.eval_shape(lambda x: [build_loss(CONFIG), x][1], 1.0),
        lambda: nnx.jit(lambda x: [build_loss(CONFIG), x][1])(1.0),
    ],
    ids=["class", "build_loss", "eval_shape", "nnx.jit"],
)
def test_a_warning_names_this_file(call):
    assert caught_by(call).filename == __file__


def test_the_category():
    with pytest.warns(DeprecationWarning, match="old") as caught:
        warn("old", DeprecationWarning)
    assert caught[0].filename == __file__


def test_it_can_be_an_error():
    with warnings.catch_warnings(action="error"), pytest.raises(UserWarning, match="wrong"):
        warn("wrong")
