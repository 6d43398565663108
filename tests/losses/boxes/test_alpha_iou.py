"""α-IoU loss."""

import pytest

import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, close, gradient, iou, values

PLAIN = {
    "iou": (v.iou_loss, {"mode": "linear", "eps": 0.0}),
    "giou": (v.giou_loss, {}),
    "diou": (v.diou_loss, {}),
    "ciou": (v.ciou_loss, {"gated": False}),
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("mode", PLAIN)
def test_alpha_1_is_the_plain_loss(mode):
    loss, config = PLAIN[mode]
    close(values(v.alpha_iou_loss, mode=mode, alpha=1.0), values(loss, **config))
    close(gradient(v.alpha_iou_loss, mode=mode, alpha=1.0), gradient(loss, **config))


def test_it_is_powers():
    close(values(v.alpha_iou_loss, alpha=3.0), 1 - iou() ** 3)
    penalty = values(v.giou_loss) - 1 + iou()
    close(values(v.alpha_iou_loss, mode="giou", alpha=3.0), 1 - iou() ** 3 + penalty**3)
    penalty = values(v.diou_loss) - 1 + iou()
    close(values(v.alpha_iou_loss, mode="diou", alpha=3.0), 1 - iou() ** 3 + penalty**3)
    huge = 1e3 * PRED, 1e3 * TARGET  # whose sides to the twelfth are no float32
    close(values(v.alpha_iou_loss, *huge, mode="diou", alpha=6.0), 1 - iou() ** 6 + penalty**6)


def test_another_mode_raises():
    with pytest.raises(ValueError, match="AlphaIoULoss: mode must be one of"):
        v.build_loss({"type": "AlphaIoULoss", "mode": "linear"})
    with pytest.raises(ValueError, match="alpha_iou_loss: mode must be one of"):
        v.alpha_iou_loss(PRED, TARGET, mode="linear")
