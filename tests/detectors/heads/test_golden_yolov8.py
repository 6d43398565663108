"""YOLOv8 of mmyolo 0.6.0, and ultralytics 8.4.190; see tests/golden/onestage."""

import numpy as np
import pytest

from golden.replay_yolov8 import ULTRALYTICS, YOLOV8, replay

# Without `--all` one case of each kind.
SHORT = ("yolov8_conflict", "ultra_v8_small", "ultra_e2e_base")


def test_all_files_are_here():
    assert (len(YOLOV8), len(ULTRALYTICS)) == (9, 12)


def params(short):
    every = (*YOLOV8, *ULTRALYTICS)
    return [pytest.param(x, marks=() if x in short else pytest.mark.long) for x in every]


@pytest.mark.parametrize("name", params(SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.parametrize("name", params(("yolov8_base",)))
def test_float32(name):
    replay(name, np.float32, "garbage")
