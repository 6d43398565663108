"""mmdet 3.3.0's two-stage heads, whatever stands in the padding; see tests/golden/twostage."""

import numpy as np
import pytest

from golden.replay_twostage import CASES, REPLAYS, replay

# Without `--all` one case of each kind.
SHORT = ("rpn_focal", "prop_base", "mask_base", "pred_base")


def test_all_files_are_here():
    kinds = [name.split("_")[0] for name in CASES]
    counts = {"rpn": 17, "prop": 8, "roi": 24, "mask": 7, "cascade": 9, "pred": 6}
    assert {kind: kinds.count(kind) for kind in REPLAYS} == counts


def params(short):
    return [pytest.param(x, marks=() if x in short else pytest.mark.long) for x in CASES]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", params(SHORT))
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.parametrize("name", params(("roi_base",)))
def test_float32(name):
    replay(name, np.float32, "garbage")
