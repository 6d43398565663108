"""Rotated boxes as Gaussians: against matrices in NumPy, invariances, float32, errors."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import visdet_jax as v

GD = {name: functools.partial(v.gd_loss, loss_type=name) for name in ("gwd", "kld", "jd")}
V1 = {f"{name}_v1": functools.partial(v.gd_loss_v1, loss_type=name) for name in ("kld", "bcd")}


def kfiou_of_boxes(pred, target, **options):
    still = jnp.zeros_like(pred)
    return v.kfiou_loss(still, still, pred_decode=pred, targets_decode=target, **options)


LOSSES = {**GD, **V1, "kfiou": kfiou_of_boxes, "probiou": v.probiou_loss}
every_loss = pytest.mark.parametrize("name", LOSSES)


def rows_of(name, pred, target, **options):
    """Each pair's loss, eps so small that it does not count."""
    options |= {"kfiou": {"eps": 1e-12}, "probiou": {"eps": 1e-12}}.get(name, {})
    return np.asarray(LOSSES[name](pred, target, reduction="none", **options))


def pairs(seed=0, n=16):
    rng = np.random.default_rng(seed)
    pred = np.concatenate(
        [rng.uniform(0, 50, (n, 2)), rng.uniform(4, 40, (n, 2)), rng.uniform(-2, 2, (n, 1))], 1
    )
    return pred, pred + rng.normal(size=pred.shape) * [4, 4, 2, 2, 0.3]


def covariance(box, divisor=4.0):
    c, s = math.cos(box[4]), math.sin(box[4])
    rotation = np.array([[c, -s], [s, c]])
    return rotation @ np.diag(box[2:4] ** 2 / divisor) @ rotation.T


def kl(p, t, d):
    inverse = np.linalg.inv(p)
    logs = math.log(np.linalg.det(t) / np.linalg.det(p))
    return (d @ inverse @ d + np.trace(inverse @ t) - 2 - logs) / 2


def bhattacharyya(p, t, d):
    middle = (p + t) / 2
    dets = np.linalg.det(middle) / math.sqrt(np.linalg.det(p) * np.linalg.det(t))
    return d @ np.linalg.inv(middle) @ d / 8 + math.log(dets) / 2


def in_matrices(name, pred, target):
    """The defining formula, of covariance matrices."""
    p, t, d = covariance(pred), covariance(target), target[:2] - pred[:2]
    if name == "gwd":
        dets = np.linalg.det(p) * np.linalg.det(t)
        # (tr √M)² = tr M + 2 √det M of 2 × 2 matrices.
        shapes = np.trace(p) + np.trace(t) - 2 * math.sqrt(np.trace(p @ t) + 2 * math.sqrt(dets))
        scale = 2 * dets ** (1 / 8)
        return math.log1p(math.sqrt(d @ d + shapes) / scale)
    if name == "kld":
        return math.log1p(math.sqrt(kl(p, t, d)))
    if name == "jd":
        return math.log1p(math.sqrt((kl(p, t, d) + kl(t, p, d)) / 2))
    if name == "kld_v1":
        return 1 - 1 / (1 + math.sqrt(2 * kl(t, p, d)))
    if name == "bcd_v1":
        return 1 - 1 / (1 + math.sqrt(bhattacharyya(p, t, d)))
    if name == "kfiou":
        merged = np.linalg.inv(np.linalg.inv(p) + np.linalg.inv(t))
        volume, *areas = (4 * math.sqrt(np.linalg.det(x)) for x in (merged, p, t))
        return 1 - volume / (sum(areas) - volume)
    p, t = covariance(pred, 12.0), covariance(target, 12.0)
    return math.sqrt(1 - math.exp(-bhattacharyya(p, t, d)))


@every_loss
def test_the_defining_formula(name, x64):
    pred, target = pairs()
    expected = [in_matrices(name, *pair) for pair in zip(pred, target, strict=True)]
    np.testing.assert_allclose(rows_of(name, pred, target), expected, rtol=1e-9)


@every_loss
def test_invariances(name, x64):
    pred, target = pairs()
    value = rows_of(name, pred, target)
    assert (value > 1e-3).all()

    def unchanged(pred, target):
        np.testing.assert_allclose(rows_of(name, pred, target), value, rtol=1e-9)

    unchanged(np.add(pred, [0, 0, 0, 0, math.pi]), target)
    unchanged(pred, target[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, -math.pi / 2])
    unchanged(*(3 * boxes * [1, 1, 1, 1, 1 / 3] for boxes in (pred, target)))
    turn = np.eye(5)
    turn[:2, :2] = [[math.cos(1), math.sin(1)], [-math.sin(1), math.cos(1)]]
    unchanged(*(boxes @ turn + [7, -5, 0, 0, 1] for boxes in (pred, target)))


@every_loss
@pytest.mark.parametrize("apart", [0.03, 1])
def test_float32_keeps_its_digits_for_needles_and_near_equal_boxes(name, apart):
    """Of boxes 1000 times as long as wide, which float32 determinants are too coarse for."""
    rng = np.random.default_rng(0)
    pred = np.float32([[0, 0, 4000, 4, angle] for angle in np.linspace(0, 3, 16)])
    target = (pred + apart * rng.normal(size=pred.shape) * [1, 1, 100, 1, 1e-3]).astype(np.float32)
    expected = [in_matrices(name, *pair) for pair in np.float64([pred, target]).transpose(1, 0, 2)]
    np.testing.assert_allclose(rows_of(name, pred, target), expected, rtol=2e-4)


def test_equal_boxes_cost_the_floor_without_gradient():
    boxes = pairs()[0].astype(np.float32)
    floors = {
        "gwd": None,  # depends on the size
        "kld": math.log1p(math.sqrt(1e-7)),
        "jd": math.log1p(math.sqrt(1e-7)),
        "kld_v1": 1 - 1 / (1 + 1e-3),
        "bcd_v1": 1 - 1 / (1 + 1e-3),
        "kfiou": 2 / 3,
        "probiou": math.sqrt(2e-7),
    }
    for name, floor in floors.items():
        loss = LOSSES[name]
        value, gradient = jax.value_and_grad(lambda p, loss=loss: loss(p, boxes))(boxes)
        assert value < 1e-3 if floor is None else abs(value / floor - 1) < 1e-4, name
        np.testing.assert_allclose(gradient, 0, atol=1e-6, err_msg=name)


def test_wasserstein_of_equal_shapes_is_the_distance_of_the_centres():
    boxes = pairs()[0].astype(np.float32)
    moved = boxes + np.float32([3, 4, 0, 0, 0])
    for alpha in (0.5, 2.0):
        options = {"loss_type": "gwd", "fun": "none", "normalize": False, "alpha": alpha}
        np.testing.assert_allclose(v.gd_loss(moved, boxes, **options), 5, rtol=1e-5)


def test_the_larger_and_the_smaller_and_tau(x64):
    pred, target = pairs()

    def rows(name, pred, target, **options):
        return v.gd_loss(pred, target, loss_type=name, reduction="none", **options)

    both = rows("kld", pred, target), rows("kld", target, pred)
    np.testing.assert_allclose(rows("kld_symmax", pred, target), jnp.maximum(*both), rtol=1e-12)
    np.testing.assert_allclose(rows("kld_symmin", pred, target), jnp.minimum(*both), rtol=1e-12)
    for tau in (1.0, 2.5):
        bounded = rows("kld", pred, target, tau=tau)
        np.testing.assert_allclose(bounded, 1 - 1 / (tau + both[0]), rtol=1e-12)
    np.testing.assert_array_equal(rows("kld", pred, target, tau=0.99), both[0])


@pytest.mark.parametrize("loss_type", ["gwd", "kld_symmin"])
def test_deviations_and_correlation_are_the_box(loss_type, x64):
    def as_pearson(boxes):
        matrices = np.array([covariance(box) for box in boxes])
        deviations = np.sqrt(matrices[:, [0, 1], [0, 1]])
        correlation = matrices[:, 0, 1] / deviations.prod(1)
        return np.column_stack([boxes[:, :2], deviations, correlation])

    pred, target = pairs()
    loss = functools.partial(v.gd_loss, loss_type=loss_type, reduction="none")
    pearson = loss(as_pearson(pred), as_pearson(target), representation="xy_stddev_pearson")
    np.testing.assert_allclose(pearson, loss(pred, target), rtol=1e-9)


def test_kfiou_of_tiny_boxes_is_not_above_a_third():
    """The floor of the determinant is more than these boxes have: the reference gives 2, or NaN."""
    tiny = np.float32([[0, 0, side, side, 0] for side in (0, 1e-3, 0.04, 0.05, 0.06, 0.0632)])
    for fun, least in (("none", 2 / 3), ("ln", math.log(3)), ("exp", math.expm1(2 / 3))):
        value = kfiou_of_boxes(tiny, tiny, fun=fun, reduction="none")
        np.testing.assert_allclose(value[:4], least, rtol=1e-4)
        assert (value > 0.999 * least).all()


def test_probiou_with_aspect_ratios(x64):
    """Nothing for equal ratios; the slope, with alpha held fixed, against finite differences."""
    pred, target = pairs()
    similar = target.copy()
    similar[:, 3] = target[:, 2] * pred[:, 3] / pred[:, 2]
    plain = v.probiou_loss(pred, similar, reduction="none")
    with_ratio = v.probiou_loss(pred, similar, ciou=True, reduction="none")
    np.testing.assert_allclose(with_ratio, plain, rtol=1e-12)

    ratios = np.arctan(target[:, 2] / target[:, 3])

    def terms(pred):
        difference = ratios - np.arctan(pred[:, 2] / pred[:, 3])
        return np.asarray(v.probiou_loss(pred, target, reduction="none")), (
            4 / math.pi**2 * difference**2
        )

    loss, aspect = terms(pred)
    alpha = aspect / (aspect + loss + 1e-7)
    value = v.probiou_loss(pred, target, ciou=True, reduction="none")
    np.testing.assert_allclose(value, loss + alpha * aspect, rtol=1e-12)
    gradient = jax.grad(lambda p: v.probiou_loss(p, target, ciou=True, reduction="sum"))(pred)
    direction = np.random.default_rng(1).normal(size=pred.shape)
    ahead, behind = (terms(pred + step * direction) for step in (1e-6, -1e-6))
    expected = ((ahead[0] - behind[0]) + alpha * (ahead[1] - behind[1])).sum() / 2e-6
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6)


def test_a_floor_bounds_the_gradient_of_tiny_boxes():
    boxes = np.float32([[0, 0, 0.05, 0.05, 0]])
    target = np.float32([[0.05, 0, 0.1, 0.05, 0]])

    def steepest(floor):
        loss = functools.partial(v.probiou_loss, eps=1e-12, floor=floor)
        return jnp.abs(jax.grad(loss)(boxes, target)).max()

    assert 2 * steepest(0.01) < steepest(0.0)


def test_configs_of_mmrotate():
    pred, target = (boxes.astype(np.float32) for boxes in pairs())
    loss = v.build_loss(
        {"type": "GDLoss", "loss_type": "kld", "fun": "log1p", "tau": 1, "sqrt": False}
        | {"loss_weight": 5.5}
    )
    weight = np.repeat(np.float32([[1], [0]] * 8), 5, axis=1)
    expected = v.gd_loss(pred, target, weight[:, 0], loss_type="kld", tau=1, sqrt=False)
    np.testing.assert_allclose(loss(pred, target, weight), 5.5 * expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "GDLoss"}, "loss_type"),
        ({"type": "GDLoss", "loss_type": "bcd"}, "GDLoss: loss_type must be one of 'gwd', .*'bcd'"),
        ({"type": "GDLoss", "loss_type": "gwd", "fun": ""}, "GDLoss: fun must be one of"),
        ({"type": "GDLoss", "loss_type": "gwd", "sqrt": False}, "sqrt=False is of the other"),
        ({"type": "GDLoss", "loss_type": "kld", "normalize": False}, "normalize=False is of gwd"),
        ({"type": "GDLoss", "loss_type": "kld", "alpha": 0.0}, "alpha must be > 0"),
        (
            {"type": "GDLoss", "loss_type": "kld", "representation": "xyxy"},
            "GDLoss: representation must be one of",
        ),
        ({"type": "GDLoss_v1", "loss_type": "jd"}, "GDLoss_v1: loss_type must be one of"),
        ({"type": "GDLoss_v1", "loss_type": "kld", "fun": "none"}, "GDLoss_v1: fun must be one of"),
        ({"type": "KFLoss", "fun": "log"}, "KFLoss: fun must be one of"),
        ({"type": "ProbIoULoss", "eps": 0.0}, "ProbIoULoss: eps must be > 0"),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises((ValueError, TypeError), match=message):
        v.build_loss(config)


def test_calls_that_are_refused():
    boxes = np.ones((4, 5), np.float32)
    with pytest.raises(ValueError, match=r"gd_loss: rotated boxes must have shape \(\.\.\., 5\)"):
        v.gd_loss(boxes[:, :4], boxes[:, :4])
    with pytest.raises(ValueError, match=r"KFLoss: targets_decode is missing"):
        v.KFLoss()(boxes, boxes, pred_decode=boxes)
    with pytest.raises(ValueError, match=r"kfiou_loss: pred_decode must have pred's shape"):
        v.KFLoss()(boxes, boxes, pred_decode=boxes[:2], targets_decode=boxes)
    with pytest.raises(ValueError, match=r"weight must have shape \(4,\) or \(4, 5\)"):
        v.probiou_loss(boxes, boxes, boxes[:, :4])


def test_checked_finds_negative_sides_and_the_weight_hides_them():
    boxes = np.ones((4, 5), np.float32)
    spoilt = boxes.copy()
    spoilt[2, 3] = -1
    weight = np.float32([1, 1, 0, 1])
    loss = v.checked(v.ProbIoULoss())
    with pytest.raises(checkify.JaxRuntimeError, match=r"pred\[2\] is .*: .*w ≥ 0 and h ≥ 0"):
        loss(spoilt, boxes)
    assert np.isfinite(loss(spoilt, boxes, weight))
    with pytest.raises(checkify.JaxRuntimeError, match=r"targets_decode\[2\] is .*w ≥ 0"):
        v.checked(v.KFLoss())(boxes, boxes, pred_decode=boxes, targets_decode=spoilt)
    pearson = v.GDLoss(loss_type="gwd", representation="xy_stddev_pearson")
    assert np.isfinite(v.checked(pearson)(boxes / 2, boxes / 2))
