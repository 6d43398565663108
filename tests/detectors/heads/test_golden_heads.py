"""mmdet 3.3.0's heads in float64, whatever stands in the ground truth's padding."""

import numpy as np
import pytest

from golden.replay_heads import CASES, CASES_AND_PADDING, assert_targets, replay


def test_all_files_are_here():
    kinds = [case.config["head"] for case in CASES.values()]
    counts = {"RetinaHead": 6, "FCOSHead": 8, "ATSSHead": 6, "GFLHead": 7}
    assert {kind: kinds.count(kind) for kind in kinds} == counts


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "padding"), CASES_AND_PADDING)
def test_float64(name, padding, x64):
    case = CASES[name]
    losses, gradients, targets = replay(case, np.float64, padding)
    assert losses.keys() == case.losses.keys()
    for key, value in case.losses.items():
        assert losses[key].dtype == np.float64
        np.testing.assert_allclose(losses[key], value, rtol=1e-9, err_msg=key)
    statistics = case.gradient_statistics
    for part, stored in case.maps("grad").items():
        for level, (actual, expected) in enumerate(zip(gradients[part], stored, strict=True)):
            what = f"gradient by {part}[{level}]"
            atol = 1e-12 * np.abs(expected).max()  # Where terms cancel, rounding is left.
            np.testing.assert_allclose(actual, expected, 2e-6, atol, err_msg=what)
            moments = actual.sum(), np.abs(actual).sum(), (actual**2).sum()
            atol = 1e-9 * moments[1]
            np.testing.assert_allclose(moments, statistics[part][level], 1e-9, atol, err_msg=what)
    assert_targets(case, targets, rtol=1e-12)
