"""mmdet 3.3.0's VFNetHead, YOLOXHead and TOODHead, whatever stands in the padding."""

import numpy as np
import pytest

from cases import few
from golden.replay_yolox import CASES, replay

# Without `--all` one or two cases of each head.
SHORT = ("vfnet_padded", "yolox_params", "tood_init_padded", "tood_tal_padded")
ALL = [name for cases in CASES.values() for name in cases]


def test_all_files_are_here():
    counts = {"vfnet": 9, "yolox": 10, "tood_init": 6, "tood_tal": 11}
    assert {kind: len(cases) for kind, cases in CASES.items()} == counts


@pytest.mark.parametrize("name", few(ALL, SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.parametrize("name", few(ALL, ("vfnet_fcos",)))
def test_float32(name):
    replay(name, np.float32, "plausible")
