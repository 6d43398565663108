"""EQLv2: cross entropy at first, weights and sums of gradients by hand, finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax import EQLV2Loss, EQLV2State, binary_cross_entropy, eqlv2_loss, eqlv2_statistics

RNG = np.random.default_rng(0)
CLASSES = 4
LABELS = np.array([0, 0, 3, 1, 1, 2, 4, 4])
PRED = RNG.normal(0, 2, (len(LABELS), CLASSES + 1)).astype(np.float32)
ONE_HOT = np.eye(CLASSES + 1)[LABELS]
LOSS = EQLV2Loss(num_classes=CLASSES)
RATIOS = np.array([0.1, 0.8, 1.5, 100], np.float32)
STATE = EQLV2State(jnp.ones(CLASSES), jnp.ones(CLASSES), jnp.asarray(RATIOS))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_at_first_it_is_binary_cross_entropy_summed_over_the_classes():
    value, _ = LOSS.update(LOSS.init(), PRED, LABELS)
    expected = binary_cross_entropy(PRED, LABELS, reduction="sum") / len(LABELS)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_weights_by_hand():
    r = np.append(sigmoid(12 * (RATIOS - 0.8)), 1)
    assert r[1] == pytest.approx(0.5)
    weight = np.where(ONE_HOT, 1 + 4 * (1 - r), r)
    bce = np.logaddexp(0, PRED) - ONE_HOT * PRED
    rows = eqlv2_loss(PRED, LABELS, state=STATE, reduction="none")
    np.testing.assert_allclose(rows, (weight * bce).sum(1), rtol=1e-5)


def test_without_gamma_and_alpha_negatives_count_half():
    rows = eqlv2_loss(PRED, LABELS, state=STATE, gamma=0, alpha=0, reduction="none")
    bce = np.logaddexp(0, PRED) - ONE_HOT * PRED
    half = np.where(ONE_HOT, 1, 0.5)
    half[:, -1] = 1
    np.testing.assert_allclose(rows, (half * bce).sum(1), rtol=1e-5)


def test_statistics_are_the_gradients_of_the_loss():
    gradient = jax.grad(lambda x: eqlv2_loss(x, LABELS, state=STATE, reduction="sum"))(PRED)
    size = np.abs(gradient)[:, :-1]
    after = eqlv2_statistics(STATE, PRED, LABELS)
    own = ONE_HOT[:, :-1]
    np.testing.assert_allclose(after.pos_grad, 1 + (size * own).sum(0), rtol=1e-5)
    np.testing.assert_allclose(after.neg_grad, 1 + (size * (1 - own)).sum(0), rtol=1e-5)
    np.testing.assert_allclose(after.pos_neg, after.pos_grad / after.neg_grad, rtol=1e-5)


def test_the_loss_is_at_the_old_statistics():
    value, after = LOSS.update(STATE, PRED, LABELS)
    np.testing.assert_array_equal(value, eqlv2_loss(PRED, LABELS, state=STATE))
    replayed = eqlv2_statistics(STATE, PRED, LABELS)
    np.testing.assert_array_equal(after.pos_neg, replayed.pos_neg)
    assert not np.allclose(value, eqlv2_loss(PRED, LABELS, state=after))


def test_finite_differences(x64):
    pred = PRED.astype(np.float64)
    direction = RNG.normal(size=pred.shape) * 1e-5

    def loss(pred):
        return LOSS.update(STATE, pred, LABELS)[0]

    expected = (loss(pred + direction) - loss(pred - direction)) / 2
    gradient = jax.grad(loss)(pred)
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6)


def test_rows_that_are_no_samples_leave_the_statistics_alone():
    weight = np.array([1, 2, 0, 1, 0, 3, 1, 0], np.float32)
    after = eqlv2_statistics(STATE, PRED, LABELS, weight)
    kept = eqlv2_statistics(STATE, PRED[weight > 0], LABELS[weight > 0])
    np.testing.assert_allclose(after.neg_grad, kept.neg_grad, rtol=1e-6)
    known = np.array([0, 1, 3, 4, 5, 6])
    labels = LABELS.copy()
    labels[[2, 7]] = -1, 9
    after = eqlv2_statistics(STATE, PRED, labels)
    kept = eqlv2_statistics(STATE, PRED[known], LABELS[known])
    np.testing.assert_allclose(after.neg_grad, kept.neg_grad, rtol=1e-6)
    rows = eqlv2_loss(PRED, labels, state=STATE, reduction="none")
    assert rows[2] == 0
    assert np.isnan(rows[7])


def test_the_initial_ratio_outlives_an_empty_batch():
    _, state = LOSS.update(LOSS.init(), PRED[:0], LABELS[:0])
    np.testing.assert_array_equal(state.pos_neg, np.full(CLASSES, 100))


def test_keys_of_mmdet_without_effect():
    config = {"class_weight": (1.0, 2.0), "use_distributed": True, "vis_grad": True}
    other = EQLV2Loss(num_classes=CLASSES, use_sigmoid=False, **config)
    np.testing.assert_array_equal(
        other.update(STATE, PRED, LABELS)[0], LOSS.update(STATE, PRED, LABELS)[0]
    )


def test_activation():
    scores = LOSS.get_activation(PRED)
    p = sigmoid(PRED)
    np.testing.assert_allclose(scores[:, :-1], p[:, :-1] * (1 - p[:, -1:]), rtol=1e-5)
    np.testing.assert_allclose(scores[:, -1], p[:, -1], rtol=1e-6)
    plain = EQLV2Loss(num_classes=CLASSES, test_with_obj=False)
    np.testing.assert_allclose(plain.get_activation(PRED), p, rtol=1e-6)
    assert LOSS.get_channel_num(CLASSES) == CLASSES + 1


def test_channels_are_checked():
    with pytest.raises(ValueError, match=r"eqlv2_loss: pred must have shape \(N, 5\)"):
        LOSS.update(STATE, PRED[:, :-1], LABELS)


def test_labels_of_every_width():
    """uint8 cannot count 300 classes."""
    rng = np.random.default_rng(0)
    pred, labels = rng.normal(size=(4, 300)).astype(np.float32), np.array([0, 44, 127, 100])
    state = EQLV2State(jnp.ones(299), jnp.ones(299), jnp.linspace(0, 2, 299))
    expected = eqlv2_loss(pred, labels, state=state)
    statistics = eqlv2_statistics(state, pred, labels)
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        assert eqlv2_loss(pred, labels.astype(dtype), state=state) == expected
        after = eqlv2_statistics(state, pred, labels.astype(dtype))
        jax.tree.map(np.testing.assert_array_equal, after, statistics)


@pytest.mark.parametrize(("key", "number"), [("alpha", -1.0), ("gamma", -1.0), ("mu", np.nan)])
def test_ranges(key, number):
    with pytest.raises(ValueError, match=f"EQLV2Loss: {key} must be"):
        EQLV2Loss(**{key: number})
    with pytest.raises(ValueError, match=f"eqlv2_loss: {key} must be"):
        eqlv2_loss(PRED, LABELS, state=STATE, **{key: number})
    with pytest.raises(ValueError, match=f"eqlv2_statistics: {key} must be"):
        eqlv2_statistics(STATE, PRED, LABELS, **{key: number})
    with pytest.raises(ValueError, match="EQLV2Loss: num_classes must be at least 1, got 0"):
        EQLV2Loss(num_classes=0)
