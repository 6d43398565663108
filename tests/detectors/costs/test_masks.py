"""Match costs of masks: their formulas pair by pair, shapes, ranges, errors."""

import numpy as np
import pytest

from visdet_jax.detectors import (
    CrossEntropyLossCost,
    DiceCost,
    FocalLossCost,
    Instances,
    cross_entropy_loss_cost,
    dice_cost,
    mask_focal_loss_cost,
)

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 2, (6, 3, 4)).astype(np.float32)
MASKS = (RNG.random((5, 3, 4)) < 0.5).astype(np.float32)
P = 1 / (1 + np.exp(-LOGITS.astype(float)))


def of_each_pair(formula):
    """`formula` of each predicted mask's probabilities and each ground truth's mask."""
    return [[formula(p, t) for t in MASKS.astype(float)] for p in P]


@pytest.mark.parametrize("eps", [1e-3, 1.0, 0.0])
@pytest.mark.parametrize("naive_dice", [True, False])
def test_dice(eps, naive_dice):
    def formula(p, t):
        sums = p.sum() + t.sum() if naive_dice else (p**2).sum() + (t**2).sum()
        return 1 - (2 * (p * t).sum() + eps) / (sums + eps)

    options = {"eps": eps, "naive_dice": naive_dice}
    expected = of_each_pair(formula)
    actual = dice_cost(P.astype(np.float32), MASKS, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    actual = dice_cost(LOGITS, MASKS, pred_act=True, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)


def test_nothing_against_nothing_costs_0_by_dice():
    nothing = np.zeros((1, 3), np.float32)
    for eps in (0.0, 1e-3):
        assert dice_cost(nothing, nothing, eps=eps) == 0


def test_cross_entropy():
    expected = of_each_pair(lambda p, t: -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
    np.testing.assert_allclose(cross_entropy_loss_cost(LOGITS, MASKS), expected, rtol=1e-5)


@pytest.mark.parametrize(("alpha", "gamma", "eps"), [(0.25, 2.0, 1e-12), (0.6, 1.5, 1e-3)])
def test_focal_loss(alpha, gamma, eps):
    def formula(p, t):
        positive = alpha * (1 - p) ** gamma * -np.log(p + eps)
        negative = (1 - alpha) * p**gamma * -np.log(1 - p + eps)
        return (positive * t + negative * (1 - t)).mean()

    settings = {"alpha": alpha, "gamma": gamma, "eps": eps}
    expected = of_each_pair(formula)
    actual = mask_focal_loss_cost(LOGITS, MASKS, **settings)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6)
    cost = FocalLossCost(binary_input=True, weight=2.0, **settings)
    by_class = cost(Instances(masks=LOGITS), Instances(masks=MASKS))
    np.testing.assert_allclose(by_class, 2 * np.array(expected), rtol=1e-4, atol=1e-6)


ALL = [dice_cost, cross_entropy_loss_cost, mask_focal_loss_cost]


@pytest.mark.parametrize("cost", ALL)
def test_masks_of_integers_bools_and_one_axis_more(cost):
    expected = np.asarray(cost(LOGITS, MASKS))
    for dtype in (np.uint8, np.int32, bool):
        np.testing.assert_array_equal(cost(LOGITS, MASKS.astype(dtype)), expected)
    np.testing.assert_array_equal(cost(LOGITS[:, None], MASKS), expected)


@pytest.mark.parametrize("cost", ALL)
def test_errors(cost):
    name = cost.__name__
    with pytest.raises(ValueError, match=f"^{name}: pred and target must have the same size, got"):
        cost(LOGITS, MASKS[:, :2])
    with pytest.raises(ValueError, match=rf"^{name}: pred and target must have shapes \(Q, \.\.\."):
        cost(LOGITS[0, 0], MASKS)
    with pytest.raises(TypeError, match=f"^{name}: pred must be floating point, got int32"):
        cost(LOGITS.astype(np.int32), MASKS)


def test_numbers_that_mean_nothing_raise():
    for name, value in (("alpha", 1.5), ("gamma", -1.0), ("eps", -1.0)):
        with pytest.raises(ValueError, match=f"^mask_focal_loss_cost: {name} must be "):
            mask_focal_loss_cost(LOGITS, MASKS, **{name: value})
        with pytest.raises(ValueError, match=f"^FocalLossCost: {name} must be "):
            FocalLossCost(binary_input=True, **{name: value})
    with pytest.raises(ValueError, match=r"^dice_cost: eps must be at least 0, got -1"):
        dice_cost(LOGITS, MASKS, eps=-1.0)
    with pytest.raises(ValueError, match=r"^DiceCost: eps must be at least 0, got -1"):
        DiceCost(eps=-1.0)


def test_cross_entropy_has_no_softmax_form():
    with pytest.raises(ValueError, match=r"^CrossEntropyLossCost: use_sigmoid must be True"):
        CrossEntropyLossCost(use_sigmoid=False)
