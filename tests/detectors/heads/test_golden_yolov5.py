"""mmyolo 0.6.0's YOLOv5Head, whatever stands in the padding; see tests/golden/onestage."""

import numpy as np
import pytest

from golden.replay_yolov5 import CASES, replay


def test_all_files_are_here():
    assert len(CASES) == 3


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", CASES)
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    replay(name, np.float32, "plausible")
