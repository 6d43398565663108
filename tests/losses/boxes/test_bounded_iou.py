"""Bounded IoU loss."""

import jax
import numpy as np

import visdet_jax as v
from losses.boxes.pairs import boxes, centred, close, values


def test_by_coordinate():
    target = np.float32([[0, 0, 20, 10]])
    shifted = target + np.float32([[2, 0, 2, 0]])
    error = 1 - 16 / 24
    close(values(v.bounded_iou_loss, shifted, target, eps=0.0), [[error - 0.1, 0, 0, 0]])
    wider = centred([[25, 10]], (10, 5))
    close(values(v.bounded_iou_loss, wider, target, eps=0.0), [[0, 0, 0.2**2 / 0.4, 0]])


def test_it_weights_coordinates():
    pred, target = boxes(0), boxes(1)
    weight = (np.random.default_rng(0).random((32, 4)) < 0.5).astype(np.float32)
    each = values(v.bounded_iou_loss, pred, target)
    close(v.bounded_iou_loss(pred, target, weight, reduction="none"), each * weight)
    close(v.bounded_iou_loss(pred, target, weight[:, 0]), (each * weight[:, :1]).mean())
    close(v.bounded_iou_loss(pred, target, weight, avg_factor=7.0), (each * weight).sum() / 7)
    close(v.bounded_iou_loss(pred, target, weight, reduction="sum"), (each * weight).sum())


def test_no_gradient_flows_into_target():
    pred, target = boxes(0), boxes(1)
    gradient = jax.grad(v.bounded_iou_loss, argnums=1)(pred, target)
    assert not gradient.any()


def test_the_gradient_of_the_sum_is_that_of_the_values():
    """By pred and by the weights; one box has none, and is not read."""
    pred, target = boxes(0), boxes(1)
    weight = (np.random.default_rng(0).random((32, 4)) < 0.5).astype(np.float32)
    weight[3], pred[3] = 0, np.nan

    def by_values(pred, weight):
        return v.bounded_iou_loss(pred, target, weight, reduction="none").mean()

    def by_sums(pred, weight):
        return v.bounded_iou_loss(pred, target, weight)

    both = (jax.grad(total, argnums=(0, 1))(pred, weight) for total in (by_sums, by_values))
    for actual, expected in zip(*both, strict=True):
        close(actual, expected)
        assert not np.asarray(actual)[3].any()


def test_a_gpu_gets_the_sum_of_four_as_a_loss_of_boxes():
    """See `_sum_of_costs` and `join_lanes`: one loop, and no array (..., 4) of values."""
    both = jax.jit(jax.value_and_grad(v.bounded_iou_loss))
    text = both.trace(boxes(0), boxes(1)).lower(lowering_platforms=("cuda",)).as_text()
    assert "(tensor<32x4xui8>) -> tensor<32xf32>" in text
    assert "stablehlo.concatenate" not in text
