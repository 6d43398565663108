"""Matchability-aware loss: its formula, and what is positive."""

import numpy as np

import visdet_jax as v
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


def test_value_and_derivative(x64):
    loss = v.MatchabilityAwareLoss(gamma=1.5, alpha=0.75, reduction="sum")
    q = ONE_HOT * IOU[:, None]

    def formula(x, held):
        return np.where(ONE_HOT > 0, 1, 0.75 * sigmoid(held) ** 1.5) * bce(x, q**1.5)

    assert_value_and_derivative(loss, formula)


def test_label_and_score_are_a_dense_target():
    assert_pair_is_dense(v.MatchabilityAwareLoss(gamma=1.5, reduction="sum"))


def test_a_class_is_positive_whatever_its_score():
    none = np.zeros_like(IOU)
    focal = sigmoid(PRED) ** 2 * bce(PRED, 0)
    own = np.where(ONE_HOT > 0, bce(PRED, 0), focal).sum(1)
    close(v.matchability_aware_loss(PRED, (LABEL, none), reduction="none"), own)
    dense = v.matchability_aware_loss(PRED, np.zeros_like(PRED), reduction="none")
    close(dense, focal.sum(1))
    is_class = (LABEL >= 0) & (LABEL < 3)
    assert (own > np.asarray(dense))[is_class].all()
