"""Asymmetric loss: the formula, what is a constant of the gradient, digits, and few logarithms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import (
    BINARY,
    EXTREME,
    LABEL,
    PRED,
    SOFT,
    assert_derivative,
    close,
)
from programs import compiled, temporary_bytes


def asymmetric(x, y, gamma_neg, gamma_pos, clip, eps, focus_at=None):
    """In NumPy; the focusing weight taken at the logits `focus_at`, where they are given."""

    def both(x):
        p = 1 / (1 + np.exp(-x))
        return p, np.minimum(1 - p + clip, 1)

    p, q = both(x)
    at, at_q = (p, q) if focus_at is None else both(focus_at)
    bce = -y * np.log(np.maximum(p, eps)) - (1 - y) * np.log(np.maximum(q, eps))
    return bce * (1 - at * y - at_q * (1 - y)) ** (gamma_pos * y + gamma_neg * (1 - y))


OPTIONS = [
    {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05, "eps": 1e-8},
    {"gamma_neg": 1.5, "gamma_pos": 0.5, "clip": 0.3, "eps": 1e-2},
    {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0, "eps": 1e-2},
]


@pytest.mark.parametrize("target", [BINARY, SOFT], ids=["hard", "soft"])
def test_the_formula_and_what_is_detached(target, x64):
    x, y = PRED.astype(np.float64), target.astype(np.float64)

    def loss(x, detached, options):
        return v.asymmetric_loss(x, y, reduction="none", detached=detached, **options)

    for options in OPTIONS:
        for detached in (True, False):
            close(loss(x, detached, options), asymmetric(x, y, **options), 1e-9)
        assert_derivative(
            lambda x, o=options: loss(x, True, o),
            lambda x, o=options: asymmetric(x, y, **o, focus_at=PRED.astype(np.float64)),
            x,
        )
        assert_derivative(
            lambda x, o=options: loss(x, False, o), lambda x, o=options: asymmetric(x, y, **o), x
        )


def test_without_asymmetry_it_is_cross_entropy():
    none = {"gamma_neg": 0.0, "gamma_pos": 0.0, "eps": 0.0, "reduction": "none"}
    x = np.concatenate([EXTREME, EXTREME])
    y = np.stack([np.zeros(7), np.ones(7)]).astype(np.float32)
    expected = jax.value_and_grad(v.binary_cross_entropy)(x, y, reduction="sum")
    for clip in (None, 0.0):
        close(v.asymmetric_loss(x, y, clip=clip, **none).sum(), expected[0])
        for detached in (True, False):
            sums = none | {"clip": clip, "detached": detached, "reduction": "sum"}
            close(jax.grad(v.asymmetric_loss)(x, y, **sums), expected[1])


def test_targets_may_be_class_indices():
    labels = np.where(np.arange(16) == 2, 5, LABEL)  # 5: background
    values = v.asymmetric_loss(PRED, labels, reduction="none")
    close(values, v.asymmetric_loss(PRED, np.eye(6, dtype="f4")[labels][:, :5], reduction="none"))
    close(v.asymmetric_loss(PRED, labels * 0 - 1), 0)
    assert np.isnan(v.asymmetric_loss(PRED, labels * 0 + 6))


def test_negatives_below_the_clip_cost_nothing():
    x = np.log(np.array([[0.2, 0.04], [0.049, 0.051]], np.float32) / (1 - 0.05))
    sums = {"reduction": "sum", "gamma_neg": 0.0}
    value, gradient = jax.value_and_grad(v.asymmetric_loss)(x, 0 * x, **sums)
    easy = 1 / (1 + np.exp(-x)) <= 0.05
    assert easy.any()
    assert not easy.all()
    np.testing.assert_array_equal(gradient == 0, easy)
    assert value > 0


@pytest.mark.one_in(3)
@pytest.mark.parametrize("clip", [None, 0.0, 1e-4, 0.05, 0.7])
@pytest.mark.parametrize("detached", [True, False])
def test_digits_and_finite_gradients(clip, detached, x64):
    """float32 against float64, at fractional powers and saturated logits too."""
    x = np.concatenate([np.linspace(-12, 12, 49, dtype=np.float32), EXTREME[0]])[None]
    options = {"clip": clip, "gamma_neg": 1.5, "gamma_pos": 0.5, "detached": detached}
    for y in (np.zeros_like(x), np.ones_like(x), np.full_like(x, 0.25)):
        for eps in (1e-8, 0.0):

            def loss(x, y=y, eps=eps):
                value = v.asymmetric_loss(x, y, reduction="none", eps=eps, **options)
                return value.sum(), value

            pairs = [jax.grad(loss, has_aux=True)(x.astype(d)) for d in ("f4", "f8")]
            for single, double in zip(*pairs, strict=True):
                assert np.isfinite(single).all()
                close(single, double, 2e-5, 1e-9 if not clip else 1e-7)


def test_costs_of_easy_negatives_keep_their_digits(x64):
    x = np.linspace(-8, -2, 50, dtype=np.float32)
    single, double = (
        v.asymmetric_loss(x, 0 * x, clip=1e-4, gamma_neg=0.0, reduction="none")
        for x in (x, x.astype(np.float64))
    )
    close(single, double, 2e-6, 0)


@pytest.mark.parametrize("detached", [True, False])
def test_value_and_gradient_need_one_temporary(detached):
    """The value and its derivative have no array in common that XLA would store between them."""
    pred = np.linspace(-3, 3, 8000, dtype=np.float32).reshape(1000, 8)
    both = jax.value_and_grad(lambda p, t: v.asymmetric_loss(p, t, detached=detached))
    assert temporary_bytes(both, pred, pred > 0) <= 1.1 * pred.nbytes


def test_one_logarithm_keeps_these_digits():
    """That of q, beside the polynomial of the sigmoid and the logarithm of eps, a number."""
    x = jnp.ones((8, 5))
    text = compiled(v.asymmetric_loss, x, x).as_text()
    assert "log-plus-one(" not in text
    assert len([line for line in text.split("\n") if " log(" in line and "f32[8,5]" in line]) == 1
