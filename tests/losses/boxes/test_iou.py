"""IoU and GIoU loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import programs
import visdet_jax as v
from losses.boxes.pairs import boxes, close, values

PRED, TARGET = boxes(0, 16, least=1.0), boxes(1, 16, least=1.0)


def test_equal_boxes_cost_nothing():
    for mode in ("linear", "square", "log"):
        close(values(v.iou_loss, PRED, PRED, mode=mode), 0)
    close(values(v.giou_loss, PRED, PRED), 0)


def test_giou_is_at_most_iou_and_at_least_minus_1():
    linear = values(v.iou_loss, PRED, TARGET, mode="linear", eps=0.0)
    giou = values(v.giou_loss, PRED, TARGET)
    assert (giou >= linear - 1e-6).all()
    assert (giou <= 2).all()


def test_they_do_not_change_with_scale():
    for loss in (v.iou_loss, v.giou_loss):
        close(loss(PRED * 8, TARGET * 8), loss(PRED, TARGET))


def test_boxes_apart_have_a_gradient_in_giou_only():
    near, far = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[50.0, 0, 60, 10]])
    assert not jax.grad(lambda p: v.iou_loss(p, far))(near).any()
    close(v.iou_loss(near, far), -np.log(1e-6))
    assert jax.grad(lambda p: v.giou_loss(p, far))(near)[0, 2] < 0


def test_half_float_boxes_of_300_pixels():
    pred = jnp.array([[0, 0, 300, 300]], jnp.float16)
    target = jnp.array([[0, 0, 300, 150]], jnp.float16)
    for loss in (v.iou_loss, v.giou_loss):
        value, gradient = jax.value_and_grad(lambda p, loss=loss: loss(p, target))(pred)
        assert np.isfinite(value)
        assert gradient.any()


def test_the_gradient_of_giou_stores_two_arrays():
    """See `giou_loss`: with a second union it is 2.75."""
    pred, target = jnp.asarray(boxes(0, 32768)), jnp.asarray(boxes(1, 32768))
    both = jax.value_and_grad(v.giou_loss)
    assert programs.temporary_bytes(both, pred, target) < 2.5 * pred.nbytes


@pytest.mark.parametrize(
    "spell",
    [
        lambda: v.IoULoss(linear=True),
        lambda: v.build_loss({"type": "IoULoss", "linear": True}),
        lambda: v.iou_loss(boxes(2)[:3], boxes(3)[:3], linear=True),
    ],
)
def test_linear_is_a_deprecated_spelling(spell):
    with pytest.warns(DeprecationWarning, match='write mode="linear"') as caught:
        result = spell()
    assert caught[0].filename == __file__  # the user's line, not flax's or jax's
    if isinstance(result, v.IoULoss):
        assert result == v.IoULoss(mode="linear")
    else:
        close(result, v.iou_loss(boxes(2)[:3], boxes(3)[:3], mode="linear"))
