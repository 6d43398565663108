"""Cross entropy over classes, and what the class of all cross entropies takes and raises."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import visdet_jax as v
from losses.classification.class_scores import (
    CLASS_WEIGHT,
    LABEL,
    MAPS,
    ONE_HOT,
    PRED,
    REGIONS,
    SOFT,
    assert_derivatives_by_pred_and_options,
    close,
    log_softmax,
)


def test_one_hot_targets_cost_what_labels_do():
    close(v.cross_entropy(PRED, ONE_HOT), v.cross_entropy(PRED, LABEL))
    weight = np.array([0.5, 1, 2, 0.1, 3], np.float32)
    close(
        v.cross_entropy(PRED, ONE_HOT, class_weight=weight, reduction="none"),
        weight[LABEL] * v.cross_entropy(PRED, LABEL, reduction="none"),
    )
    close(
        v.cross_entropy(PRED, LABEL),
        optax.losses.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(PRED), jnp.asarray(LABEL)
        ).mean(),
    )


def test_an_offset_changes_nothing():
    close(v.cross_entropy(PRED + 100, LABEL), v.cross_entropy(PRED, LABEL), rtol=1e-4)


def test_the_mean_may_be_over_the_kept_rows():
    label = np.where(np.arange(16) < 4, 255, LABEL)
    kept = v.cross_entropy(PRED[4:], LABEL[4:])
    close(v.cross_entropy(PRED, label, ignore_index=255, avg_non_ignore=True), kept)
    close(v.cross_entropy(PRED, label, ignore_index=255), kept * 12 / 16)
    everything = np.full(16, 255)
    assert v.cross_entropy(PRED, everything, ignore_index=255, avg_non_ignore=True) == 0


def test_poly_epsilon_adds_its_term():
    p = np.exp(log_softmax(PRED))
    weighted = {"class_weight": CLASS_WEIGHT, "reduction": "none"}
    for target, t in ((LABEL, ONE_HOT), (SOFT, SOFT)):
        plain = v.cross_entropy(PRED, target, **weighted)
        poly = v.cross_entropy(PRED, target, poly_epsilon=0.7, **weighted)
        close(poly - plain, 0.7 * (CLASS_WEIGHT * t * (1 - p)).sum(1))


OPTIONS = {
    "smoothed": (LABEL, {"poly_epsilon": 0.7, "label_smoothing": 0.1}, {}),
    "of labels": (LABEL, {"poly_epsilon": -1.0}, {"class_weight": (1, 2, 3, 4, 5)}),
    "of scores": (SOFT, {"poly_epsilon": 0.7, "label_smoothing": 0.1}, {}),
    "of sigmoids": (
        SOFT,
        {"poly_epsilon": 0.7},
        {"use_sigmoid": True, "class_weight": (1, 2, 3, 4, 5)},
    ),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", OPTIONS)
def test_derivatives_by_pred_and_by_the_options(name, x64):
    assert_derivatives_by_pred_and_options(v.CrossEntropyLoss, PRED, *OPTIONS[name])


def test_label_smoothing_is_torchs():
    """(1 - s) w_y CE_y + s / C Σ_c w_c CE_c, the row's class and every class by its own weight."""
    cost = -log_softmax(PRED)
    expected = (CLASS_WEIGHT * cost * (0.9 * ONE_HOT + 0.1 / 5)).sum(1)
    options = {"class_weight": CLASS_WEIGHT, "reduction": "none"}
    close(v.cross_entropy(PRED, LABEL, label_smoothing=0.1, **options), expected)
    close(v.cross_entropy(PRED, ONE_HOT, label_smoothing=0.1, **options), expected)
    mixed = (CLASS_WEIGHT * cost * (0.9 * SOFT + 0.1 / 5)).sum(1)
    close(v.cross_entropy(PRED, SOFT, label_smoothing=0.1, **options), mixed)
    close(
        v.cross_entropy(PRED, LABEL, label_smoothing=0.0, **options),
        v.cross_entropy(PRED, LABEL, **options),
    )


def test_label_smoothing_of_ignored_rows_and_of_maps():
    labels = np.where(REGIONS == 3, -1, np.where(REGIONS == 4, 255, REGIONS))
    cost = -log_softmax(MAPS)
    own = np.moveaxis(np.eye(5)[REGIONS], -1, 1)
    expected = np.where(REGIONS < 3, (cost * (0.8 * own + 0.2 / 5)).sum(1), 0)
    options = {"label_smoothing": 0.2, "ignore_index": 255}
    close(v.cross_entropy(MAPS, labels, reduction="none", **options), expected)
    mean = v.cross_entropy(MAPS, labels, avg_non_ignore=True, **options)
    close(mean, expected.sum() / (REGIONS < 3).sum())
    assert np.isnan(v.cross_entropy(MAPS, labels, label_smoothing=0.2))  # 255 is no class


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label_smoothing": 0.1, "use_sigmoid": True}, "label_smoothing is softmax's"),
        ({"label_smoothing": 0.1, "use_mask": True}, "label_smoothing is softmax's"),
        ({"bg_cls_weight": 0.1, "use_sigmoid": True}, "bg_cls_weight is softmax's"),
        ({"bg_cls_weight": -0.1}, "bg_cls_weight must be at least 0, got -0.1"),
        ({"class_weight": (0.5, -1.0)}, "class_weight must be at least 0, got "),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"poly_epsilon": 1.0, "use_mask": True}, "use_mask takes no poly_epsilon"),
        ({"use_sigmoid": True, "use_mask": True}, "use_sigmoid and use_mask exclude each other"),
    ],
)
def test_configs_that_raise(config, message):
    with pytest.raises(ValueError, match=f"CrossEntropyLoss: {message}"):
        v.CrossEntropyLoss(**config)


def test_the_weight_of_classes_must_be_an_array():
    with pytest.raises(TypeError, match="cross_entropy: class_weight must be an array, got tuple"):
        v.cross_entropy(PRED, LABEL, class_weight=(1.0, 2.0, 3.0, 4.0, 5.0))


def test_calls_that_raise():
    pred, target = np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32)
    loss, label = v.CrossEntropyLoss(use_mask=True), np.zeros(2, int)
    with pytest.raises(ValueError, match="use_mask needs the masks' class indices"):
        loss(pred, target)
    with pytest.raises(ValueError, match="use_mask takes no ignore_index"):
        loss(pred, target, label, ignore_index=1)
    with pytest.raises(ValueError, match="use_mask takes no ignore_index"):
        v.CrossEntropyLoss(use_mask=True, ignore_index=255, avg_non_ignore=True)
    with pytest.raises(ValueError, match="label= belongs to use_mask=True"):
        v.CrossEntropyLoss()(PRED, LABEL, label=LABEL)


def test_ignored_labels_in_the_mean_are_warned_of():
    with pytest.warns(UserWarning, match="ignored labels count in the mean"):
        v.CrossEntropyLoss(ignore_index=255)
    v.CrossEntropyLoss(ignore_index=255, avg_non_ignore=True)
    v.CrossEntropyLoss(ignore_index=255, reduction="sum")
