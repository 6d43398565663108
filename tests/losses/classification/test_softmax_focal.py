"""Softmax focal loss: what it is in special cases, and which labels it takes."""

import jax
import numpy as np
import pytest
from jax.experimental import checkify

import visdet_jax as v
from losses.classification.class_scores import LABEL, MAPS, PRED, REGIONS, close


def test_of_gamma_0_it_is_cross_entropy():
    options = {"class_weight": (0.5, 1, 2, 0.25, 1.5), "ignore_index": 3, "avg_non_ignore": True}
    for pred, target in ((PRED, LABEL), (MAPS, REGIONS)):
        got = jax.value_and_grad(v.SoftmaxFocalLoss(gamma=0.0, **options))(pred, target)
        expected = jax.value_and_grad(v.CrossEntropyLoss(**options))(pred, target)
        jax.tree.map(close, got, expected)
    close(v.SoftmaxFocalLoss(class_weight=2.0)(PRED, LABEL), 2 * v.SoftmaxFocalLoss()(PRED, LABEL))


def test_of_two_classes_it_is_the_sigmoid_focal_loss():
    """Of the difference of the logits, class 0 being background: 1 - alpha, alpha."""
    label = LABEL % 2
    pred, gap = PRED[:, :2], PRED[:, 1:2] - PRED[:, :1]
    options = {"gamma": 1.5, "reduction": "none"}
    focal = v.sigmoid_focal_loss(gap, label[:, None].astype(np.float32), alpha=0.3, **options)
    of_classes = np.array([0.7, 0.3], np.float32)
    close(v.softmax_focal_loss(pred, label, class_weight=of_classes, **options), focal[:, 0])


def test_labels():
    labels = np.where(np.arange(16) < 2, [-1, 5] * 8, LABEL)
    values = np.asarray(v.softmax_focal_loss(PRED, labels, reduction="none"))
    assert values[0] == 0
    np.testing.assert_array_equal(np.isnan(values), np.arange(16) == 1)
    with pytest.warns(UserWarning, match="SoftmaxFocalLoss: ignored labels count in the mean"):
        loss = v.SoftmaxFocalLoss(ignore_index=3)
    with pytest.raises(checkify.JaxRuntimeError, match=r"target\[1\] is 5: .* or 3 to be ignored"):
        v.checked(loss)(PRED, labels)
    with pytest.raises(ValueError, match=r"softmax_focal_loss: pred must have shape \(N, C, ...\)"):
        loss(PRED[0], LABEL)
