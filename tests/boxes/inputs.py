"""Boxes for tests, and what is asked of every function that computes with boxes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

# Boxes without area, an inverted one, a huge one and a tiny one.
EXTREME_BOXES = np.array(
    [
        [0, 0, 0, 0],
        [5, 5, 5, 5],
        [5, 5, 5, 9],
        [9, 9, 1, 1],
        [0, 3, 1, 1],
        [-1e4, -1e4, 1e4, 1e4],
        [3, 3, 3 + 1e-4, 3 + 1e-4],
    ],
    np.float32,
)


def random_boxes(seed, *shape):
    """Boxes (*shape, 4) as x1, y1, x2, y2."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (*shape, 2)), rng.uniform(1, 50, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def check_half_floats(function, *columns):
    """Half floats are computed in float32, and the gradients come back in the inputs' type.

    Each argument of the function has one of the numbers of `columns`.
    """
    half = [jnp.asarray(random_boxes(i, 6)[:, :n], jnp.bfloat16) for i, n in enumerate(columns)]
    out = function(*half)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, function(*[x.astype(jnp.float32) for x in half]))
    gradients = jax.jit(jax.grad(lambda args: function(*args).sum()))(half)
    assert [x.dtype for x in gradients] == [jnp.bfloat16] * len(half)


def check_finite(function, *columns):
    """Values and gradients are finite for every pair of `EXTREME_BOXES`."""
    pairs = itertools.product(EXTREME_BOXES, repeat=2)
    both = (np.stack(boxes) for boxes in zip(*pairs, strict=True))
    args = [boxes[:, :n] for boxes, n in zip(both, columns, strict=False)]
    value, gradients = jax.jit(jax.value_and_grad(lambda args: function(*args).sum()))(args)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in gradients)
