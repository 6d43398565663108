"""YOLOv8 of mmyolo 0.6.0, and ultralytics 8.4.190; see tests/golden/onestage."""

import numpy as np
import pytest

from cases import few
from golden.replay_onestage import CASES, replay

# Without `--all` one case of each kind.
SHORT = ("yolov8_conflict", "ultra_v8_small", "ultra_e2e_base")
COUNTS = {"yolov8": 9, "ultra": 12}
ALL = [name for kind in COUNTS for name in CASES[kind]]


def test_all_files_are_here():
    assert {kind: len(CASES[kind]) for kind in COUNTS} == COUNTS


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(ALL, SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.long
@pytest.mark.parametrize("name", ALL)
def test_float32(name):
    replay(name, np.float32, "plausible")
