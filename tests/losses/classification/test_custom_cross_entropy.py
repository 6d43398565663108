"""Cross entropy of V3Det's classifier: its channels, scores and accuracy."""

import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import LABEL, PRED, close


def test_channels_scores_and_accuracy():
    loss = v.CrossEntropyCustomLoss(num_classes=5)
    assert loss.get_cls_channels(5) == 6
    assert v.CrossEntropyCustomLoss(num_classes=5, use_sigmoid=True).get_cls_channels(5) == 5
    with pytest.raises(ValueError, match="built for 5 classes, asked for 4"):
        loss.get_cls_channels(4)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got -1"):
        v.CrossEntropyCustomLoss(num_classes=-1)
    background = np.full(16, 5)
    assert loss.get_accuracy(np.zeros((16, 6), np.float32), background)["acc_classes"] == 0
    close(loss.get_activation(np.zeros((2, 6), np.float32)), np.full((2, 6), 1 / 6))


def test_it_takes_the_options_of_cross_entropy():
    options = {"poly_epsilon": 0.5, "label_smoothing": 0.1}
    custom = v.CrossEntropyCustomLoss(num_classes=4, **options)
    close(custom(PRED, LABEL), v.CrossEntropyLoss(**options)(PRED, LABEL))
