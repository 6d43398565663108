"""Random shapes, weights and extreme values: properties that hold for every input."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given

import visdet_jax as v

hypothesis.settings.register_profile(
    # Each new shape compiles: few sizes, many values.
    "losses",
    deadline=None,
    max_examples=60,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("losses")

SIZES = st.sampled_from([0, 1, 4])
FINITE = st.one_of(
    st.floats(-1e4, 1e4, width=32),
    st.sampled_from(np.float32([0, -0.0, 1e4, -1e4, 1e-30, -1e-30, 17, -17, 88.7, -104]).tolist()),
)
WEIGHTS = st.one_of(st.just(0.0), st.floats(0, 8, width=32))


@st.composite
def arrays(draw, columns, elements=FINITE, parts=2):
    """(parts arrays of one shape, weights of the rows)."""
    n = draw(SIZES)
    shape = (n, columns) if columns else (n,)
    make = hnp.arrays(np.float32, shape, elements=elements)
    return *(draw(make) for _ in range(parts)), draw(hnp.arrays(np.float32, n, elements=WEIGHTS))


def value_and_gradient(loss, pred, *arguments, **options):
    value, gradient = jax.value_and_grad(lambda p: loss(p, *arguments, **options))(pred)
    return np.asarray(value), np.asarray(gradient)


def check(loss, pred, target, weight):
    """Finite, not negative, zero where the weight is, and its mean is its sum over its size."""
    value, gradient = value_and_gradient(loss, pred, target, weight)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert value >= -1e-6
    assert not gradient[weight == 0].any()
    values = np.asarray(loss(pred, target, weight, reduction="none"))
    assert values.shape[: weight.ndim] == weight.shape
    np.testing.assert_allclose(value, values.mean() if values.size else 0, rtol=1e-4, atol=1e-30)
    half = loss(pred, target, weight / 2)
    np.testing.assert_allclose(half, value / 2, rtol=1e-5, atol=1e-30)


@given(arrays(4))
def test_elementwise(drawn):
    for loss in (v.l1_loss, v.smooth_l1_loss, v.balanced_l1_loss, v.mse_loss):
        check(loss, *drawn)
        pred, target, weight = drawn
        np.testing.assert_allclose(
            loss(pred, target, weight), loss(target, pred, weight), rtol=1e-6
        )


@pytest.mark.long
@given(arrays(4))
def test_boxes(drawn):
    """Any four numbers: proper, inverted, empty boxes alike."""
    for loss in (v.iou_loss, v.giou_loss):
        pred, target, weight = drawn
        value, gradient = value_and_gradient(loss, pred, target, weight)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()
        assert not gradient[weight == 0].any()


@pytest.mark.long
@given(arrays(4, st.floats(0, 1e3, width=32)))
def test_proper_boxes(drawn):
    pred, target, weight = drawn
    pred[:, 2:] += pred[:, :2]
    target[:, 2:] += target[:, :2]
    check(v.iou_loss, pred, target, weight)
    check(v.giou_loss, pred, target, weight)
    giou = np.asarray(v.giou_loss(pred, target, reduction="none"))
    iou = np.asarray(v.iou_loss(pred, target, mode="linear", eps=0.0, reduction="none"))
    # Rounding of areas up to 1e6 against the exact order of the two.
    assert (giou >= iou - 1e-4).all()
    assert (giou <= 2 + 1e-4).all()


@given(arrays(3), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.floats(0, 4))
def test_focal(drawn, labels, gamma):
    pred, _, weight = drawn
    label = np.array(labels, np.int32)[: len(pred)]
    for name, number in (("gamma", gamma), ("alpha", gamma / 4)):

        def loss(*arguments, name=name, number=number, **options):
            return v.sigmoid_focal_loss(*arguments, **{name: number}, **options)

        check(loss, pred, label, weight)


@pytest.mark.long
@given(
    arrays(3),
    st.lists(st.integers(-1, 4), min_size=4, max_size=4),
    st.floats(0, 4),
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
)
def test_quality_focal(drawn, labels, beta, scores):
    pred, _, weight = drawn
    n = len(pred)
    target = (np.array(labels, np.int32)[:n], np.array(scores, np.float32)[:n])

    def loss(*arguments, **options):
        return v.quality_focal_loss(*arguments, beta=beta, **options)

    check(loss, pred, target, weight)


@pytest.mark.long
@given(arrays(3), st.lists(st.integers(-2, 2), min_size=4, max_size=4))
def test_cross_entropy(drawn, labels):
    pred, other, weight = drawn
    label = np.array(labels, np.int32)[: len(pred)]
    check(v.cross_entropy, pred, label, weight)
    check(v.binary_cross_entropy, pred, label, weight)
    check(v.binary_cross_entropy, pred, np.float32(other > 0), weight)


@pytest.mark.long
@given(arrays(9), st.lists(st.floats(0, 8, width=32), min_size=4, max_size=4))
def test_distribution_focal(drawn, distances):
    pred, _, weight = drawn
    check(v.distribution_focal_loss, pred, np.array(distances, np.float32)[: len(pred)], weight)


@pytest.mark.long
@given(arrays(6, st.floats(0, 1, width=32)))
def test_probabilities(drawn):
    check(v.gaussian_focal_loss, *drawn)
    check(v.dice_loss, *drawn)


@pytest.mark.long
@given(arrays(6))
def test_dice_with_logits(drawn):
    pred, target, weight = drawn
    check(v.dice_loss_with_logits, pred, np.float32(target > 0), weight)
