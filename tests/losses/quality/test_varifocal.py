"""Varifocal loss: its positives, its negatives, and its detached form."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from losses.classification import class_scores
from losses.quality.qualities import (
    IOU,
    LABEL,
    ONE_HOT,
    PRED,
    assert_pair_is_dense,
    assert_value_and_derivative,
    bce,
    close,
    sigmoid,
)


def test_negatives_are_focal():
    none = np.zeros_like(PRED)
    close(
        v.varifocal_loss(PRED, none, alpha=0.75, reduction="none"),
        v.sigmoid_focal_loss(PRED, none, alpha=0.25, reduction="none"),
    )


def test_positives_are_weighted_cross_entropy():
    pred, one_hot = class_scores.PRED, class_scores.ONE_HOT
    iou = np.random.default_rng(0).uniform(0.1, 1, (16, 1)).astype(np.float32)
    target = one_hot * iou
    cross_entropy = np.asarray(v.binary_cross_entropy(pred, target, reduction="none"))
    positive = one_hot == 1
    weighted = np.asarray(v.varifocal_loss(pred, target, reduction="none"))
    close(weighted[positive], (cross_entropy * target)[positive])
    plain = np.asarray(v.varifocal_loss(pred, target, iou_weighted=False, reduction="none"))
    close(plain[positive], cross_entropy[positive])
    close(plain[~positive], weighted[~positive])
    unweighted = v.varifocal_loss(pred, target, alpha=1.0, gamma=0.0, iou_weighted=False)
    close(unweighted, cross_entropy.mean())


def test_detached_value_and_derivative(x64):
    loss = v.VarifocalLoss(gamma=1.5, detached=True, reduction="sum")
    q = ONE_HOT * IOU[:, None]

    def formula(x, held):
        return np.where(ONE_HOT > 0, q, 0.75 * sigmoid(held) ** 1.5) * bce(x, q)

    assert_value_and_derivative(loss, formula)


@pytest.mark.parametrize("config", [{"detached": True}, {"gamma": 0.5}])
def test_label_and_score_are_a_dense_target(config):
    assert_pair_is_dense(v.VarifocalLoss(reduction="sum", **config))


def test_a_class_is_positive_whatever_its_score():
    none = np.zeros_like(IOU)
    for detached in (True, False):
        values = v.varifocal_loss(PRED, (LABEL, none), detached=detached, reduction="none")
        np.testing.assert_array_equal(np.asarray(values)[ONE_HOT > 0], 0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_gradients_are_finite_at_saturated_logits(gamma):
    pred = np.array([[-1e4, -100, -17, 0, 17, 1e4]], np.float32)
    for target in (np.zeros_like(pred), np.full_like(pred, 0.5), np.ones_like(pred)):
        gradient = jax.grad(v.varifocal_loss)(pred, target, gamma=gamma)
        assert np.isfinite(gradient).all()
