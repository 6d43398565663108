"""The first form of the distances of rotated boxes as Gaussians."""

import functools
import math

import numpy as np
import pytest

import visdet_jax as v
from losses.rotated.in_matrices import (
    bhattacharyya,
    check_digits_of_needles,
    check_equal_boxes,
    check_formula,
    check_invariances,
    covariances,
    kl,
    squared_wasserstein,
)


def values_of(loss_type):
    return functools.partial(v.gd_loss_v1, loss_type=loss_type, reduction="none")


def kld(pred, target):
    p, t, d = covariances(pred, target)
    return 1 - 1 / (1 + math.sqrt(2 * kl(t, p, d)))


def bcd(pred, target):
    return 1 - 1 / (1 + math.sqrt(bhattacharyya(*covariances(pred, target))))


FORMULAS = {"kld": kld, "bcd": bcd}
every_type = pytest.mark.parametrize("loss_type", FORMULAS)


@every_type
def test_the_defining_formula(loss_type, x64):
    check_formula(values_of(loss_type), FORMULAS[loss_type])


def test_the_defining_formula_of_gwd(x64):
    def by_scale(pred, target):
        p, t, d = covariances(pred, target)
        scale = 2 * (np.linalg.det(p) * np.linalg.det(t)) ** (1 / 8)
        return math.log1p(math.sqrt(d @ d + squared_wasserstein(p, t)) / scale)

    def with_log1p(pred, target):
        p, t, d = covariances(pred, target)
        return 1 - 1 / (2 + math.log1p(d @ d + squared_wasserstein(p, t)))

    check_formula(functools.partial(values_of("gwd"), fun=""), by_scale)
    check_formula(functools.partial(values_of("gwd"), fun="log1p", tau=2.0), with_log1p)


@every_type
def test_invariances(loss_type, x64):
    check_invariances(values_of(loss_type))


@every_type
@pytest.mark.parametrize("apart", [0.03, 1])
def test_float32_keeps_the_digits_of_needles(loss_type, apart):
    check_digits_of_needles(values_of(loss_type), FORMULAS[loss_type], apart)


@every_type
def test_equal_boxes_cost_the_floor_without_gradient(loss_type):
    check_equal_boxes(functools.partial(v.gd_loss_v1, loss_type=loss_type), 1 - 1 / (1 + 1e-3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "jd"}, "loss_type must be one of gwd, kld, bcd; got 'jd'"),
        ({"loss_type": "kld", "fun": "none"}, "fun must be one of 'sqrt', 'log1p', ''; got 'none'"),
        ({"loss_type": "kld", "tau": 0.0}, "tau must be above 0, got 0.0"),
    ],
)
def test_options_that_raise(options, message):
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match=f"^GDLoss_v1: {message}"):
        v.build_loss({"type": "GDLoss_v1", **options})
    with pytest.raises(ValueError, match=f"^gd_loss_v1: {message}"):
        v.gd_loss_v1(boxes, boxes, **options)
