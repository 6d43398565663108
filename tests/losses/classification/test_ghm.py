"""GHM: special cases, counts by hand, finite differences, ranges, labels and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from programs import temporary_bytes
from visdet_jax import (
    GHMC,
    GHMR,
    GHMState,
    binary_cross_entropy,
    build_loss,
    ghmc_loss,
    ghmc_statistics,
    ghmr_loss,
    ghmr_statistics,
)
from visdet_jax.losses.classification.ghm import _bins_and_counts

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (12, 5)).astype(np.float32)
TARGETS = (RNG.random((12, 5)) < 0.3).astype(np.float32)
BOXES = RNG.normal(0, 1, (12, 4)).astype(np.float32)
NEAR = BOXES + RNG.normal(0, 0.02, BOXES.shape).astype(np.float32)


def logit(p):
    return np.log(p / (1 - p))


def counts_by_hand(lengths, bins):
    return np.histogram(lengths, bins, (0, 1))[0]


def test_one_bin_is_a_plain_mean():
    expected = binary_cross_entropy(LOGITS, TARGETS)
    np.testing.assert_allclose(GHMC(bins=1)(LOGITS, TARGETS), expected, rtol=1e-6)
    diff = BOXES - NEAR
    np.testing.assert_allclose(
        GHMR(bins=1)(BOXES, NEAR), (np.sqrt(diff**2 + 0.02**2) - 0.02).mean(), rtol=1e-5
    )


def test_bins_of_equal_counts_are_a_plain_mean():
    lengths = np.arange(0.05, 1, 0.1, dtype=np.float32)  # one a bin
    pred = logit(lengths)[:, None]
    zeros = np.zeros_like(pred)
    expected = binary_cross_entropy(pred, zeros)
    np.testing.assert_allclose(GHMC()(pred, zeros), expected, rtol=1e-6)


def test_every_bin_has_the_same_weight():
    """Three elements in one bin and one in another: the one counts as much as the three."""
    pred = logit(np.array([0.11, 0.11, 0.11, 0.95]))
    values = GHMC(bins=2, reduction="none")(pred[:, None], np.zeros((4, 1)))[:, 0]
    bce = np.logaddexp(0, pred)
    np.testing.assert_allclose(values, bce * 4 / 2 / np.array([3, 3, 3, 1]), rtol=1e-5)


def test_counts_are_those_of_a_histogram_and_the_mean_runs():
    lengths = np.abs(1 / (1 + np.exp(-LOGITS)) - TARGETS)
    first = counts_by_hand(lengths, 7)
    state = ghmc_statistics(GHMState(jnp.zeros(7)), LOGITS, TARGETS, momentum=0.75)
    np.testing.assert_allclose(state.acc_sum, 0.25 * first)
    second = counts_by_hand(np.abs(1 / (1 + np.exp(LOGITS)) - TARGETS), 7)
    state = ghmc_statistics(state, -LOGITS, TARGETS, momentum=0.75)
    running = np.where(second > 0, 0.75 * 0.25 * first + 0.25 * second, 0.25 * first)
    np.testing.assert_allclose(state.acc_sum, running, rtol=1e-6)
    diff = np.abs(BOXES - NEAR)
    lengths = diff / np.sqrt(diff**2 + 0.02**2)
    state = ghmr_statistics(GHMState(jnp.zeros(7)), BOXES, NEAR)
    np.testing.assert_array_equal(state.acc_sum, counts_by_hand(lengths, 7))


def test_a_bin_without_elements_keeps_its_mean():
    state = GHMState(jnp.array([4.0, 8.0]))
    pred = logit(np.array([[0.1], [0.2]], np.float32))
    state = ghmc_statistics(state, pred, np.zeros((2, 1)), momentum=0.5)
    np.testing.assert_allclose(state.acc_sum, [0.5 * 4 + 0.5 * 2, 8])


def test_update_is_the_statistics_and_then_the_loss():
    weight = (RNG.random(LOGITS.shape) < 0.7).astype(np.float32)
    loss = GHMC(momentum=0.6, loss_weight=2.0)
    _, state = loss.update(loss.init(), LOGITS, TARGETS)
    value, after = loss.update(state, -LOGITS, TARGETS, weight)
    replayed = ghmc_statistics(state, -LOGITS, TARGETS, weight, momentum=0.6)
    np.testing.assert_array_equal(after.acc_sum, replayed.acc_sum)
    np.testing.assert_array_equal(value, 2 * ghmc_loss(-LOGITS, TARGETS, weight, state=replayed))


def test_class_indices_are_their_one_hot_form_and_background_outside():
    labels = np.array([0, 4, 5, -1, 2, 7, 3, 1, 0, 2, 4, 5])
    weight = np.linspace(0, 1, 12, dtype=np.float32)
    one_hot = jax.nn.one_hot(labels, 5)
    by_row = np.broadcast_to(weight[:, None], one_hot.shape)
    np.testing.assert_array_equal(GHMC()(LOGITS, labels, weight), GHMC()(LOGITS, one_hot, by_row))


def test_how_much_a_weight_is_above_0_does_not_matter_for_classes():
    weight = (RNG.random(LOGITS.shape) < 0.5).astype(np.float32)
    np.testing.assert_array_equal(
        GHMC()(LOGITS, TARGETS, weight * 7), GHMC()(LOGITS, TARGETS, weight)
    )
    masked = GHMC(reduction="none")(LOGITS, TARGETS, weight)
    assert not np.any(np.asarray(masked)[weight == 0])


def test_mmdet_s_name_of_the_weight():
    weight = (RNG.random(LOGITS.shape) < 0.5).astype(np.float32)
    np.testing.assert_array_equal(
        GHMC()(LOGITS, TARGETS, label_weight=weight), GHMC()(LOGITS, TARGETS, weight)
    )
    with pytest.raises(ValueError, match="GHMC: weight and label_weight are the same"):
        GHMC()(LOGITS, TARGETS, weight, label_weight=weight)


def test_small_distances_keep_their_digits():
    pred = np.array([[1e-6, 1e-5, 1e-4, 1e-3]], np.float32)
    values = GHMR(bins=1, reduction="none")(pred, np.zeros_like(pred))
    exact = np.sqrt(pred.astype(np.longdouble) ** 2 + 0.02**2) - 0.02
    np.testing.assert_allclose(values, exact.astype(float), rtol=1e-6)


def test_far_distances_are_finite():
    """Though their squares are not."""
    pred = np.array([[1e20, -1e25, 1e30, 0]], np.float32)
    values = GHMR(bins=1, reduction="none")(pred, np.zeros_like(pred))
    np.testing.assert_allclose(values, np.abs(pred), rtol=1e-6)
    value, gradient = jax.value_and_grad(GHMR())(pred, np.zeros_like(pred))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["GHMC", "GHMR"])
def test_finite_differences(name, x64):
    """Densities are constants, so the direction is short enough to change no bin."""
    pred, target = (LOGITS, TARGETS) if name == "GHMC" else (BOXES, NEAR)
    pred, target = pred.astype(np.float64), target.astype(np.float64)
    loss = build_loss({"type": name})
    direction = RNG.normal(size=pred.shape) * 1e-5
    gradient = jax.grad(loss)(pred, target)
    expected = (loss(pred + direction, target) - loss(pred - direction, target)) / 2
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6)


def test_the_loss_at_given_statistics():
    state = ghmr_statistics(GHMState(jnp.zeros(10)), BOXES, NEAR, mu=0.5)
    value = ghmr_loss(BOXES, NEAR, state=state, mu=0.5)
    np.testing.assert_array_equal(value, GHMR(mu=0.5)(BOXES, NEAR))
    denser = ghmr_loss(BOXES, NEAR, state=GHMState(2 * state.acc_sum), mu=0.5)
    np.testing.assert_allclose(denser, value / 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["GHMC", "GHMR"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"reduction": "sum"}, "reduction must be one of mean, none; got 'sum'"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be in \[0, 1\), got -0.1"),
        ({"bins": 0}, "bins must be at least 1, got 0"),
    ],
)
def test_configs_that_raise(name, config, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        build_loss({"type": name, **config})


def test_arguments_that_raise():
    with pytest.raises(ValueError, match="GHMC: use_sigmoid must be True"):
        GHMC(use_sigmoid=False)
    with pytest.raises(ValueError, match="GHMR: mu must be above 0, got 0"):
        GHMR(mu=0.0)
    state = GHMState(jnp.ones(10))
    for call, message in (
        (lambda: ghmr_loss(BOXES, NEAR, state=state, mu=0.0), "ghmr_loss: mu must be above 0"),
        (lambda: ghmr_statistics(state, BOXES, NEAR, mu=-1.0), "ghmr_statistics: mu must be above"),
        (
            lambda: ghmc_statistics(state, LOGITS, TARGETS, momentum=1.0),
            r"ghmc_statistics: momentum must be in \[0, 1\)",
        ),
        (
            lambda: ghmc_loss(LOGITS, TARGETS, state=state, reduction="sum"),
            "ghmc_loss: reduction must be one of mean, none; got 'sum'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.long
def test_labels_of_every_width():
    """uint8 cannot count 300 classes."""
    pred, labels = RNG.normal(size=(4, 300)).astype(np.float32), np.array([0, 44, 127, 100])
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        assert GHMC()(pred, labels.astype(dtype)) == GHMC()(pred, labels)


@pytest.mark.parametrize("name", ["GHMC", "GHMR"])
def test_the_elements_of_all_bins_are_counted_in_one_pass(name):
    """With a sum for each bin ten arrays of pred's size would be stored."""
    loss = build_loss({"type": name})
    pred, target = np.zeros((2, 500, 80), np.float32)
    assert temporary_bytes(jax.value_and_grad(loss), pred, target) < 8 * pred.nbytes


@pytest.mark.long
def test_the_stored_index_of_the_bins_is_small():
    """Of 32 bits it would be half of what a GPU moves for the loss."""
    length, valid = jnp.linspace(0, 1, 7), jnp.ones(7, bool)
    for bins, dtype in ((10, jnp.uint8), (255, jnp.uint8), (256, jnp.int32), (300, jnp.int32)):
        index, counts = _bins_and_counts(length, 1 + 1e-6, valid, bins, None)
        assert index.dtype == dtype
        expected = np.minimum((np.arange(7) / 6 * bins).astype(int), bins - 1)
        assert np.abs(index.astype(int) - expected).max() <= 1
        assert counts.sum() == 7
