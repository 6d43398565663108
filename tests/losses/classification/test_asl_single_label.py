"""Asymmetric loss of one class a row: the formula, and what it is without focus."""

import numpy as np

import visdet_jax as v
from losses.classification.class_scores import (
    LABEL,
    ONE_HOT,
    PRED,
    assert_derivative,
    close,
    log_softmax,
)


def test_without_focus_it_is_smoothed_cross_entropy():
    value = v.asl_single_label(PRED, LABEL, gamma_neg=0.0, eps=0.2, reduction="none")
    close(value, v.cross_entropy(PRED, LABEL, label_smoothing=0.2, reduction="none"))


def test_the_formula_and_labels(x64):
    x, y = PRED.astype(np.float64), ONE_HOT.astype(np.float64)

    def formula(x):
        log_p = log_softmax(x)
        p = np.exp(log_p)
        focus = np.where(y == 1, (1 - p) ** 0.5, p**1.5)
        return -((0.7 * y + 0.3 / 5) * focus * log_p).sum(1)

    options = {"gamma_pos": 0.5, "gamma_neg": 1.5, "eps": 0.3, "reduction": "none"}
    close(v.asl_single_label(x, LABEL, **options), formula(x), 1e-9)
    assert_derivative(lambda x: v.asl_single_label(x, LABEL, **options), formula, x)
    labels = np.where(np.arange(16) < 2, [-1, 5] * 8, LABEL)
    values = np.asarray(v.asl_single_label(x, labels, reduction="none"))
    assert values[0] == 0
    np.testing.assert_array_equal(np.isnan(values), np.arange(16) == 1)
