"""Wasserstein loss."""

import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, close, gradient, values


def test_by_hand():
    pred, target = np.float32([[0, 0, 10, 10]]), np.float32([[3, 4, 21, 24]])
    w2 = (12 - 5) ** 2 + (14 - 5) ** 2 + (8**2 + 10**2) / 4
    expected = {
        "w2": w2,
        "sqrt": w2**0.5,
        "log": np.log(1 + w2),
        "norm_sqrt": 1 - 1 / (3 + w2**0.5),
        "exp": 1 - np.exp(-(w2**0.5) / 20),
    }
    for mode, value in expected.items():
        config = {"mode": mode, "gamma": 3.0, "constant": 20.0}
        close(values(v.wasserstein_loss, pred, target, **config), [value])
        equal = gradient(v.wasserstein_loss, TARGET, TARGET, eps=0.0, **config)
        np.testing.assert_array_equal(equal, 0)


def test_another_mode_raises():
    with pytest.raises(ValueError, match="WassersteinLoss: mode must be one of"):
        v.build_loss({"type": "WassersteinLoss", "mode": "linear"})
    with pytest.raises(ValueError, match="wasserstein_loss: mode must be one of"):
        v.wasserstein_loss(PRED, TARGET, mode="linear")
