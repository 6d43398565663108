"""What the formulas must give whatever the reference says: limits, special cases, bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 3, (16, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, 16)
ONE_HOT = np.eye(5, dtype=np.float32)[LABEL]
OTHER = RNG.normal(0, 3, (16, 5)).astype(np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def boxes(seed):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 50, (16, 2)), rng.uniform(1, 50, (16, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def test_quality_focal_of_beta_0_is_binary_cross_entropy():
    score = RNG.random(16).astype(np.float32)
    target = ONE_HOT * score[:, None]
    expected = v.binary_cross_entropy(PRED, target, reduction="none").sum(1)
    close(v.quality_focal_loss(PRED, (LABEL, score), beta=0.0, reduction="none"), expected)
    close(v.quality_focal_loss(PRED, target, beta=0.0, reduction="none"), expected)


def test_quality_focal_labels_outside_are_background():
    score = np.ones(16, np.float32)
    background = v.quality_focal_loss(PRED, np.zeros_like(PRED))
    for outside in (-1, 5, 99):
        close(v.quality_focal_loss(PRED, (np.full(16, outside), score)), background)


HALF = np.full(PRED.shape, 0.5, np.float32)


def test_quality_focal_is_0_where_the_score_is_met():
    for beta in (0.5, 2):
        value, gradient = jax.value_and_grad(
            lambda p, beta=beta: v.quality_focal_loss(p, HALF, beta=beta, reduction="sum")
        )(jnp.zeros_like(PRED))
        assert value == 0
        assert not np.any(gradient)
    score = jax.nn.sigmoid(PRED)
    close(v.quality_focal_loss(PRED, score, reduction="none"), 0)


def test_distribution_focal_at_the_bins_is_cross_entropy():
    close(
        v.distribution_focal_loss(PRED, LABEL.astype(np.float32), reduction="none"),
        v.cross_entropy(PRED, LABEL, reduction="none"),
    )


def test_distribution_focal_is_linear_between_bins():
    low = v.distribution_focal_loss(PRED, np.full(16, 2.0, np.float32))
    high = v.distribution_focal_loss(PRED, np.full(16, 3.0, np.float32))
    middle = v.distribution_focal_loss(PRED, np.full(16, 2.25, np.float32))
    close(middle, 0.75 * low + 0.25 * high)


@pytest.mark.parametrize("loss", [v.l1_loss, v.smooth_l1_loss, v.mse_loss, v.balanced_l1_loss])
def test_equal_inputs_cost_nothing(loss):
    value, gradient = jax.value_and_grad(lambda p: loss(p, PRED))(PRED)
    assert value == 0
    assert not gradient.any()


def test_smooth_l1_is_hubers_loss_over_beta():
    for beta in (0.1, 1.0, 2.5):
        huber = optax.losses.huber_loss(jnp.asarray(PRED), jnp.asarray(OTHER), delta=beta) / beta
        close(v.smooth_l1_loss(PRED, OTHER, beta=beta, reduction="none"), huber)


def test_smooth_l1_of_small_beta_is_l1():
    close(v.smooth_l1_loss(PRED, OTHER, beta=1e-6), v.l1_loss(PRED, OTHER))


def test_balanced_l1_keeps_the_digits_of_small_errors():
    diff = np.float64([1e-7, 1e-5, 1e-3])
    b = np.expm1(3.0)
    exact = 0.5 / b * (b * diff) ** 2 / 2  # the first term of the series
    single = v.balanced_l1_loss(diff.astype(np.float32), np.zeros(3, np.float32), reduction="none")
    close(single[:2], exact[:2], rtol=1e-4, atol=0)
    close(single[0], exact[0], rtol=1e-6, atol=0)


def test_iou_losses_of_equal_boxes_are_0():
    for mode in ("linear", "square", "log"):
        close(v.iou_loss(boxes(0), boxes(0), mode=mode, reduction="none"), 0)
    close(v.giou_loss(boxes(0), boxes(0), reduction="none"), 0)


def test_giou_is_at_most_iou_and_at_least_minus_1():
    linear = np.asarray(v.iou_loss(boxes(0), boxes(1), mode="linear", eps=0.0, reduction="none"))
    giou = np.asarray(v.giou_loss(boxes(0), boxes(1), reduction="none"))
    assert (giou >= linear - 1e-6).all()
    assert (giou <= 2).all()


def test_iou_losses_do_not_change_with_scale():
    for loss in (v.iou_loss, v.giou_loss):
        close(loss(boxes(0) * 8, boxes(1) * 8), loss(boxes(0), boxes(1)))


def test_boxes_apart_have_a_slope_in_giou_only():
    near, far = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[50.0, 0, 60, 10]])
    assert not jax.grad(lambda p: v.iou_loss(p, far))(near).any()
    close(v.iou_loss(near, far), -np.log(1e-6))
    assert jax.grad(lambda p: v.giou_loss(p, far))(near)[0, 2] < 0


def test_box_weights_by_coordinate_count_by_their_mean():
    weight = RNG.random((16, 4)).astype(np.float32)
    for loss in (v.iou_loss, v.giou_loss):
        close(loss(boxes(0), boxes(1), weight), loss(boxes(0), boxes(1), weight.mean(1)))


def test_half_float_boxes_of_300_pixels():
    pred = jnp.array([[0, 0, 300, 300]], jnp.float16)
    target = jnp.array([[0, 0, 300, 150]], jnp.float16)
    for loss in (v.iou_loss, v.giou_loss):
        value, gradient = jax.value_and_grad(lambda p, loss=loss: loss(p, target))(pred)
        assert np.isfinite(value)
        assert gradient.any()


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


def test_dice_of_equal_masks_and_of_nothing():
    mask = (RNG.random((3, 8, 8)) > 0.5).astype(np.float32)
    nothing = np.zeros_like(mask)
    for eps in (0.0, 1e-3):
        for naive in (False, True):
            close(v.dice_loss(mask, mask, naive_dice=naive, eps=eps), 0, atol=1e-4)
        assert v.dice_loss(nothing, nothing, eps=eps) == 1
        assert v.dice_loss(nothing, nothing, naive_dice=True, eps=eps) == 0


def test_dice_with_logits_is_dice_of_sigmoid():
    pred = RNG.normal(size=(3, 4, 4)).astype(np.float32)
    mask = (RNG.random((3, 4, 4)) > 0.5).astype(np.float32)
    close(v.dice_loss_with_logits(pred, mask), v.dice_loss(jax.nn.sigmoid(pred), mask))


def test_accuracy():
    scores = np.eye(5, dtype=np.float32)
    assert v.accuracy(scores, np.arange(5)) == 100
    assert v.accuracy(scores, np.array([0, 1, 2, 0, 0])) == 60
    assert [float(a[0]) for a in v.accuracy(scores, np.arange(5), topk=(1, 3))] == [100, 100]
    assert v.accuracy(0.4 * scores, np.arange(5), thresh=0.5) == 0
    with pytest.raises(ValueError, match="accuracy: topk 6 must be from 1 to the 5 classes"):
        v.accuracy(scores, np.arange(5), topk=6)
    with pytest.raises(TypeError, match="accuracy: topk must be an integer or a tuple"):
        v.accuracy(scores, np.arange(5), topk=[1, 2])
