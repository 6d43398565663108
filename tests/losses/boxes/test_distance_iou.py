"""DIoU, CIoU, EIoU, SIoU and Bounded IoU: special cases, bounds, and boxes as bad as they get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v

PER_BOX = [v.diou_loss, v.ciou_loss, v.eiou_loss, v.siou_loss]
ALL = [*PER_BOX, v.bounded_iou_loss]

every_loss = pytest.mark.parametrize("loss", ALL, ids=lambda loss: loss.__name__)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def boxes(seed, n=32):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 50, (n, 2)), rng.uniform(5, 50, (n, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def centred(sizes, centre=(40, 60)):
    half, centre = np.asarray(sizes, np.float32) / 2, np.float32(centre)
    return np.concatenate([centre - half, centre + half], 1)


def one_minus_iou(pred, target):
    return v.iou_loss(pred, target, mode="linear", eps=0.0, reduction="none")


@every_loss
def test_equal_boxes_cost_nothing(loss):
    target = boxes(0)
    value, gradient = jax.value_and_grad(lambda p: loss(p, target, reduction="sum"))(target)
    close(value, 0, atol=1e-4)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("seed", range(3))
def test_order_and_bounds(seed):
    pred, target = boxes(seed), boxes(seed + 10)
    iou = np.asarray(one_minus_iou(pred, target))
    diou = np.asarray(v.diou_loss(pred, target, reduction="none"))
    ciou = np.asarray(v.ciou_loss(pred, target, reduction="none"))
    assert (diou >= iou - 1e-5).all()
    assert (ciou >= diou - 1e-5).all()
    assert (ciou <= 2).all()
    for neg_gamma in (False, True):
        siou = np.asarray(v.siou_loss(pred, target, neg_gamma=neg_gamma, reduction="none"))
        assert ((siou >= 0) & (siou <= 2)).all()


def test_diou_of_concentric_boxes_is_iou():
    sizes = np.random.default_rng(0).uniform(5, 40, (2, 16, 2))
    pred, target = centred(sizes[0]), centred(sizes[1])
    close(v.diou_loss(pred, target, reduction="none"), one_minus_iou(pred, target))


def test_ciou_of_one_shape_is_diou():
    pred, target = boxes(0), boxes(1)
    side = target[:, :2] + (pred[:, 2:] - pred[:, :2]) * np.float32(1.5)
    target = np.concatenate([target[:, :2], side], 1)
    close(
        v.ciou_loss(pred, target, reduction="none"),
        v.diou_loss(pred, target, reduction="none"),
        atol=1e-5,
    )


def test_ciou_adds_the_aspect_ratio():
    """Two boxes with one centre: IoU 0.6, and the angles' difference."""
    pred, target = centred([[20, 10]]), centred([[20, 6]])
    difference = 4 / np.pi**2 * (np.arctan(20 / 6) - np.arctan(2)) ** 2
    alpha = difference / (0.4 + difference)
    close(v.ciou_loss(pred, target), 0.4 + alpha * difference)
    apart = pred + np.float32(15)
    close(v.ciou_loss(apart, target), v.diou_loss(apart, target))  # IoU below 0.5: no alpha


def test_eiou_is_iou_less_half_its_smooth_point():
    target = boxes(0)
    size = target[:, 2:] - target[:, :2]
    shift = np.concatenate([size, size], 1) * np.float32(0.3)
    error = np.asarray(one_minus_iou(target + shift, target))
    close(v.eiou_loss(target + shift, target, reduction="none"), error - 0.05)
    near = np.asarray(one_minus_iou(target + shift / 30, target))
    expected = near**2 / 0.2
    close(v.eiou_loss(target + shift / 30, target, reduction="none"), expected, atol=1e-5)


def test_eiou_grows_with_the_distance_of_boxes_apart():
    target = np.float32([[0, 0, 10, 10]])
    shift = np.float32([[1, 0, 1, 0]])
    values = [float(v.eiou_loss(target + k * shift, target)) for k in (10, 12, 20, 50, 500)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.95)
    assert 1.9 < values[-1] < 1.95


def test_siou_rewards_distance_unless_told_otherwise():
    """The numbers of the docstring."""
    target = np.float32([[0, 0, 10, 10]])
    shift = np.float32([[1, 0, 1, 0]])
    steps = (0, 1, 3, 6, 9, 12, 20, 50)
    pred = np.concatenate([target + k * shift for k in steps])
    target = np.repeat(target, len(steps), 0)
    values = v.siou_loss(pred, target, reduction="none")
    close(values, [0, 0.17, 0.41, 0.59, 0.66, 0.59, 0.28, 0], atol=0.006)
    paper = np.asarray(v.siou_loss(pred, target, neg_gamma=True, reduction="none"))
    assert (np.diff(paper) > 0).all()


def test_siou_angle_is_the_sine_of_twice_the_angle():
    """One row with the trigonometric form, in float64's NumPy."""
    pred, target = np.float32([[0, 0, 12, 9]]), np.float32([[4, 7, 15, 20]])
    eps = 1e-6
    dx, dy = 9.5 - 6 + eps, 13.5 - 4.5 + eps
    sine = min(dx, dy) / np.hypot(dx, dy)
    gamma = np.cos(2 * np.arcsin(sine) - np.pi / 2) - 2
    distance = 2 - np.exp(gamma * (dx / 15) ** 2) - np.exp(gamma * (dy / 20) ** 2)
    shape = (1 - np.exp(-1 / 12)) ** 4 + (1 - np.exp(-4 / 13)) ** 4
    iou = 16 / (108 + 143 - 16)
    close(v.siou_loss(pred, target, neg_gamma=True), 1 - iou + (distance + shape) / 2)


def test_bounded_iou_by_coordinate():
    target = np.float32([[0, 0, 20, 10]])
    shifted = target + np.float32([[2, 0, 2, 0]])
    error = 1 - 16 / 24
    close(
        v.bounded_iou_loss(shifted, target, eps=0.0, reduction="none"),
        [[error - 0.1, 0, 0, 0]],
    )
    wider = centred([[25, 10]], (10, 5))
    close(
        v.bounded_iou_loss(wider, target, eps=0.0, reduction="none"),
        [[0, 0, 0.2**2 / 0.4, 0]],
    )


def test_bounded_iou_weighs_coordinates():
    pred, target = boxes(0), boxes(1)
    weight = (np.random.default_rng(0).random((32, 4)) < 0.5).astype(np.float32)
    values = np.asarray(v.bounded_iou_loss(pred, target, reduction="none"))
    close(v.bounded_iou_loss(pred, target, weight, reduction="none"), values * weight)
    close(v.bounded_iou_loss(pred, target, weight[:, 0]), (values * weight[:, :1]).mean())
    gradient = jax.grad(v.bounded_iou_loss, argnums=1)(pred, target)
    assert not gradient.any()


@pytest.mark.parametrize("loss", PER_BOX, ids=lambda loss: loss.__name__)
def test_a_weight_per_coordinate_counts_by_its_mean(loss):
    pred, target = boxes(0), boxes(1)
    weight = np.random.default_rng(0).random((32, 4)).astype(np.float32)
    close(loss(pred, target, weight), loss(pred, target, weight.mean(1)))
    with pytest.raises(ValueError, match=loss.__name__):
        loss(pred, target, weight[:, :2])


@every_loss
def test_finite_for_any_four_numbers(loss):
    """Inverted, empty, equal, touching, tiny and huge boxes in every combination drawn."""
    rng = np.random.default_rng(0)
    numbers = np.float32(
        [0, 1, 2, 5, 9, 10, -1, -9, 1e-6, -1e-6, 2e-6, 1e-3, -1e-3, 1e4, -1e4, 1e-7, 1e-30]
    )
    pred, target = rng.choice(numbers, (2, 20000, 4))
    target[::4] = pred[::4]

    def total(pred, target):
        values = loss(pred, target, reduction="none")
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(pred, target)
    for array in (values, *gradients):
        assert np.isfinite(array).all()


@every_loss
def test_invariant_to_place(loss):
    pred, target = boxes(0), boxes(1)
    move = np.float32([100, -70, 100, -70])
    close(loss(pred + move, target + move), loss(pred, target), rtol=1e-4)


def test_shims_hold_their_numbers():
    pred, target = jnp.asarray(boxes(0)), jnp.asarray(boxes(1))
    for config, expected in (
        ({"type": "DIoULoss", "eps": 1.0}, v.diou_loss(pred, target, eps=1.0)),
        ({"type": "CIoULoss", "eps": 1.0}, v.ciou_loss(pred, target, eps=1.0)),
        ({"type": "EIoULoss", "smooth_point": 0.5}, v.eiou_loss(pred, target, smooth_point=0.5)),
        ({"type": "SIoULoss", "neg_gamma": True}, v.siou_loss(pred, target, neg_gamma=True)),
        ({"type": "BoundedIoULoss", "beta": 0.5}, v.bounded_iou_loss(pred, target, beta=0.5)),
    ):
        close(v.build_loss(config)(pred, target), expected)
    for config in ({"type": "EIoULoss", "smooth_point": 0}, {"type": "BoundedIoULoss", "beta": 0}):
        with pytest.raises(ValueError, match=config["type"]):
            v.build_loss(config)
