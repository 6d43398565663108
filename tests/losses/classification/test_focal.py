"""Focal loss: special cases, PolyLoss's term, labels and weights, and the form of V3Det."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import visdet_jax as v
from losses.classification.class_scores import (
    LABEL,
    ONE_HOT,
    OTHER,
    PRED,
    SOFT,
    assert_derivatives_by_pred_and_options,
    close,
    miss,
)


def test_of_gamma_0_it_is_weighted_cross_entropy():
    bce = v.binary_cross_entropy(PRED, ONE_HOT, reduction="none")
    focal = v.sigmoid_focal_loss(PRED, LABEL, gamma=0.0, alpha=0.25, reduction="none")
    close(focal, np.where(ONE_HOT == 1, 0.25, 0.75) * bce)


def test_labels_one_hot_targets_and_probabilities_agree():
    expected = v.sigmoid_focal_loss(PRED, LABEL, reduction="none")
    close(v.sigmoid_focal_loss(PRED, ONE_HOT, reduction="none"), expected)
    close(v.sigmoid_focal_loss(PRED, ONE_HOT.astype(np.int32), reduction="none"), expected)
    probabilities = np.asarray(jax.nn.sigmoid(PRED))
    activated = v.sigmoid_focal_loss(probabilities, LABEL, activated=True, reduction="none")
    close(activated, expected, atol=1e-5)


def test_it_equals_that_of_optax():
    close(
        v.sigmoid_focal_loss(PRED, ONE_HOT, reduction="none"),
        optax.losses.sigmoid_focal_loss(
            jnp.asarray(PRED), jnp.asarray(ONE_HOT), alpha=0.25, gamma=2.0
        ),
    )


def test_background_and_ignored_rows():
    label = LABEL.copy()
    label[0], label[1], label[2] = 5, -1, 6
    values = np.asarray(v.sigmoid_focal_loss(PRED, label, reduction="none"))
    none = np.zeros((1, 5), np.float32)
    close(values[:1], v.sigmoid_focal_loss(PRED[:1], none, reduction="none"))
    assert not values[1].any()
    assert np.isnan(values[2]).all()
    gradient = jax.grad(lambda p: v.sigmoid_focal_loss(p, label))(PRED)
    assert not gradient[1].any()


def test_weights_in_three_shapes():
    weight = np.random.default_rng(0).random((16, 5)).astype(np.float32)
    by_value = v.sigmoid_focal_loss(PRED, LABEL, weight)
    close(v.sigmoid_focal_loss(PRED, LABEL, weight.ravel()), by_value)
    rows = np.repeat(weight[:, :1], 5, 1)
    close(v.sigmoid_focal_loss(PRED, LABEL, weight[:, 0]), v.sigmoid_focal_loss(PRED, LABEL, rows))
    with pytest.raises(TypeError, match="sigmoid_focal_loss: weight must be an array, got list"):
        v.sigmoid_focal_loss(PRED, LABEL, [1.0] * 16)


def test_without_alpha_both_sides_have_the_same_weight():
    twice = 2 * v.FocalLoss(alpha=0.5)(PRED, LABEL)
    close(v.FocalLoss(alpha=None)(PRED, LABEL), twice)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
@pytest.mark.parametrize("target", [LABEL, SOFT], ids=["indices", "soft"])
def test_poly_epsilon_adds_its_term(gamma, target):
    t = ONE_HOT if target is LABEL else target
    expected = 0.7 * miss(PRED, t) ** (gamma + 1)
    for activated in (False, True):
        pred = jax.nn.sigmoid(PRED) if activated else PRED
        options = {"gamma": gamma, "activated": activated, "reduction": "none"}
        for alpha in (0.25, None):
            plain = v.sigmoid_focal_loss(pred, target, alpha=alpha, **options)
            poly = v.sigmoid_focal_loss(pred, target, alpha=alpha, poly_epsilon=0.7, **options)
            close(poly - plain, expected)


OPTIONS = {
    "of labels": (LABEL, {"poly_epsilon": 0.7, "alpha": 0.3}, {"gamma": 1.5}),
    "of scores": (SOFT, {"poly_epsilon": 0.7}, {"alpha": None}),
    "of probabilities": (SOFT, {"poly_epsilon": 0.7, "alpha": 0.3}, {"activated": True}),
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", OPTIONS)
def test_derivatives_by_pred_and_by_the_options(name, x64):
    target, numbers, config = OPTIONS[name]
    pred = np.asarray(jax.nn.sigmoid(PRED.astype(np.float64))) if "activated" in config else PRED
    assert_derivatives_by_pred_and_options(v.FocalLoss, pred, target, numbers, config)


def test_focal_custom_is_the_focal_loss_of_its_classes():
    loss = v.build_loss({"type": "FocalCustomLoss", "num_classes": 5})
    close(loss(PRED, LABEL), v.sigmoid_focal_loss(PRED, LABEL))
    assert loss.get_cls_channels(5) == 5
    assert loss.custom_cls_channels
    assert loss.custom_activation
    assert loss.custom_accuracy
    wider = np.concatenate([PRED, OTHER], 1)
    close(loss.get_activation(wider), jax.nn.sigmoid(PRED))
    label = LABEL.copy()
    label[:4] = 5
    accuracy = 100 * (PRED.argmax(1) == LABEL)[4:].mean()
    close(loss.get_accuracy(wider, label)["acc_classes"], [accuracy])
    with pytest.raises(ValueError, match="FocalCustomLoss: built for 5 classes, asked for 4"):
        loss.get_cls_channels(4)


def test_accuracy_of_more_classes_than_the_labels_can_count():
    """300 is 44 in int8: class 100 would be background."""
    loss = v.FocalCustomLoss(num_classes=300)
    scores = np.eye(300, dtype=np.float32)[[100, 1, 100]]
    accuracy = loss.get_accuracy(scores, jnp.int8([100, 100, 100]))["acc_classes"]
    close(accuracy, 200 / 3)


def test_focal_custom_takes_the_options():
    options = {"poly_epsilon": 0.5, "alpha": None}
    custom = v.FocalCustomLoss(num_classes=5, **options)
    close(custom(PRED, LABEL), v.FocalLoss(**options)(PRED, LABEL))


def test_keys_of_focal_custom():
    for config in ({}, {"num_classes": 0}, {"num_classes": 5, "activated": True}):
        with pytest.raises(ValueError, match="FocalCustomLoss"):
            v.build_loss(dict(type="FocalCustomLoss", **config))
