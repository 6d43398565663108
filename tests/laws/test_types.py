"""What a type checker says of calls: nothing of right ones, and which argument does not exist."""

import re
from pathlib import Path

import pytest
from mypy import api

import visdet_jax

CALLS = """
import jax
from visdet_jax import giou_loss, sigmoid_focal_loss, smooth_l1_loss

pred = target = weight = jax.numpy.zeros((2, 4))

sigmoid_focal_loss(pred, target, weight, gamma=2, alpha=None, reduction="sum")
sigmoid_focal_loss(pred, target, weight=weight, gamma=jax.numpy.ones(()), avg_factor=4)
giou_loss(pred, target, weight, eps=1e-7, reduction="none")
giou_loss(pred, target, weight=weight, avg_factor=jax.numpy.ones(()))
smooth_l1_loss(pred, target, weight, beta=1, reduction="mean", avg_factor=4.0)
value: jax.Array = smooth_l1_loss(pred, target)

sigmoid_focal_loss(pred, target, gama=2)
giou_loss(pred, target, ep=1)
smooth_l1_loss(pred, target, bet=1)
giou_loss(pred, target, reduction="average")
"""


@pytest.mark.long
def test_mypy_knows_the_arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("MYPYPATH", str(Path(visdet_jax.__file__).parents[1]))
    file = tmp_path / "calls.py"
    file.write_text(CALLS)
    options = ["--config-file=", f"--cache-dir={tmp_path}", "--ignore-missing-imports"]
    output, errors, _ = api.run([*options, "--follow-imports=silent", str(file)])
    assert not errors
    said = dict(re.findall(r"calls\.py:(\d+): error: (.*)", output))
    lines = CALLS.splitlines()
    named = {lines[int(number) - 1]: message for number, message in said.items()}
    for call, argument in (
        ("sigmoid_focal_loss(pred, target, gama=2)", '"gama"'),
        ("giou_loss(pred, target, ep=1)", '"ep"'),
        ("smooth_l1_loss(pred, target, bet=1)", '"bet"'),
    ):
        message = named.pop(call, "")
        assert re.search(f"keyword argument {argument}", message), (call, output)
    assert "average" in named.pop('giou_loss(pred, target, reduction="average")', ""), output
    assert not named, output
