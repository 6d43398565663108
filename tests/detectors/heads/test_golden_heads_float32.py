"""mmdet 3.3.0's heads in float32: losses and gradients near, what is learnt the same."""

import numpy as np
import pytest

from golden.replay_heads import CASES, CASES_AND_PADDING, assert_targets, replay


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "padding"), CASES_AND_PADDING)
def test_float32(name, padding):
    case = CASES[name]
    losses, gradients, targets = replay(case, np.float32, padding)
    for key, value in case.losses.items():
        assert losses[key].dtype == np.float32
        np.testing.assert_allclose(losses[key], value, rtol=1e-5, err_msg=key)
    for part, stored in case.maps("grad").items():
        atol = 2e-5 * max(np.abs(x).max() for x in stored)
        for level, (actual, expected) in enumerate(zip(gradients[part], stored, strict=True)):
            what = f"gradient by {part}[{level}]"
            np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=what)
    assert_targets(case, targets, rtol=1e-5)
