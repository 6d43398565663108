"""The criteria of RT-DETR, D-FINE, DEIM and RF-DETR: their own numbers, whatever padding holds."""

import numpy as np
import pytest

from cases import few
from golden.replay_queries import CASES, DIFFERENT, KINDS, Case, replay

EVERY = [name for names in CASES.values() for name in names]
# Without `--all`.
SHORT = ("rtdetr_share",)


def test_all_files_are_here():
    counts = {kind: len(names) for kind, names in CASES.items()}
    assert counts == {"rtdetr": 9, "dfine": 12, "deim": 5, "rfdetr": 12}
    assert set(DIFFERENT) < set(EVERY)
    assert {Case(name, np.float64).kind for name in EVERY} == KINDS.keys()


@pytest.mark.parametrize("name", few(EVERY, SHORT))
def test_float64(name, x64):
    replay(name, np.float64)


@pytest.mark.long
@pytest.mark.parametrize("name", EVERY)
def test_float32(name):
    replay(name, np.float32, "plausible")


@pytest.mark.long
@pytest.mark.parametrize("name", ["rtdetr_base", "dfine_uniontie", "deim_base", "rfdetr_base"])
def test_the_matching_may_be_given(name, x64):
    replay(name, np.float64, given=True)
