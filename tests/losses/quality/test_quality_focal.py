"""Quality focal loss: its special cases, its background and its weights of both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import LABEL, ONE_HOT, PRED, close
from losses.quality import qualities

HALF = np.full(PRED.shape, 0.5, np.float32)


def test_of_beta_0_it_is_binary_cross_entropy():
    score = np.random.default_rng(0).random(16).astype(np.float32)
    target = ONE_HOT * score[:, None]
    expected = v.binary_cross_entropy(PRED, target, reduction="none").sum(1)
    close(v.quality_focal_loss(PRED, (LABEL, score), beta=0.0, reduction="none"), expected)
    close(v.quality_focal_loss(PRED, target, beta=0.0, reduction="none"), expected)


def test_labels_outside_are_background():
    score = np.ones(16, np.float32)
    background = v.quality_focal_loss(PRED, np.zeros_like(PRED))
    for outside in (-1, 5, 99):
        close(v.quality_focal_loss(PRED, (np.full(16, outside), score)), background)


def test_it_is_0_where_the_score_is_met():
    for beta in (0.5, 2):
        value, gradient = jax.value_and_grad(
            lambda p, beta=beta: v.quality_focal_loss(p, HALF, beta=beta, reduction="sum")
        )(jnp.zeros_like(PRED))
        assert value == 0
        assert not np.any(gradient)
    score = jax.nn.sigmoid(PRED)
    close(v.quality_focal_loss(PRED, score, reduction="none"), 0)


@pytest.mark.parametrize("config", [{"alpha": 0.25}, {"beta": 0.5}])
def test_label_and_score_are_a_dense_target(config):
    qualities.assert_pair_is_dense(v.QualityFocalLoss(reduction="sum", **config))


def test_alpha_is_the_weight_of_positives():
    pred, target = qualities.PRED, (qualities.LABEL, qualities.IOU)
    plain = np.asarray(v.quality_focal_loss(pred, target, reduction="sum"))
    half = v.quality_focal_loss(pred, target, alpha=0.5, reduction="sum")
    close(half, plain / 2)
    positives = v.quality_focal_loss(pred, target, alpha=1.0, reduction="sum")
    negatives = v.quality_focal_loss(pred, target, alpha=0.0, reduction="sum")
    close(positives + negatives, plain)
