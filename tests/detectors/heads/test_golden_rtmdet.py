"""RTMDet's heads: mmdet 3.3.0's and mmyolo 0.6.0's numbers, whatever stands in the padding."""

import numpy as np
import pytest

from cases import few
from golden.replay_onestage import CASES, replay

# Without `--all` one or two cases of each kind.
SHORT = ("rtmdet_padded", "rtmdetins_base", "rtmdetins_padded_fixed", "mmyolo_rtmdet_base")
# mmdet gives positives the weights of other points there. In `rtmdetins_padded_fixed` it does not.
KERNELS_OF_OTHERS = "rtmdetins_padded"


def test_all_files_are_here():
    kinds = [name.rpartition("_rtmdet")[0] or name.split("_")[0] for name in CASES]
    counts = {"rtmdet": 14, "rtmdetins": 10, "mmyolo": 3}
    assert {kind: kinds.count(kind) for kind in counts} == counts


def without(name):
    return ("loss_mask",) if name == KERNELS_OF_OTHERS else ()


@pytest.mark.parametrize("name", few(CASES, SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan", without(name))


@pytest.mark.parametrize("name", few(CASES, ("rtmdetins_many",)))
def test_float32(name):
    replay(name, np.float32, "garbage", without(name))
