"""DIoU and CIoU loss."""

import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, boxes, centred, close, gradient, iou, values
from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.losses.boxes.diou import aspect_difference


@pytest.mark.parametrize("seed", range(3))
def test_order_and_bounds(seed):
    pred, target = boxes(seed), boxes(seed + 10)
    diou = values(v.diou_loss, pred, target)
    ciou = values(v.ciou_loss, pred, target)
    assert (diou >= 1 - iou(pred, target) - 1e-5).all()
    assert (ciou >= diou - 1e-5).all()
    assert (ciou <= 2).all()


def test_diou_of_concentric_boxes_is_iou():
    sizes = np.random.default_rng(0).uniform(5, 40, (2, 16, 2))
    pred, target = centred(sizes[0]), centred(sizes[1])
    close(values(v.diou_loss, pred, target), 1 - iou(pred, target))


def test_ciou_of_one_shape_is_diou():
    pred, target = boxes(0), boxes(1)
    side = target[:, :2] + (pred[:, 2:] - pred[:, :2]) * np.float32(1.5)
    target = np.concatenate([target[:, :2], side], 1)
    close(values(v.ciou_loss, pred, target), values(v.diou_loss, pred, target), atol=1e-5)


def test_ciou_adds_the_aspect_ratio():
    """Two boxes with one centre: IoU 0.6, and the angles' difference."""
    pred, target = centred([[20, 10]]), centred([[20, 6]])
    difference = 4 / np.pi**2 * (np.arctan(20 / 6) - np.arctan(2)) ** 2
    alpha = difference / (0.4 + difference)
    close(v.ciou_loss(pred, target), 0.4 + alpha * difference)
    apart = pred + np.float32(15)
    close(v.ciou_loss(apart, target), v.diou_loss(apart, target))  # IoU below 0.5: no alpha


def test_ciou_without_the_gate():
    gated, plain = values(v.ciou_loss), values(v.ciou_loss, gated=False)
    above = iou() > 0.5
    assert 0 < above.sum() < len(above)
    close(plain[above], gated[above])
    assert (plain[~above] > gated[~above]).all()


def test_ciou_holds_alpha_constant(x64):
    """The derivative of 1 - IoU + d² / c² + alpha v where alpha is that of the point itself."""
    pred, target = PRED.astype(float), TARGET.astype(float)
    angle = np.arctan2(target[:, 2] - target[:, 0], target[:, 3] - target[:, 1])

    def v_of(p):
        return 4 / np.pi**2 * (angle - np.arctan2(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])) ** 2

    alpha = v_of(pred) / (1 - iou(pred, target) + v_of(pred))
    step = 1e-5 * np.random.default_rng(1).normal(size=pred.shape)
    along_step = (alpha * (v_of(pred + step) - v_of(pred - step)) / 2).sum()
    along_step += (gradient(v.diou_loss, pred, target) * step).sum()
    actual = (gradient(v.ciou_loss, pred, target, gated=False) * step).sum()
    close(actual, along_step, 1e-6, 1e-12)


def test_the_aspect_ratio_of_inverted_boxes():
    """arctan(w / h) is the same for (w, h) and (-w, -h)."""
    sizes = np.float32([[3, 4], [-3, 4], [3, -4], [-3, -4]])
    for other in sizes[:, ::-1]:
        others = np.broadcast_to(other, sizes.shape)
        pair = pair_geometry(*(jnp.asarray(centred(x, (0, 0))) for x in (sizes, others)))
        angle1, angle2 = (np.arctan(x[:, 0] / x[:, 1]) for x in (sizes, others))
        close(aspect_difference(pair, 0), 4 / np.pi**2 * (angle2 - angle1) ** 2)


def test_a_small_difference_of_aspect_ratios_keeps_its_digits():
    """See `aspect_difference`: that of two arctans has four times the error."""
    sizes1 = np.random.default_rng(0).uniform(20, 60, (100, 2)).astype(np.float32)
    sizes2 = sizes1 * np.float32([1 + 1e-4, 1])
    pair = pair_geometry(*(jnp.asarray(centred(sizes, (0, 0))) for sizes in (sizes1, sizes2)))
    # The sizes as they are in float32, so that only the angle is compared.
    w1, h1, w2, h2 = (
        np.asarray(x, np.float64) for x in (pair.width1, pair.height1, pair.width2, pair.height2)
    )
    exact = 4 / np.pi**2 * (np.arctan(w2 / h2) - np.arctan(w1 / h1)) ** 2
    close(aspect_difference(pair, 0), exact, rtol=3e-3, atol=0)
    first, second = (jnp.arctan(w / h) for w, h in zip(pair[0:4:2], pair[1:4:2], strict=True))
    of_two_angles = 4 / np.pi**2 * (second - first) ** 2
    assert np.abs(of_two_angles / exact - 1).max() > 5e-3
