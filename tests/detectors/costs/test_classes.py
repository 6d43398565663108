"""Match costs of classes and tokens: their formulas pair by pair, padding, ranges, errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.detectors import (
    BinaryFocalLossCost,
    FocalLossCost,
    binary_focal_loss_cost,
    classification_cost,
    focal_loss_cost,
)

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 2, (6, 5)).astype(np.float32)
LABELS = np.array([4, 0, 2, 2], np.int32)
TOKENS = RNG.random((3, 5)).astype(np.float32)
P = 1 / (1 + np.exp(-PRED.astype(float)))


def focal(p, alpha, gamma, eps):
    positive = -alpha * (1 - p) ** gamma * np.log(p + eps)
    return positive, -(1 - alpha) * p**gamma * np.log(1 - p + eps)


SETTINGS = [(0.25, 2.0, 1e-12), (0.6, 1.5, 1e-3), (0.0, 0.0, 0.1), (1.0, 1, 1e-12)]
every_setting = pytest.mark.parametrize(("alpha", "gamma", "eps"), SETTINGS)


def test_minus_the_probability():
    softmax = np.exp(PRED.astype(float))
    softmax /= softmax.sum(1, keepdims=True)
    expected = -softmax[:, LABELS]
    np.testing.assert_allclose(classification_cost(PRED, LABELS), expected, rtol=1e-5)


@every_setting
def test_focal_loss_of_classes(alpha, gamma, eps):
    positive, negative = focal(P, alpha, gamma, eps)
    actual = focal_loss_cost(PRED, LABELS, alpha=alpha, gamma=gamma, eps=eps)
    expected = (positive - negative)[:, LABELS]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@every_setting
@pytest.mark.parametrize("dtype", [np.float32, np.int32, bool])
def test_focal_loss_of_tokens(alpha, gamma, eps, dtype):
    exists = np.array([1, 1, 0, 1, 0])
    positive, negative = focal(P, alpha, gamma, eps)
    expected = [
        [(exists * (positive[q] * t + negative[q] * (1 - t))).sum() for t in TOKENS]
        for q in range(len(PRED))
    ]
    spoilt = np.where(exists, PRED, np.nan)  # The logits of other tokens are not read.
    settings = {"alpha": alpha, "gamma": gamma, "eps": eps}
    actual = binary_focal_loss_cost(spoilt, TOKENS, exists.astype(dtype), **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cost", [classification_cost, focal_loss_cost])
def test_labels_that_are_no_class(cost):
    """A negative label is padding and costs 0; one of C or more makes its column NaN."""
    values = np.asarray(cost(PRED, np.array([2, -1, 5, -100, 300])))
    np.testing.assert_array_equal(values[:, 0], cost(PRED, np.array([2]))[:, 0])
    np.testing.assert_array_equal(values[:, [1, 3]], 0)
    assert np.isnan(values[:, [2, 4]]).all()


@pytest.mark.parametrize("cost", [classification_cost, focal_loss_cost])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_labels_of_every_integer_type_give_what_int32_gives(cost, dtype):
    """With 256 classes too, whose number is 0 in uint8."""
    pred = np.random.default_rng(1).normal(0, 2, (3, 256)).astype(np.float32)
    labels = np.array([0, 100, 127, min(255, np.iinfo(dtype).max)])
    expected = np.asarray(cost(pred, labels.astype(np.int32)))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(cost(pred, labels.astype(dtype)), expected)
    np.testing.assert_array_equal(cost(pred, jnp.asarray(labels.astype(dtype))), expected)


RANGES = [
    ("alpha", -0.1, r"in \[0, 1\]"),
    ("alpha", 1.5, r"in \[0, 1\]"),
    ("gamma", -1.0, "at least 0"),
    ("gamma", float("nan"), "at least 0"),
    ("eps", -1e-3, "at least 0"),
]


@pytest.mark.parametrize(("name", "value", "allowed"), RANGES)
def test_numbers_that_mean_nothing_raise(name, value, allowed):
    message = f"{name} must be {allowed}"
    with pytest.raises(ValueError, match=f"^focal_loss_cost: {message}"):
        focal_loss_cost(PRED, LABELS, **{name: value})
    with pytest.raises(ValueError, match=f"^binary_focal_loss_cost: {message}"):
        binary_focal_loss_cost(PRED, TOKENS, np.ones(5), **{name: value})
    for cls in (FocalLossCost, BinaryFocalLossCost):
        with pytest.raises(ValueError, match=f"^{cls.__name__}: {message}"):
            cls(**{name: value})


@pytest.mark.parametrize("cost", [classification_cost, focal_loss_cost])
def test_errors_of_classes(cost):
    name = cost.__name__
    with pytest.raises(TypeError, match=f"^{name}: target must hold integer class indices, got"):
        cost(PRED, LABELS.astype(np.float32))
    with pytest.raises(ValueError, match=f"^{name}: target must have shape"):
        cost(PRED, LABELS[:, None])
    with pytest.raises(ValueError, match=rf"^{name}: pred must have shape \(Q, C\), got \(5,\)"):
        cost(PRED[0], LABELS)
    with pytest.raises(TypeError, match=f"^{name}: target must be an array, got list"):
        cost(PRED, [1, 2])


def test_errors_of_tokens():
    with pytest.raises(ValueError, match=r"text_token_mask must have shape \(5,\), got \(4,\)"):
        binary_focal_loss_cost(PRED, TOKENS, np.ones(4))
    with pytest.raises(TypeError, match="text_token_mask must be an array, got list"):
        binary_focal_loss_cost(PRED, TOKENS, [1] * 5)
    with pytest.raises(ValueError, match="pred and target must have the same size"):
        binary_focal_loss_cost(PRED, TOKENS[:, :4], np.ones(5))
