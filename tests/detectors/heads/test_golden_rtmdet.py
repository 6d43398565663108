"""RTMDet's heads: mmdet 3.3.0's and mmyolo 0.6.0's numbers, whatever stands in the padding."""

import numpy as np
import pytest

from cases import few
from golden.replay_onestage import CASES, replay

# Without `--all`.
SHORT = ("rtmdetins_base",)
# mmdet gives positives the weights of other points there. In `rtmdetins_padded_fixed` it does not.
KERNELS_OF_OTHERS = "rtmdetins_padded"
COUNTS = {"rtmdet": 14, "rtmdetins": 10, "mmyolo_rtmdet": 3}
ALL = [name for kind in COUNTS for name in CASES[kind]]


def test_all_files_are_here():
    assert {kind: len(CASES[kind]) for kind in COUNTS} == COUNTS


def without(name):
    return ("loss_mask",) if name == KERNELS_OF_OTHERS else ()


@pytest.mark.parametrize("name", few(ALL, SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan", without(name))


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    replay(name, np.float32, "plausible", without(name))
