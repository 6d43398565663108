"""Scores, labels and comparisons for the tests of the losses of class scores."""

import jax
import numpy as np

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 3, (16, 5)).astype(np.float32)
OTHER = RNG.normal(0, 3, (16, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, 16).astype(np.int32)
ONE_HOT = np.eye(5, dtype=np.float32)[LABEL]
BINARY = (RNG.random((16, 5)) < 0.4).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(5), 16).astype(np.float32)
CLASS_WEIGHT = np.array([0.5, 1, 2, 0.25, 1.5], np.float32)
MAPS = RNG.normal(0, 3, (3, 5, 4, 2)).astype(np.float32)
REGIONS = RNG.integers(0, 5, (3, 4, 2)).astype(np.int32)
EXTREME = np.array([[-1e4, -100, -17, -1e-3, 0, 17, 1e4]], np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def log_softmax(x, axis=1):
    """In NumPy and float64."""
    x = x.astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def miss(x, t):
    """What sigmoid(x) lacks of the target t: 1 - p for positives, p for negatives."""
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    return t * (1 - p) + (1 - t) * p


def assert_derivative(loss, formula, x, step=1e-6):
    """The gradient by `x` is the central difference of a NumPy formula, or of the loss itself."""
    direction = np.random.default_rng(1).normal(size=x.shape)
    ahead, behind = (formula(x + sign * step * direction).sum() for sign in (1, -1))
    derivative = (jax.grad(lambda x: loss(x).sum())(x) * direction).sum()
    close(derivative, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def assert_derivatives_by_pred_and_options(cls, pred, target, numbers, config):
    """Compares the gradients with finite differences, and a sweep of `poly_epsilon` by vmap.

    Options that may be None can be traced as well as those that are always numbers.

    Args:
      numbers: Options that are numbers, `poly_epsilon` among them; the loss is differentiated by
        each.
      config: The other options.
    """
    pred = pred.astype(np.float64)
    target = target.astype(np.float64) if target.dtype == np.float32 else target

    @jax.jit
    def loss(pred, numbers):
        return cls(**config, **numbers)(pred, target)

    assert_derivative(lambda x: loss(x, numbers), lambda x: np.asarray(loss(x, numbers)), pred)
    derivatives = jax.jit(jax.grad(loss, argnums=1))(pred, numbers)
    for key, value in numbers.items():
        ahead, behind = (loss(pred, {**numbers, key: value + d}) for d in (1e-6, -1e-6))
        close(derivatives[key], (ahead - behind) / 2e-6, 1e-6, 1e-8)
    sweep = jax.vmap(lambda e: loss(pred, {**numbers, "poly_epsilon": e}))(np.array([0.0, 1.0]))
    without = cls(**config, **numbers | {"poly_epsilon": None})
    close(sweep[0], without(pred, target), 1e-12)
