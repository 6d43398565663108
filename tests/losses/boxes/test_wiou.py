"""Wise-IoU loss and its running mean."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

import programs
import visdet_jax as v
from losses.boxes.pairs import PRED, TARGET, close, gradient, iou, values
from visdet_jax.losses.boxes.wiou import Base


def test_version_1_by_hand():
    centre = (PRED - TARGET)[:, :2] + (PRED - TARGET)[:, 2:]
    enclosing = np.maximum(PRED, TARGET)[:, 2:] - np.minimum(PRED, TARGET)[:, :2]
    factor = np.exp((centre**2).sum(1) / 4 / (enclosing**2).sum(1))
    loss = v.WIoULoss(version=1, reduction="none")
    assert loss.init() == ()
    close(loss(PRED, TARGET), factor * (1 - iou()))


BASES = {
    "wiou": lambda *boxes, **options: v.wiou_loss(*boxes, version=1, **options),
    "iou": lambda *boxes, **options: v.iou_loss(*boxes, mode="linear", eps=0.0, **options),
    "giou": v.giou_loss,
    "diou": v.diou_loss,
    "ciou": lambda *boxes, **options: v.ciou_loss(*boxes, gated=False, **options),
    "siou": lambda *boxes, **options: v.siou_loss(*boxes, neg_gamma=True, **options),
    "eiou": v.efficient_iou_loss,
}


def test_every_base_is_tested():
    assert tuple(BASES) == typing.get_args(Base)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("base", BASES)
def test_it_focuses_by_a_constant(base):
    state = v.WIoUState(jnp.float32(0.4))
    beta = (1 - iou()) / np.float32(0.4)
    focus = {1: np.ones(16), 2: np.sqrt(beta), 3: beta / (3 * 1.9 ** (beta - 3))}
    for version in (2, 3) if base == "wiou" else (3,):
        config = {"base": base, "version": version, "alpha": 1.9, "delta": 3.0}
        close(values(v.wiou_loss, state=state, **config), focus[version] * values(BASES[base]))
        constant = focus[version][:, None] * gradient(BASES[base])
        close(gradient(v.wiou_loss, state=state, **config), constant)


def test_running_mean():
    loss, state = v.WIoULoss(momentum=0.25), v.WIoUState(jnp.float32(0.8))
    weight = np.where(np.arange(16) < 10, 0.5, 0).astype(np.float32)
    pred = np.where(weight[:, None] == 0, np.nan, PRED)
    target = TARGET.copy()
    pred[2] = target[2] = 7  # no union
    _, after = loss.update(state, pred, target, weight)
    counted = np.delete(np.arange(10), 2)
    close(after.iou_mean, 0.75 * 0.8 + 0.25 * (1 - iou()[counted]).mean())
    for batch in ((pred, target, 0 * weight), (pred[2:3], target[2:3]), (pred[:0], target[:0])):
        value, same = loss.update(state, *batch)
        assert same.iou_mean == state.iou_mean
        assert np.isfinite(value)


@pytest.mark.parametrize("mean", [0.0, 1e-38, 1e-6, 1e6])
@pytest.mark.parametrize("version", [2, 3])
def test_finite_for_any_mean(mean, version):
    config = {"state": v.WIoUState(jnp.float32(mean)), "version": version}
    assert np.isfinite(values(v.wiou_loss, **config)).all()
    assert np.isfinite(gradient(v.wiou_loss, **config)).all()


def test_the_focus_is_an_exp_and_no_power():
    """See `_focus`: on a CPU a power takes five times as long."""
    state = v.WIoUState(jnp.float32(0.4))
    text = programs.compiled(lambda p, t: v.wiou_loss(p, t, state=state), PRED, TARGET).as_text()
    assert " exponential(" in text
    assert " power(" not in text


def test_what_raises():
    with pytest.raises(ValueError, match="wiou_loss: version 3 needs a state"):
        v.wiou_loss(PRED, TARGET)
    with pytest.raises(ValueError, match="wiou_loss: base must be one of wiou, iou"):
        v.wiou_loss(PRED, TARGET, version=1, base="focal")
    with pytest.raises(ValueError, match="wiou_loss: version must be one of 1, 2, 3; got 4"):
        v.wiou_loss(PRED, TARGET, version=4)
    for config in ({"version": 4}, {"base": "focal"}, {"momentum": 1.5}, {"delta": 0.0}):
        (name,) = config
        with pytest.raises(ValueError, match=f"WIoULoss: {name} must be"):
            v.WIoULoss(**config)
    with pytest.raises(TypeError, match="WIoULoss keeps running statistics"):
        v.WIoULoss()(PRED, TARGET)
