"""Margins, and negatives bounded by the number of positives: the costliest, or drawn by a key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
PRED = RNG.uniform(0, 1, (12, 10)).astype(np.float32)
TARGET = (RNG.random((12, 10)) < 0.2).astype(np.float32)
POSITIVES, NEGATIVES = int(TARGET.sum()), int((TARGET == 0).sum())
KEY = jax.random.key(0)


def close(actual, expected, rtol=1e-5, atol=1e-7):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def kept_negatives(**options):
    """Which negatives still cost something; no value of PRED is 0."""
    values = np.asarray(v.margin_l2_loss(PRED, TARGET, reduction="none", **options))
    assert (values[TARGET == 1] > 0).all()
    return (values > 0) & (TARGET == 0)


def test_without_margins_and_bound_it_is_mse_of_what_is_in_0_to_1():
    pred = PRED * 3 - 1
    close(v.margin_l2_loss(pred, TARGET), v.mse_loss(np.clip(pred, 0, 1), TARGET))


def test_margins_by_target():
    target = TARGET.copy()
    target[0] = 0.5
    margin = np.where(target == 1, 0.2, np.where(target == 0, 0.4, 0)).astype(np.float32)
    close(
        v.margin_l2_loss(PRED, target, pos_margin=0.2, neg_margin=0.4, reduction="none"),
        (np.clip(PRED - margin, 0, 1) - target) ** 2,
    )


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, 10**8, 2**30])
def test_the_bound_counts(bound):
    """Also where its product with the number of positives is beyond int32's range."""
    expected = min(NEGATIVES, POSITIVES * bound)
    for choice in ({"hard_mining": True}, {"key": KEY}):
        assert kept_negatives(neg_pos_ub=bound, **choice).sum() == expected


def test_hard_mining_keeps_the_costliest():
    kept = kept_negatives(neg_pos_ub=2, hard_mining=True)
    assert PRED[kept].min() > PRED[(TARGET == 0) & ~kept].max()
    # Of equals the earlier.
    values = v.margin_l2_loss(
        np.full(5, 0.5, np.float32),
        np.float32([0, 0, 1, 0, 0]),
        neg_pos_ub=2,
        hard_mining=True,
        reduction="none",
    )
    close(values, [0.25, 0.25, 0.25, 0, 0])


def test_a_key_draws_the_same_again_and_every_negative_alike():
    same = kept_negatives(neg_pos_ub=1, key=KEY)
    np.testing.assert_array_equal(same, kept_negatives(neg_pos_ub=1, key=jax.random.key(0)))
    keys = jax.random.split(KEY, 2000)
    draw = jax.vmap(
        lambda key: v.margin_l2_loss(PRED, TARGET, neg_pos_ub=1, key=key, reduction="none")
    )
    kept = (np.asarray(draw(keys)) > 0) & (TARGET == 0)
    assert (kept.sum((1, 2)) == POSITIVES).all()
    frequency = kept.mean(0)[TARGET == 0]
    close(frequency, POSITIVES / NEGATIVES, atol=0.05, rtol=0)


def test_the_mean_is_over_what_is_left():
    for choice in ({}, {"neg_pos_ub": 2, "key": KEY}, {"neg_pos_ub": 2, "hard_mining": True}):
        values = np.asarray(v.margin_l2_loss(PRED, TARGET, reduction="none", **choice))
        close(v.margin_l2_loss(PRED, TARGET, **choice), values.sum() / (values > 0).sum())
        close(v.margin_l2_loss(PRED, TARGET, avg_factor=99, **choice), values[values > 0].mean())
        close(v.margin_l2_loss(PRED, TARGET, reduction="sum", **choice), values.sum())


def test_what_has_no_weight_is_neither_positive_nor_negative():
    weight = (RNG.random((12, 10)) < 0.7).astype(np.float32)
    choice = {"neg_pos_ub": 1, "hard_mining": True, "reduction": "none"}
    pred = np.where(weight == 0, np.nan, PRED).astype(np.float32)
    values = np.asarray(v.margin_l2_loss(pred, TARGET, weight, **choice))
    assert not values[weight == 0].any()
    positives = int((TARGET * weight).sum())
    assert ((values > 0) & (TARGET == 0)).sum() == positives
    close(
        v.margin_l2_loss(pred, TARGET, weight, neg_pos_ub=1, hard_mining=True),
        values.sum() / (2 * positives),
    )


def test_without_positives_no_negative_is_left():
    none = np.zeros_like(TARGET)
    for choice in ({"key": KEY}, {"hard_mining": True}):
        value, gradient = jax.value_and_grad(
            lambda p, choice=choice: v.margin_l2_loss(p, none, neg_pos_ub=3, **choice)
        )(PRED)
        assert value == 0
        assert not gradient.any()


def test_drawing_needs_a_key():
    for loss in ("L2Loss", "MarginL2Loss"):
        built = v.build_loss({"type": loss, "neg_pos_ub": 3})
        with pytest.raises(ValueError, match=r"margin_l2_loss: neg_pos_ub=3 draws.*key"):
            built(PRED, TARGET)
        with pytest.raises(ValueError, match="key"):
            jax.jit(built)(PRED, TARGET)
        assert built(PRED, TARGET, key=KEY) == v.margin_l2_loss(PRED, TARGET, neg_pos_ub=3, key=KEY)
    with pytest.raises(ValueError, match="key"):
        jax.vmap(lambda k: v.margin_l2_loss(PRED, TARGET, neg_pos_ub=k))(jnp.arange(3))


def test_the_bound_is_traceable():
    bounds = jnp.array([-1, 0, 1, 2])
    swept = jax.vmap(lambda k: v.margin_l2_loss(PRED, TARGET, neg_pos_ub=k, hard_mining=True))(
        bounds
    )
    alone = [v.margin_l2_loss(PRED, TARGET, neg_pos_ub=int(k), hard_mining=True) for k in bounds]
    close(swept, alone)
    close(swept[:2], v.margin_l2_loss(PRED, TARGET))


def test_the_callers_arrays_stay():
    pred, target, weight = PRED.copy(), TARGET.copy(), np.zeros_like(TARGET)
    loss = v.build_loss({"type": "L2Loss", "pos_margin": 0.3, "neg_margin": 0.3})
    loss(pred, target, weight)
    np.testing.assert_array_equal(pred, PRED)
    np.testing.assert_array_equal(target, TARGET)
    assert not weight.any()


def test_finite_differences_of_a_draw(x64):
    pred, target = PRED.astype(np.float64), TARGET.astype(np.float64)

    @jax.jit
    def value(pred):
        return v.margin_l2_loss(
            pred, target, neg_pos_ub=1, pos_margin=0.1, neg_margin=0.2, key=jax.random.key(3)
        )

    gradient = jax.grad(value)(pred)
    direction = np.random.default_rng(1).normal(size=pred.shape)
    expected = (value(pred + 1e-6 * direction) - value(pred - 1e-6 * direction)) / 2e-6
    close((gradient * direction).sum(), expected, rtol=1e-6)


@pytest.mark.parametrize("key", ["pos_margin", "neg_margin"])
def test_margins_are_finite(key):
    with pytest.raises(ValueError, match=f"MarginL2Loss: {key} must be finite, got nan"):
        v.MarginL2Loss(**{key: np.nan})
    with pytest.raises(ValueError, match=f"margin_l2_loss: {key} must be finite, got nan"):
        v.margin_l2_loss(PRED, TARGET, **{key: np.nan})
