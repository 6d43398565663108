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


def test_focal_of_gamma_0_is_weighed_cross_entropy():
    bce = v.binary_cross_entropy(PRED, ONE_HOT, reduction="none")
    focal = v.sigmoid_focal_loss(PRED, LABEL, gamma=0.0, alpha=0.25, reduction="none")
    close(focal, np.where(ONE_HOT == 1, 0.25, 0.75) * bce)


def test_focal_of_labels_one_hot_and_probabilities_agree():
    expected = v.sigmoid_focal_loss(PRED, LABEL, reduction="none")
    close(v.sigmoid_focal_loss(PRED, ONE_HOT, reduction="none"), expected)
    close(v.sigmoid_focal_loss(PRED, ONE_HOT.astype(np.int32), reduction="none"), expected)
    probabilities = np.asarray(jax.nn.sigmoid(PRED))
    activated = v.sigmoid_focal_loss(probabilities, LABEL, activated=True, reduction="none")
    close(activated, expected, atol=1e-5)


def test_focal_equals_optax():
    close(
        v.sigmoid_focal_loss(PRED, ONE_HOT, reduction="none"),
        optax.losses.sigmoid_focal_loss(
            jnp.asarray(PRED), jnp.asarray(ONE_HOT), alpha=0.25, gamma=2.0
        ),
    )


def test_focal_background_and_ignored_rows():
    label = LABEL.copy()
    label[0], label[1], label[2] = 5, -1, 6
    values = np.asarray(v.sigmoid_focal_loss(PRED, label, reduction="none"))
    none = np.zeros((1, 5), np.float32)
    close(values[:1], v.sigmoid_focal_loss(PRED[:1], none, reduction="none"))
    assert not values[1].any()
    assert np.isnan(values[2]).all()
    gradient = jax.grad(lambda p: v.sigmoid_focal_loss(p, label))(PRED)
    assert not gradient[1].any()


def test_focal_takes_weights_in_three_shapes():
    weight = RNG.random((16, 5)).astype(np.float32)
    by_value = v.sigmoid_focal_loss(PRED, LABEL, weight)
    close(v.sigmoid_focal_loss(PRED, LABEL, weight.ravel()), by_value)
    rows = np.repeat(weight[:, :1], 5, 1)
    close(v.sigmoid_focal_loss(PRED, LABEL, weight[:, 0]), v.sigmoid_focal_loss(PRED, LABEL, rows))


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


def test_cross_entropy_of_one_hot_is_that_of_labels():
    close(v.cross_entropy(PRED, ONE_HOT), v.cross_entropy(PRED, LABEL))
    weight = np.array([0.5, 1, 2, 0.1, 3], np.float32)
    close(
        v.cross_entropy(PRED, ONE_HOT, class_weight=weight, reduction="none"),
        weight[LABEL] * v.cross_entropy(PRED, LABEL, reduction="none"),
    )
    close(
        v.cross_entropy(PRED, LABEL),
        optax.losses.softmax_cross_entropy_with_integer_labels(
            jnp.asarray(PRED), jnp.asarray(LABEL)
        ).mean(),
    )


def test_cross_entropy_does_not_change_with_an_offset():
    close(v.cross_entropy(PRED + 100, LABEL), v.cross_entropy(PRED, LABEL), rtol=1e-4)


def test_cross_entropy_averages_over_kept_rows():
    label = np.where(np.arange(16) < 4, 255, LABEL)
    kept = v.cross_entropy(PRED[4:], LABEL[4:])
    close(v.cross_entropy(PRED, label, ignore_index=255, avg_non_ignore=True), kept)
    close(v.cross_entropy(PRED, label, ignore_index=255), kept * 12 / 16)
    everything = np.full(16, 255)
    assert v.cross_entropy(PRED, everything, ignore_index=255, avg_non_ignore=True) == 0
    kept = v.binary_cross_entropy(PRED[4:], LABEL[4:])
    close(v.binary_cross_entropy(PRED, label, ignore_index=255, avg_non_ignore=True), kept)


def test_an_ignored_row_is_not_read():
    label, pred = LABEL.copy(), PRED.copy()
    label[3], pred[3] = -100, np.nan
    for loss in (v.cross_entropy, v.binary_cross_entropy):
        value, gradient = jax.value_and_grad(lambda p, loss=loss: loss(p, label))(pred)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_binary_cross_entropy_class_weight_is_the_weight_of_positives():
    weight = np.array([0.5, 1, 2, 0.1, 3], np.float32)
    plain = v.binary_cross_entropy(PRED, LABEL, reduction="none")
    weighed = v.binary_cross_entropy(PRED, LABEL, class_weight=weight, reduction="none")
    close(weighed, np.where(ONE_HOT == 1, weight, 1) * plain)


def test_mask_cross_entropy_is_that_of_each_class_mask():
    pred = RNG.normal(size=(4, 3, 2, 5)).astype(np.float32)
    target = (RNG.random((4, 2, 5)) > 0.5).astype(np.float32)
    label = np.array([2, 0, -1, 1])
    own = pred[np.arange(4), label]
    expected = np.array(v.binary_cross_entropy(own, target, reduction="none"))
    expected[2] = 0
    close(v.mask_cross_entropy(pred, target, label, reduction="none"), expected)
    close(v.mask_cross_entropy(pred, target, label), expected.mean())
    weight = np.array([1.0, 2.0, 5.0], np.float32)
    close(
        v.mask_cross_entropy(pred, target, label, class_weight=weight, reduction="none"),
        expected * weight[label][:, None, None],
    )
    loss = v.CrossEntropyLoss(use_mask=True)
    close(loss(pred, target, label), loss(pred, target, label=label))
    rows = np.array([1.0, 0, 0, 2], np.float32)
    close(loss(pred, target, rows, label=label), (expected * rows[:, None, None]).mean())
    assert np.isnan(v.mask_cross_entropy(pred, target, label + 2))


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


def test_ignored_labels_in_the_mean_are_warned_of():
    with pytest.warns(UserWarning, match="ignored labels count in the mean"):
        v.CrossEntropyLoss(ignore_index=255)
    v.CrossEntropyLoss(ignore_index=255, avg_non_ignore=True)
    v.CrossEntropyLoss(ignore_index=255, reduction="sum")


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


def test_gaussian_focal_without_gaussians_is_focal():
    p = RNG.uniform(0.01, 0.99, (16, 5)).astype(np.float32)
    focal = v.sigmoid_focal_loss(p, ONE_HOT, activated=True, alpha=0.5, reduction="none")
    close(v.gaussian_focal_loss(p, ONE_HOT, reduction="none"), 2 * focal)


def test_gaussian_focal_with_listed_positives():
    p = RNG.uniform(0.01, 0.99, (16, 5)).astype(np.float32)
    inds = np.arange(16)
    plain = v.gaussian_focal_loss(p, ONE_HOT, reduction="sum")
    listed = v.gaussian_focal_loss_with_pos_inds(p, ONE_HOT, inds, LABEL, reduction="sum")
    close(listed, plain)
    # Empty slots change nothing, NaN in an unlisted pixel's weight neither; no positives are 0.
    loss = v.GaussianFocalLoss()
    some = loss(p, ONE_HOT, pos_inds=inds[:3], pos_labels=LABEL[:3])
    slots = np.concatenate([inds[:3], [-1, -1]]), np.concatenate([LABEL[:3], [0, 9]])
    close(loss(p, ONE_HOT, pos_inds=slots[0], pos_labels=slots[1]), some)
    none = loss(p, ONE_HOT, pos_inds=np.array([-1]), pos_labels=np.array([0]))
    close(none, v.GaussianFocalLoss(pos_weight=0.0)(p, ONE_HOT))
    for beyond in ((99, 0), (0, 5)):
        assert np.isnan(
            loss(
                p,
                ONE_HOT,
                pos_inds=beyond[0] * np.ones(1, int),
                pos_labels=beyond[1] * np.ones(1, int),
            )
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_inds": LABEL}, "pos_inds and pos_labels must be given together"),
        (
            {"pos_inds": LABEL, "pos_labels": LABEL, "weight": np.ones(16, np.float32)},
            "weight has no meaning with pos_inds",
        ),
        (
            {"pos_inds": LABEL, "pos_labels": LABEL, "reduction_override": "none"},
            'reduction="none" has no shape',
        ),
    ],
)
def test_gaussian_focal_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        v.GaussianFocalLoss()(ONE_HOT, ONE_HOT, **options)


def test_mask_refusals():
    pred, target = np.zeros((2, 3, 4, 4), np.float32), np.zeros((2, 4, 4), np.float32)
    loss, label = v.CrossEntropyLoss(use_mask=True), np.zeros(2, int)
    with pytest.raises(ValueError, match="use_mask needs the masks' class indices"):
        loss(pred, target)
    with pytest.raises(ValueError, match="use_mask knows no ignore_index"):
        loss(pred, target, label, ignore_index=1)
    with pytest.raises(ValueError, match="use_mask knows no ignore_index"):
        v.CrossEntropyLoss(use_mask=True, ignore_index=255, avg_non_ignore=True)
    with pytest.raises(ValueError, match="label= belongs to use_mask=True"):
        v.CrossEntropyLoss()(PRED, LABEL, label=LABEL)


def test_custom_cross_entropy_channels():
    loss = v.CrossEntropyCustomLoss(num_classes=5)
    assert loss.get_cls_channels(5) == 6
    assert v.CrossEntropyCustomLoss(num_classes=5, use_sigmoid=True).get_cls_channels(5) == 5
    with pytest.raises(ValueError, match="built for 5 classes, asked for 4"):
        loss.get_cls_channels(4)
    with pytest.raises(ValueError, match="num_classes must be > 0, got -1"):
        v.CrossEntropyCustomLoss(num_classes=-1)
    background = np.full(16, 5)
    assert loss.get_accuracy(np.zeros((16, 6), np.float32), background)["acc_classes"] == 0
    close(loss.get_activation(np.zeros((2, 6), np.float32)), np.full((2, 6), 1 / 6))


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
