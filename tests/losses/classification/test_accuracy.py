"""Top-k accuracy: by hand, with a threshold, of labels of every width."""

import numpy as np
import pytest

import visdet_jax as v
from visdet_jax.losses.classification.accuracy import masked_accuracy

SCORES = np.eye(5, dtype=np.float32)


def test_by_hand():
    assert v.accuracy(SCORES, np.arange(5)) == 100
    assert v.accuracy(SCORES, np.array([0, 1, 2, 0, 0])) == 60
    assert [float(a[0]) for a in v.accuracy(SCORES, np.arange(5), topk=(1, 3))] == [100, 100]
    assert v.accuracy(0.4 * SCORES, np.arange(5), thresh=0.5) == 0


def test_of_nothing_it_is_0():
    assert v.accuracy(SCORES[:0], np.arange(0)) == 0
    rows = np.array([True, False, False, True, False])
    assert masked_accuracy(SCORES, np.array([0, 0, 0, 0, 0]), rows) == 50
    assert masked_accuracy(SCORES, np.arange(5), rows & False) == 0


def test_labels_of_every_width(x64):
    """uint8 cannot count 300 classes, and int64 is not promoted to by itself."""
    scores, labels = np.eye(300, dtype=np.float32)[[0, 44, 200]], np.array([0, 44, 200])
    for dtype in (np.uint8, np.int16, np.uint32, np.int64):
        assert v.accuracy(scores, labels.astype(dtype)) == 100
    assert v.accuracy(scores, np.array([0, 44, -1], np.int8)) == np.float32(200 / 3)


def test_errors():
    with pytest.raises(ValueError, match="accuracy: topk 6 must be from 1 to the 5 classes"):
        v.accuracy(SCORES, np.arange(5), topk=6)
    for topk in ([1, 2], True, 1.0, "1"):
        with pytest.raises(TypeError, match="accuracy: topk must be an integer or a tuple"):
            v.accuracy(SCORES, np.arange(5), topk=topk)
    with pytest.raises(ValueError, match="accuracy: thresh must be finite, got nan"):
        v.accuracy(SCORES, np.arange(5), thresh=np.nan)
    with pytest.raises(TypeError, match="accuracy: pred must be an array, got list"):
        v.accuracy([[1.0]], np.arange(1))
    with pytest.raises(ValueError, match="Accuracy: topk must be at least 1, got 0"):
        v.Accuracy(topk=0)
    with pytest.raises(ValueError, match=r"Accuracy: topk must be at least 1, got \(1, 0\)"):
        v.Accuracy(topk=(1, 0))
