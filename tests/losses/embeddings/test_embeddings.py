"""Triplet and associative embedding losses against slow loops, and what is padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(0, 2, (14, 6)).astype(np.float32)
CLASSES = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 7, 7, -1, -1], np.int32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def slow_triplet(pred, target, margin=0.3):
    values = []
    for i in range(len(pred)):
        distance = np.linalg.norm(pred[i].astype(np.float64) - pred.astype(np.float64), axis=1)
        distance = np.maximum(distance, 1e-6)
        other = distance[target != target[i]]
        hardest = distance[target == target[i]].max() - other.min() if len(other) else -np.inf
        values.append(max(hardest + margin, 0))
    return np.array(values)


def test_triplet_equals_a_loop():
    for margin in (0.0, 0.3, 4.0):
        expected = slow_triplet(FEATURES, CLASSES, margin)
        close(v.triplet_loss(FEATURES, CLASSES, margin=margin, reduction="none"), expected)
        close(v.triplet_loss(FEATURES, CLASSES, margin=margin), expected.mean())
    close(
        v.build_loss({"type": "TripletLoss"})(FEATURES, CLASSES),
        slow_triplet(FEATURES, CLASSES).mean(),
    )


def test_triplet_is_0_where_classes_lie_apart():
    pred = FEATURES + 100 * CLASSES[:, None].astype(np.float32)
    value, gradient = jax.value_and_grad(v.triplet_loss)(pred, CLASSES)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_triplet_of_one_class_is_0(rows):
    value, gradient = jax.value_and_grad(v.triplet_loss)(FEATURES[:rows], CLASSES[:rows] * 0)
    assert value == 0
    assert not gradient.any()


def test_triplet_of_classes_of_one_and_of_equal_embeddings_is_finite():
    for pred, target in (
        (FEATURES, np.arange(14)),
        (np.ones_like(FEATURES), CLASSES),
        (FEATURES * 1e4, CLASSES),
        (FEATURES * 0, np.arange(14)),
    ):
        value, gradient = jax.value_and_grad(v.triplet_loss)(pred.astype(np.float32), target)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
    close(v.triplet_loss(np.ones_like(FEATURES), CLASSES), 0.3)


def test_triplet_rows_of_weight_0_are_nobodys_neighbours():
    kept = np.arange(14) % 3 != 0
    pred = np.where(kept[:, None], FEATURES, np.nan).astype(np.float32)
    values = v.triplet_loss(pred, CLASSES, kept.astype(np.float32), reduction="none")
    close(values[kept], slow_triplet(FEATURES[kept], CLASSES[kept]))
    assert not np.asarray(values)[~kept].any()


def test_triplet_knows_no_other_form():
    with pytest.raises(ValueError, match="TripletLoss: hard_mining must be True"):
        v.build_loss({"type": "TripletLoss", "hard_mining": False})


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


def test_associative_embedding_equals_a_loop():
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


def test_associative_embedding_of_a_list_is_that_of_padded_arrays():
    loss = jax.jit(v.associative_embedding_loss)
    cells, mask = arrays_of(MATCH, slots=7)
    listed = [cells[i, mask[i]].tolist() for i in range(3)]
    expected = v.associative_embedding_loss(FIRST, SECOND, listed)
    close(loss(FIRST, SECOND, cells, mask), expected)
    whole = v.associative_embedding_loss(FIRST[2:], SECOND[2:], cells[2:, :1])
    close(whole, v.associative_embedding_loss(FIRST[2:], SECOND[2:], listed[2:]))
    gradient = jax.grad(lambda p: sum(loss(p, SECOND, cells, mask)))(FIRST)
    assert not gradient[1].any()


def test_associative_embedding_does_not_read_padding():
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


def test_associative_embedding_of_a_cell_outside_is_nan():
    for cell in ([5, 0], [0, 4], [-1, 0]):
        pull, _ = v.associative_embedding_loss(FIRST[:1], SECOND[:1], [[[cell, [0, 0]]]])
        assert np.isnan(pull)


def test_associative_embedding_of_nothing_is_0():
    for match in ([[], [], []], np.zeros((3, 0, 2, 2), np.int32)):
        close(v.associative_embedding_loss(FIRST, SECOND, match), [0, 0], atol=0)
    close(v.associative_embedding_loss(FIRST[:0], SECOND[:0], []), [0, 0], atol=0)


def test_associative_embedding_says_what_does_not_fit():
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
