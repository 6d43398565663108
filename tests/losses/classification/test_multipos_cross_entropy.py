"""Cross entropy of several right classes: its special cases, its pairs and its memory."""

import jax
import numpy as np

import visdet_jax as v
from losses.classification.class_scores import LABEL, ONE_HOT, PRED, close
from programs import temporary_bytes


def test_of_one_right_class_it_is_cross_entropy():
    close(
        v.multi_pos_cross_entropy(PRED, ONE_HOT, reduction="none"),
        v.cross_entropy(PRED, LABEL, reduction="none"),
    )


def test_it_is_the_log_of_all_pairs():
    right = np.random.default_rng(0).random((16, 5)) < 0.5
    right[0], right[1] = False, True
    expected = []
    for x, mask in zip(PRED.astype(np.float64), right, strict=True):
        expected.append(np.log1p(np.exp(x[~mask][:, None] - x[mask][None]).sum()))
    close(v.multi_pos_cross_entropy(PRED, right.astype(np.int32), reduction="none"), expected)
    gradient = jax.grad(lambda p: v.multi_pos_cross_entropy(p, right.astype(np.int32)))(PRED)
    assert np.isfinite(gradient).all()
    assert not gradient[:2].any()


def test_without_classes_it_is_0():
    nothing = np.zeros((3, 0), np.float32)
    value, gradient = jax.value_and_grad(v.multi_pos_cross_entropy)(nothing, nothing)
    assert value == 0
    assert gradient.shape == (3, 0)


def test_it_needs_memory_for_its_logits_only():
    """Not for all pairs of classes."""
    pred = np.zeros((16, 2000), np.float32)
    assert temporary_bytes(jax.grad(v.multi_pos_cross_entropy), pred, pred) < 20 * pred.nbytes
