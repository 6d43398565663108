"""Focal loss of heatmaps: special cases, listed positives, and the cost of its programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import LABEL, ONE_HOT, close
from programs import compiled, temporary_bytes

P = np.random.default_rng(0).uniform(0.01, 0.99, (16, 5)).astype(np.float32)
ROWS = np.arange(16)


def test_without_gaussians_it_is_focal_loss():
    focal = v.sigmoid_focal_loss(P, ONE_HOT, activated=True, alpha=0.5, reduction="none")
    close(v.gaussian_focal_loss(P, ONE_HOT, reduction="none"), 2 * focal)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 4.0])
def test_peaks_are_negatives_too_where_gamma_is_0(gamma):
    """0^0 is 1. A gamma that is traced gives the same as one that is known."""
    options = {"alpha": 1.5, "pos_weight": 0.7, "neg_weight": 0.3, "reduction": "none"}
    target = np.where(P > 0.7, 1, P / 2).astype(np.float32)
    p = P[::-1].astype(np.float64)
    negative = 0.3 * -np.log(1 - p) * p**1.5 * (1 - target) ** gamma
    positive = np.where(target == 1, 0.7 * -np.log(p) * (1 - p) ** 1.5, 0)
    for number in (gamma, jnp.float32(gamma)):
        values = v.gaussian_focal_loss(P[::-1], target, gamma=number, **options)
        close(values, negative + positive)


@pytest.mark.parametrize("gamma", [0.0, 2.5, 4.0])
def test_a_certain_prediction_is_finite(gamma):
    """XLA must not fold (1 - pred) + 1e-12 into (1 + 1e-12) - pred, which is 0 in float32."""
    one = jnp.ones((1, 1))
    index = np.zeros(1, int)

    def total(pred, target):
        listed = v.gaussian_focal_loss_with_pos_inds(pred, target, index, index, gamma=gamma)
        return v.gaussian_focal_loss(pred, target, gamma=gamma) + listed

    for target in (one, 0 * one):
        value, gradient = jax.jit(jax.value_and_grad(total))(one, target)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_a_known_gamma_needs_one_logarithm():
    x = jnp.full((8, 5), 0.5)
    for gamma, count in ((4.0, 1), (0.0, 2)):
        text = compiled(lambda p, t, gamma=gamma: v.gaussian_focal_loss(p, t, gamma=gamma), x, x)
        assert text.as_text().count(" log(") == count


def test_value_and_gradient_need_one_temporary():
    """Beside the values, which are summed; with a traced gamma too."""
    x = jnp.full((1000, 8), 0.5)
    for gamma in (4.0, jnp.float32(2.5)):
        both = jax.value_and_grad(lambda p, t, gamma: v.gaussian_focal_loss(p, t, gamma=gamma))
        assert temporary_bytes(both, x, x, gamma) <= 1.1 * x.nbytes


def test_listed_positives():
    plain = v.gaussian_focal_loss(P, ONE_HOT, reduction="sum")
    listed = v.gaussian_focal_loss_with_pos_inds(P, ONE_HOT, ROWS, LABEL, reduction="sum")
    close(listed, plain)
    # Empty slots change nothing, and without a positive that part is 0.
    loss = v.GaussianFocalLoss()
    some = loss(P, ONE_HOT, pos_inds=ROWS[:3], pos_labels=LABEL[:3])
    slots = np.concatenate([ROWS[:3], [-1, -1]]), np.concatenate([LABEL[:3], [0, 9]])
    close(loss(P, ONE_HOT, pos_inds=slots[0], pos_labels=slots[1]), some)
    none = loss(P, ONE_HOT, pos_inds=np.array([-1]), pos_labels=np.array([0]))
    close(none, v.GaussianFocalLoss(pos_weight=0.0)(P, ONE_HOT))


# The third lies beyond, though its place among all values, counted in int32, would lie within.
@pytest.mark.parametrize("place", [(99, 0), (0, 5), (858993460, 0)])
def test_a_listed_positive_beyond_the_heatmap_is_nan(place):
    row, label = np.array(place, np.int32)[:, None]
    assert np.isnan(v.GaussianFocalLoss()(P, ONE_HOT, pos_inds=row, pos_labels=label))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pos_inds": LABEL}, ValueError, "pos_inds and pos_labels must be given together"),
        (
            {"pos_inds": LABEL, "pos_labels": LABEL, "weight": np.ones(16, np.float32)},
            ValueError,
            "weight has no meaning with pos_inds",
        ),
        (
            {"pos_inds": LABEL, "pos_labels": LABEL, "reduction_override": "none"},
            ValueError,
            'reduction="none" has no shape',
        ),
        ({"pos_inds": [0, 1], "pos_labels": LABEL}, TypeError, "pos_inds must be an array"),
        ({"pos_inds": P[:, 0], "pos_labels": LABEL}, TypeError, "pos_inds must hold integer"),
        ({"pos_inds": LABEL[:3], "pos_labels": LABEL}, ValueError, "pos_labels must have shape"),
    ],
)
def test_calls_that_raise(options, error, message):
    with pytest.raises(error, match=message):
        v.GaussianFocalLoss()(ONE_HOT, ONE_HOT, **options)
