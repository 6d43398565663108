"""IoU-aware cross entropy: its target, and the ranks of the rows of one object."""

from pathlib import Path

import jax
import numpy as np
import pytest

import visdet_jax as v
from golden.read_golden import read
from losses.quality.qualities import (
    IOU,
    ONE_HOT,
    PRED,
    assert_value_and_derivative,
    bce,
    close,
    sigmoid,
)


def test_value_and_derivative(x64):
    loss = v.IoUAwareBCELoss(gamma=1.5, alpha=0.75, reduction="sum")
    q = ONE_HOT * IOU[:, None]

    def formula(x, held):
        t = ONE_HOT * np.maximum(sigmoid(held) ** 0.75 * q**0.25, 0.01)
        return np.where(ONE_HOT > 0, 1, sigmoid(x) ** 1.5) * bce(x, t)

    assert_value_and_derivative(loss, formula)


def test_quality_has_no_gradient_and_is_finite_at_saturated_logits():
    pred = np.array([[-1e4], [-17], [0], [17], [1e4]], np.float32)
    iou = np.array([0, 0.5, 1, 0.5, 1], np.float32)
    label = np.zeros(5, int)
    for alpha in (0.0, 0.25, 1.0):
        quality = np.asarray(v.iou_aware_quality(pred, label, iou, alpha=alpha))
        assert ((quality >= 0.01) & (quality <= 1)).all()
    for outside in (-1, 1, 99):
        assert np.isfinite(v.iou_aware_quality(pred, np.full(5, outside), iou)).all()
    gradient = jax.grad(lambda x: v.iou_aware_quality(x, label, iou).sum())(pred)
    assert not gradient.any()


def test_rank_weight():
    quality = np.array([[0.3, 0.6, 0.5, 0.6, 0.9, 0.2], [0.1] * 6], np.float32)
    gt_inds = np.array([[1, 1, 1, 1, 0, 2], [3, 3, 0, 3, 0, 0]], np.int32)
    rank = np.array([[3, 0, 2, 1, 0, 0], [0, 1, 0, 2, 0, 0]])
    for dtype in (np.int32, np.int8, np.uint8):
        weight = v.rank_weight(quality, gt_inds.astype(dtype), tau=2.0)
        close(weight, np.exp(-rank / 2))
    with pytest.raises(TypeError, match="rank_weight: gt_inds must hold integer"):
        v.rank_weight(quality, gt_inds.astype(np.float32))
    with pytest.raises(ValueError, match="rank_weight: tau must be above 0, got 0"):
        v.rank_weight(quality, gt_inds, tau=0.0)


def test_rank_weights_of_the_goldens():
    path = Path(__file__).parents[2] / "golden" / "later" / "aligndetr.IABCELoss.npz"
    ranked = [case for case, _ in read(path) if "w_prime" in case["inputs"]]
    assert len(ranked) == 2
    for case in ranked:
        tau = float(case["name"].partition("tau")[2])
        row = np.arange(len(case["inputs"]["w_prime"]))
        quality = (1 - row / 10).astype(np.float32)
        weight = v.rank_weight(quality, np.ones_like(row, np.int32), tau=tau)
        np.testing.assert_allclose(weight, case["inputs"]["w_prime"], rtol=1e-6)


def test_only_rows_that_count_have_a_rank():
    loss = v.IoUAwareBCELoss(tau=1.5, reduction="none")
    pred, iou = np.broadcast_to(PRED[:1], (4, 3)), np.full(4, 0.5, np.float32)
    label, gt_inds = np.array([0, 0, 0, 3]), np.array([1, 1, 1, 1])

    def call(weight):
        return np.asarray(loss(pred, (label, iou), np.float32(weight), gt_inds=gt_inds))

    plain = v.iou_aware_bce_loss(pred, (label, iou), reduction="none")
    first, second, third = call([1, 1, 1, 1])[:3]
    assert first == plain[0]
    close(call([0, 1, 1, 1]), [0, first, second, plain[3]])
    close(call([1, 0, 0, 1])[0], first)
    assert third != second


def test_errors():
    loss = v.IoUAwareBCELoss(tau=1.5, reduction="none")
    pred, iou = np.broadcast_to(PRED[:1], (4, 3)), np.full(4, 0.5, np.float32)
    label, gt_inds = np.array([0, 0, 0, 3]), np.array([1, 1, 1, 1])
    with pytest.raises(ValueError, match="iou_aware_bce_loss: gt_inds must say which rows"):
        loss(pred, (label, iou))
    with pytest.raises(ValueError, match=r"gt_inds must have shape \(4,\), got \(3,\)"):
        loss(pred, (label, iou), gt_inds=gt_inds[:3])
    with pytest.raises(TypeError, match=r"iou_aware_bce_loss: target must be \(label, iou\)"):
        loss(pred, pred)
