"""Sums over entries of each with each."""

import jax
import numpy as np

from visdet_jax.detectors.costs._pairwise import flatten_entries, pairwise_product, pairwise_sum

RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=(rows, 6)).astype(np.float32) for rows in (3, 4))


def test_a_product_of_each_with_each():
    np.testing.assert_allclose(pairwise_product(A, B), A @ B.T, rtol=1e-5)


def test_accelerators_are_asked_for_all_digits():
    """Without it they round the factors to bfloat16 or TF32; a CPU makes no difference."""
    program = jax.jit(pairwise_product).lower(A, B).as_text()
    assert "precision = [HIGHEST, HIGHEST]" in program


def test_a_sum_of_two_sides():
    target = RNG.random((4, 6)).astype(np.float32)
    expected = [[(a * t + (a + 1) * (1 - t)).sum() for t in target] for a in A]
    np.testing.assert_allclose(pairwise_sum(A, A + 1, target), expected, rtol=1e-4)


def test_flatten_entries():
    pred, target = flatten_entries(np.ones((2, 1, 3, 4), np.float16), np.zeros((5, 3, 4), bool))
    assert (pred.shape, target.shape) == ((2, 12), (5, 12))
    assert pred.dtype == target.dtype == np.float32
    empty, _ = flatten_entries(np.ones((0, 3, 4), np.float32), np.zeros((5, 3, 4)))
    assert empty.shape == (0, 12)
