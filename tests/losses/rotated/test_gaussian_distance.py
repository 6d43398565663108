"""Distances of rotated boxes as Gaussians: against matrices in NumPy, invariances, options."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.rotated.in_matrices import (
    check_digits_of_needles,
    check_equal_boxes,
    check_formula,
    check_invariances,
    covariance,
    covariances,
    kl,
    rotated_pairs,
    squared_wasserstein,
)
from programs import IS_JAX_0_10, temporary_bytes


def values_of(loss_type):
    return functools.partial(v.gd_loss, loss_type=loss_type, reduction="none")


def gwd(pred, target):
    p, t, d = covariances(pred, target)
    scale = 2 * (np.linalg.det(p) * np.linalg.det(t)) ** (1 / 8)
    return math.log1p(math.sqrt(d @ d + squared_wasserstein(p, t)) / scale)


def kld(pred, target):
    return math.log1p(math.sqrt(kl(*covariances(pred, target))))


def jd(pred, target):
    both = kl(*covariances(pred, target)), kl(*covariances(target, pred))
    return math.log1p(math.sqrt(sum(both) / 2))


FORMULAS = {"gwd": gwd, "kld": kld, "jd": jd}
every_type = pytest.mark.parametrize("loss_type", FORMULAS)


@every_type
def test_the_defining_formula(loss_type, x64):
    check_formula(values_of(loss_type), FORMULAS[loss_type])


@every_type
def test_invariances(loss_type, x64):
    check_invariances(values_of(loss_type))


@every_type
@pytest.mark.parametrize("apart", [0.03, 1])
def test_float32_keeps_the_digits_of_needles(loss_type, apart):
    check_digits_of_needles(values_of(loss_type), FORMULAS[loss_type], apart)


@pytest.mark.one_in(3)
@every_type
def test_equal_boxes_cost_the_floor_without_gradient(loss_type):
    floor = math.log1p(math.sqrt(1e-7))
    # With gwd it depends on the size.
    check_equal_boxes(
        functools.partial(v.gd_loss, loss_type=loss_type), None if loss_type == "gwd" else floor
    )


def test_wasserstein_of_equal_shapes_is_the_distance_of_the_centres():
    boxes = rotated_pairs()[0].astype(np.float32)
    moved = boxes + np.float32([3, 4, 0, 0, 0])
    for alpha in (0.5, 2.0):
        options = {"loss_type": "gwd", "fun": "none", "normalize": False, "alpha": alpha}
        np.testing.assert_allclose(v.gd_loss(moved, boxes, **options), 5, rtol=1e-5)


@pytest.mark.one_in(3)
@every_type
def test_boxes_of_a_million_pixels_have_a_finite_loss(loss_type):
    """det P det T is inf here in float32."""
    boxes = np.float32([[0, 0, 1e6, 1e6, 0.3]])
    moved = boxes + np.float32([1e6, 0, 0, 0, 0])
    loss = functools.partial(v.gd_loss, loss_type=loss_type)
    value, gradient = jax.value_and_grad(loss)(moved, boxes)
    assert 0.1 < value < 10
    assert np.isfinite(gradient).all()


def test_the_gradient_keeps_few_numbers():
    """The derivative of D - 1 - log D by hand saves four numbers a pair and a quarter of the time.

    Value and gradient need 35 numbers a pair beside their arguments (jax 0.10.2; 40 with 0.12.0),
    and 53 with plain quotients in `kl_divergence` (52).
    """
    boxes = jnp.ones((10_000, 5))
    loss = functools.partial(v.gd_loss, loss_type="jd")
    most = 37 if IS_JAX_0_10 else 42
    assert temporary_bytes(jax.value_and_grad(loss), boxes, boxes) < most * 4 * len(boxes)


def test_the_larger_and_the_smaller_and_tau(x64):
    pred, target = rotated_pairs()
    kld, symmax, symmin = map(values_of, ("kld", "kld_symmax", "kld_symmin"))
    both = kld(pred, target), kld(target, pred)
    np.testing.assert_allclose(symmax(pred, target), jnp.maximum(*both), rtol=1e-12)
    np.testing.assert_allclose(symmin(pred, target), jnp.minimum(*both), rtol=1e-12)
    for tau in (1.0, 2.5):
        np.testing.assert_allclose(kld(pred, target, tau=tau), 1 - 1 / (tau + both[0]), rtol=1e-12)
    np.testing.assert_array_equal(kld(pred, target, tau=0.99), both[0])


@pytest.mark.parametrize("loss_type", ["gwd", "kld_symmin"])
def test_deviations_and_correlation_are_the_box(loss_type, x64):
    def as_pearson(boxes):
        matrices = np.array([covariance(box) for box in boxes])
        deviations = np.sqrt(matrices[:, [0, 1], [0, 1]])
        correlation = matrices[:, 0, 1] / deviations.prod(1)
        return np.column_stack([boxes[:, :2], deviations, correlation])

    pred, target = rotated_pairs()
    values = values_of(loss_type)
    pearson = values(as_pearson(pred), as_pearson(target), representation="xy_stddev_pearson")
    np.testing.assert_allclose(pearson, values(pred, target), rtol=1e-9)


def test_a_config_of_mmrotate():
    pred, target = (boxes.astype(np.float32) for boxes in rotated_pairs())
    loss = v.build_loss(
        {"type": "GDLoss", "loss_type": "kld", "fun": "log1p", "tau": 1, "sqrt": False}
        | {"loss_weight": 5.5}
    )
    weight = np.repeat(np.float32([[1], [0]] * 8), 5, axis=1)
    expected = v.gd_loss(pred, target, weight[:, 0], loss_type="kld", tau=1, sqrt=False)
    np.testing.assert_allclose(loss(pred, target, weight), 5.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "bcd"}, "loss_type must be one of gwd, kld, .*; got 'bcd'"),
        ({"loss_type": "gwd", "fun": ""}, "fun must be one of log1p, sqrt, none; got ''"),
        ({"loss_type": "gwd", "sqrt": False}, "sqrt=False is of the other"),
        ({"loss_type": "kld", "normalize": False}, "normalize=False is of gwd"),
        ({"loss_type": "kld", "alpha": 0.0}, "alpha must be above 0, got 0.0"),
        ({"loss_type": "kld", "tau": -1.0}, "tau must be at least 0, got -1.0"),
        ({"loss_type": "kld", "representation": "xyxy"}, "representation must be one of"),
    ],
)
def test_options_that_raise(options, message):
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match=f"^GDLoss: {message}"):
        v.build_loss({"type": "GDLoss", **options})
    with pytest.raises(ValueError, match=f"^gd_loss: {message}"):
        v.gd_loss(boxes, boxes, **options)


def test_errors():
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match="GDLoss needs a key 'loss_type' in its config"):
        v.build_loss({"type": "GDLoss"})
    with pytest.raises(ValueError, match=r"gd_loss: rotated boxes must have shape \(\.\.\., 5\)"):
        v.gd_loss(boxes[:, :4], boxes[:, :4])


def test_checked_takes_deviations_and_correlations():
    boxes = np.full((4, 5), -0.5, np.float32)
    loss = v.GDLoss(loss_type="gwd", representation="xy_stddev_pearson")
    assert np.isfinite(v.checked(loss)(boxes, boxes))
