"""mmdet 3.3.0's VFNetHead, YOLOXHead and TOODHead, whatever stands in the padding."""

import numpy as np
import pytest

from cases import few
from golden.replay_onestage import CASES, replay

# Without `--all` one or two cases of each head.
SHORT = ("vfnet_padded", "yolox_params", "tood_init_padded", "tood_tal_padded")
COUNTS = {"vfnet": 9, "yolox": 10, "tood_init": 6, "tood_tal": 11}
ALL = [name for kind in COUNTS for name in CASES[kind]]


def test_all_files_are_here():
    assert {kind: len(CASES[kind]) for kind in COUNTS} == COUNTS


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", few(ALL, SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    replay(name, np.float32, "plausible")
