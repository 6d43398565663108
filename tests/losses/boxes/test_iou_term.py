"""Inner-IoU and Focaler-IoU, which may replace the IoU in the losses of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, close, gradient, iou, values

LOSSES = [
    (v.iou_loss, {"mode": "linear", "eps": 0.0}),
    (v.giou_loss, {}),
    (v.diou_loss, {}),
    (v.ciou_loss, {"gated": False}),
    (v.siou_loss, {"neg_gamma": True}),
    (v.efficient_iou_loss, {}),
    (v.mpdiou_loss, {"image_shape": (100, 120)}),
    (v.shape_iou_loss, {"scale": 1.0}),
]
every_loss = pytest.mark.parametrize(("loss", "config"), LOSSES)


def scaled(x, ratio):
    centre, half = (x[:, :2] + x[:, 2:]) / 2, ratio * (x[:, 2:] - x[:, :2]) / 2
    return np.concatenate([centre - half, centre + half], 1)


@pytest.mark.one_in(4)
@every_loss
def test_the_options_replace_the_iou(loss, config):
    rest = values(loss, **config) + iou()
    inner = iou(scaled(PRED, 0.7), scaled(TARGET, 0.7))
    close(values(loss, inner_ratio=0.7, **config), rest - inner)
    focused = np.clip((iou() - 0.2) / 0.5, 0, 1)
    assert 0 < np.isin(focused, (0, 1)).sum() < len(focused)
    close(values(loss, focaler=(0.2, 0.7), **config), rest - focused)
    both = np.clip((inner - 0.2) / 0.5, 0, 1)
    close(values(loss, inner_ratio=0.7, focaler=(0.2, 0.7), **config), rest - both)


@pytest.mark.one_in(4)
@every_loss
def test_ratio_1_and_bounds_0_and_1_change_nothing(loss, config):
    neutral = {"inner_ratio": 1.0, "focaler": (0.0, 1.0)}
    close(values(loss, **neutral, **config), values(loss, **config))
    close(gradient(loss, **neutral, **config), gradient(loss, **config))


def test_modes_are_of_the_replaced_iou():
    term = 1 - values(v.iou_loss, mode="linear", inner_ratio=1.3)
    close(values(v.iou_loss, mode="square", inner_ratio=1.3), 1 - term**2)
    close(values(v.iou_loss, mode="log", inner_ratio=1.3), -np.log(term))


def test_the_gradient_of_focaler_iou():
    outside = (iou() < 0.3) | (iou() > 0.6)
    plain = gradient(v.iou_loss, mode="linear")
    focused = gradient(v.iou_loss, mode="linear", focaler=(0.3, 0.6))
    assert 0 < outside.sum() < len(outside)
    close(focused, np.where(outside[:, None], 0, plain / 0.3))


@pytest.mark.parametrize(
    "options",
    [
        {"focaler": (0.9, 0.1)},
        {"focaler": (0.5, 0.5)},
        {"focaler": (0.1,)},
        {"focaler": (0.0, np.inf)},
        {"inner_ratio": 0.0},
        {"inner_ratio": -1.0},
    ],
)
def test_options_that_mean_nothing_raise(options):
    (name,) = options
    for loss in ("GIoULoss", "MPDIoULoss"):
        with pytest.raises(ValueError, match=f"{loss}: {name} must be"):
            v.build_loss({"type": loss, **options})


def test_options_that_mean_nothing_raise_in_a_function():
    with pytest.raises(ValueError, match="giou_loss: focaler must be a pair"):
        v.giou_loss(PRED, TARGET, focaler=(0.0, 0.5, 0.9))
    with pytest.raises(ValueError, match="giou_loss: inner_ratio must be above 0, got -1"):
        v.giou_loss(PRED, TARGET, inner_ratio=-1.0)


def test_options_are_swept_by_vmap():
    ratios, tops = jnp.array([0.7, 1.0, 1.3]), jnp.array([0.6, 0.8, 0.95])
    swept = jax.vmap(lambda r, u: v.diou_loss(PRED, TARGET, inner_ratio=r, focaler=(0.0, u)))
    close(swept(ratios, tops)[2], v.diou_loss(PRED, TARGET, inner_ratio=1.3, focaler=(0.0, 0.95)))


def test_functions_and_classes_describe_the_options():
    for loss, _ in LOSSES:
        assert "inner_ratio: Replaces the IoU by Inner-IoU" in loss.__doc__
        assert "focaler: Two numbers (d, u)" in loss.__doc__
    for cls in (v.GIoULoss, v.MPDIoULoss):
        assert "inner_ratio: Replaces the IoU by Inner-IoU" in cls.__doc__
