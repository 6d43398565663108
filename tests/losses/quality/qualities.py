"""Logits, labels and IoUs for the tests of the losses of a quality, and formulas in NumPy."""

import functools

import jax
import numpy as np

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 2, (6, 3)).astype(np.float32)
LABEL = np.array([0, 3, 2, 1, -1, 2], np.int32)  # 3 and -1 are background
IOU = RNG.uniform(0.1, 0.9, 6).astype(np.float32)
ONE_HOT = (LABEL[:, None] == np.arange(3)).astype(np.float32)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(x, t):
    """Binary cross entropy of logits."""
    return np.logaddexp(0, x) - t * x


def assert_value_and_derivative(loss, formula):
    """Compares the sum of a loss of (LABEL, IOU) with a formula, in float64.

    Args:
      formula: `(logits, held) -> values`, where `held` are the logits at which everything is taken
        that has no gradient. No gradient may flow into the IoU.
    """
    x = PRED.astype(np.float64)
    value, (gradient, gradient_by_iou) = jax.value_and_grad(
        lambda x, iou: loss(x, (LABEL, iou)), argnums=(0, 1)
    )(x, IOU.astype(np.float64))
    np.testing.assert_allclose(value, formula(x, x).sum(), rtol=1e-7)
    ahead, behind = (formula(x + step, x) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(gradient, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
    assert not gradient_by_iou.any()


def assert_pair_is_dense(loss):
    """(label, score) gives what scores of every class give; labels outside are background."""
    dense = ONE_HOT * IOU[:, None]
    pair = jax.value_and_grad(lambda x: loss(x, (LABEL, IOU)))(PRED)
    jax.tree.map(close, pair, jax.value_and_grad(lambda x: loss(x, dense))(PRED))
