"""Associative embedding against a slow loop, of lists and arrays, and what is padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


MATCH = [
    [[[0, 1], [2, 3]], [[4, 4], [1, 0]], [[3, 2], [0, 0]]],
    [],
    [[[1, 1], [4, 3]]],
]
FIRST, SECOND = RNG.normal(0, 1, (2, 3, 1, 5, 4)).astype(np.float32)


def arrays_of(match, slots):
    cells = np.full((len(match), slots, 2, 2), 10**6, np.int32)
    mask = np.zeros((len(match), slots), bool)
    for i, objects in enumerate(match):
        mask[i, : len(objects)] = True
        if objects:
            cells[i, : len(objects)] = np.array(objects)[..., ::-1] % 4
    return cells, mask


def slow_associative_embedding(first, second, match):
    pull = push = 0.0
    for a, b, objects in zip(first, second, match, strict=True):
        pairs = [(a[0, y1, x1], b[0, y2, x2]) for (y1, x1), (y2, x2) in objects]
        middles = [(x + y) / 2 for x, y in pairs]
        n = len(pairs)
        for (x, y), m in zip(pairs, middles, strict=True):
            pull += ((x - m) ** 2 + (y - m) ** 2) / n
        for j in range(n):
            for k in range(n):
                if j != k:
                    push += max(1 - abs(middles[j] - middles[k]), 0) / (n * (n - 1))
    return pull, push


def test_it_equals_a_loop():
    match = [[[(c[0], c[1] % 4) for c in corners] for corners in image] for image in MATCH]
    expected = slow_associative_embedding(FIRST, SECOND, match)
    pull, push = v.associative_embedding_loss(
        FIRST, SECOND, match, pull_weight=1.0, push_weight=1.0
    )
    close([pull, push], expected)
    built = v.build_loss(
        {"type": "AssociativeEmbeddingLoss", "pull_weight": 2.0, "push_weight": 0.5}
    )
    close(built(FIRST, SECOND, match), [2 * expected[0], expected[1] / 2])


def test_a_list_gives_what_padded_arrays_give():
    loss = jax.jit(v.associative_embedding_loss)
    cells, mask = arrays_of(MATCH, slots=7)
    listed = [cells[i, mask[i]].tolist() for i in range(3)]
    expected = v.associative_embedding_loss(FIRST, SECOND, listed)
    close(loss(FIRST, SECOND, cells, mask), expected)
    whole = v.associative_embedding_loss(FIRST[2:], SECOND[2:], cells[2:, :1])
    close(whole, v.associative_embedding_loss(FIRST[2:], SECOND[2:], listed[2:]))
    gradient = jax.grad(lambda p: sum(loss(p, SECOND, cells, mask)))(FIRST)
    assert not gradient[1].any()


def test_padding_is_not_read():
    """An image without objects may hold NaN, and so may every cell that no object names."""
    cells, mask = arrays_of(MATCH, slots=5)
    expected = v.associative_embedding_loss(FIRST, SECOND, cells, mask)
    read = np.zeros((2, *FIRST.shape), bool)
    for i, k in zip(*np.nonzero(mask), strict=True):
        for part in (0, 1):
            read[part, i, 0, cells[i, k, part, 0], cells[i, k, part, 1]] = True
    first, second = np.where(read, np.stack([FIRST, SECOND]), np.nan).astype(np.float32)
    close(v.associative_embedding_loss(first, second, cells, mask), expected)
    gradient = jax.grad(lambda p: sum(v.associative_embedding_loss(p, second, cells, mask)))(first)
    assert np.isfinite(gradient).all()


def test_a_cell_outside_is_nan():
    for cell in ([5, 0], [0, 4], [-1, 0]):
        pull, _ = v.associative_embedding_loss(FIRST[:1], SECOND[:1], [[[cell, [0, 0]]]])
        assert np.isnan(pull)


def test_of_nothing_it_is_0():
    for match in ([[], [], []], np.zeros((3, 0, 2, 2), np.int32)):
        close(v.associative_embedding_loss(FIRST, SECOND, match), [0, 0], atol=0)
    close(v.associative_embedding_loss(FIRST[:0], SECOND[:0], []), [0, 0], atol=0)


def test_errors():
    cells, mask = arrays_of(MATCH, slots=3)
    loss = v.associative_embedding_loss
    for arguments, error in (
        ((FIRST, SECOND[:, :, :4], cells, mask), ValueError),
        ((FIRST[:, 0], SECOND[:, 0], cells, mask), ValueError),
        ((FIRST, SECOND, cells[:2], mask), ValueError),
        ((FIRST, SECOND, cells[..., 0], mask), ValueError),
        ((FIRST, SECOND, cells.astype(np.float32), mask), TypeError),
        ((FIRST, SECOND, cells, mask[:, :2]), ValueError),
        ((FIRST, SECOND, MATCH, mask), ValueError),
    ):
        with pytest.raises(error, match="associative_embedding_loss"):
            loss(*arguments)
    with pytest.raises(TypeError, match="associative_embedding_loss: a list of matches"):
        jax.jit(loss)(FIRST, SECOND, MATCH)
    assert jnp.isfinite(loss(FIRST[2:], SECOND[2:], [MATCH[2]])[0])


@pytest.mark.long
def test_cells_of_every_integer_type():
    """int8 holds the cells of a 100 × 100 map, but not their places in it."""
    first, second = RNG.normal(size=(2, 1, 1, 100, 100)).astype(np.float32)
    cells = RNG.integers(0, 100, (1, 5, 2, 2)).astype(np.int32)
    expected = v.associative_embedding_loss(first, second, cells)
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        assert v.associative_embedding_loss(first, second, cells.astype(dtype)) == expected
        loss = v.checked(v.AssociativeEmbeddingLoss())
        assert loss(first, second, cells.astype(dtype)) == expected


@pytest.mark.parametrize("key", ["pull_weight", "push_weight"])
def test_the_factors_are_finite(key):
    with pytest.raises(ValueError, match=f"AssociativeEmbeddingLoss: {key} must be finite"):
        v.AssociativeEmbeddingLoss(**{key: np.inf})
    with pytest.raises(ValueError, match=f"associative_embedding_loss: {key} must be finite"):
        v.associative_embedding_loss(FIRST, SECOND, MATCH, **{key: np.inf})
