"""Triplet loss against a slow loop, of one class, of no neighbours, and its precision."""

import jax
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


def test_it_equals_a_loop():
    for margin in (0.0, 0.3, 4.0):
        expected = slow_triplet(FEATURES, CLASSES, margin)
        close(v.triplet_loss(FEATURES, CLASSES, margin=margin, reduction="none"), expected)
        close(v.triplet_loss(FEATURES, CLASSES, margin=margin), expected.mean())
    close(
        v.build_loss({"type": "TripletLoss"})(FEATURES, CLASSES),
        slow_triplet(FEATURES, CLASSES).mean(),
    )


def test_it_is_0_where_classes_lie_apart():
    pred = FEATURES + 100 * CLASSES[:, None].astype(np.float32)
    value, gradient = jax.value_and_grad(v.triplet_loss)(pred, CLASSES)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_of_one_class_it_is_0(rows):
    value, gradient = jax.value_and_grad(v.triplet_loss)(FEATURES[:rows], CLASSES[:rows] * 0)
    assert value == 0
    assert not gradient.any()


def test_of_classes_of_one_row_and_of_equal_embeddings_it_is_finite():
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


def test_rows_of_weight_0_are_nobodys_neighbours():
    kept = np.arange(14) % 3 != 0
    pred = np.where(kept[:, None], FEATURES, np.nan).astype(np.float32)
    values = v.triplet_loss(pred, CLASSES, kept.astype(np.float32), reduction="none")
    close(values[kept], slow_triplet(FEATURES[kept], CLASSES[kept]))
    assert not np.asarray(values)[~kept].any()


def test_there_is_no_other_form():
    with pytest.raises(ValueError, match="TripletLoss: hard_mining must be True"):
        v.build_loss({"type": "TripletLoss", "hard_mining": False})


def test_classes_of_every_integer_type():
    """Among them some beyond int32's range, which must stay different classes."""
    expected = v.triplet_loss(FEATURES, CLASSES)
    for dtype in (np.int8, np.int16, np.uint32):
        assert v.triplet_loss(FEATURES, CLASSES.astype(dtype)) == expected
    far = (CLASSES.astype(np.int64) + 2**31 + 7).astype(np.uint32)
    assert v.triplet_loss(FEATURES, far) == expected


def test_distances_are_of_the_highest_precision():
    """Accelerators would round the product to bfloat16 or TF32."""
    program = str(jax.make_jaxpr(v.triplet_loss)(FEATURES, CLASSES))
    assert program.count("dot_general") == program.count("Precision.HIGHEST, Precision.HIGHEST")


@pytest.mark.parametrize("margin", [np.nan, np.inf])
def test_the_margin_is_finite(margin):
    with pytest.raises(ValueError, match="TripletLoss: margin must be finite"):
        v.TripletLoss(margin=margin)
    with pytest.raises(ValueError, match="triplet_loss: margin must be finite"):
        v.triplet_loss(FEATURES, CLASSES, margin=margin)
