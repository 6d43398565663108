"""What replaces the IoU in the losses of boxes, and the later losses of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
OPTIONS = [
    (v.iou_loss, {"mode": "linear", "eps": 0.0}),
    (v.giou_loss, {}),
    (v.diou_loss, {}),
    (v.ciou_loss, {"gated": False}),
    (v.siou_loss, {"neg_gamma": True}),
    (v.efficient_iou_loss, {}),
    (v.mpdiou_loss, {"image_shape": (100, 120)}),
    (v.shape_iou_loss, {"scale": 1.0}),
]
every_loss = pytest.mark.parametrize(("loss", "config"), OPTIONS)


def boxes(n=16):
    corner, size = RNG.uniform(0, 50, (n, 2)), RNG.uniform(10, 50, (n, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


TARGET = boxes()
PRED = TARGET + RNG.normal(0, 5, TARGET.shape).astype(np.float32)


def close(actual, expected, rtol=1e-5, atol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def each(loss, pred=PRED, target=TARGET, **config):
    return np.asarray(loss(pred, target, reduction="none", **config))


def gradient(loss, pred=PRED, target=TARGET, **config):
    return np.asarray(jax.grad(lambda p: loss(p, target, reduction="sum", **config))(pred))


def iou(pred=PRED, target=TARGET):
    return 1 - each(v.iou_loss, pred, target, mode="linear", eps=0.0)


def scaled(x, ratio):
    centre, half = (x[:, :2] + x[:, 2:]) / 2, ratio * (x[:, 2:] - x[:, :2]) / 2
    return np.concatenate([centre - half, centre + half], 1)


@every_loss
def test_the_options_replace_the_iou(loss, config):
    plain = each(loss, **config) + iou()
    inner = iou(scaled(PRED, 0.7), scaled(TARGET, 0.7))
    close(each(loss, inner_ratio=0.7, **config), plain - inner)
    focused = np.clip((iou() - 0.2) / 0.5, 0, 1)
    assert 0 < np.isin(focused, (0, 1)).sum() < len(focused)
    close(each(loss, focaler=(0.2, 0.7), **config), plain - focused)
    both = np.clip((inner - 0.2) / 0.5, 0, 1)
    close(each(loss, inner_ratio=0.7, focaler=(0.2, 0.7), **config), plain - both)


@every_loss
def test_ratio_1_and_bounds_0_and_1_change_nothing(loss, config):
    neutral = {"inner_ratio": 1.0, "focaler": (0.0, 1.0)}
    close(each(loss, **neutral, **config), each(loss, **config))
    close(gradient(loss, **neutral, **config), gradient(loss, **config))


def test_modes_are_of_the_replaced_iou():
    term = 1 - each(v.iou_loss, mode="linear", inner_ratio=1.3)
    close(each(v.iou_loss, mode="square", inner_ratio=1.3), 1 - term**2)
    close(each(v.iou_loss, mode="log", inner_ratio=1.3), -np.log(term))


def test_the_focal_slope():
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
        {"inner_ratio": 0.0},
        {"inner_ratio": -1.0},
    ],
)
def test_refused_options(options):
    (name,) = options
    for loss in ("GIoULoss", "MPDIoULoss"):
        with pytest.raises(ValueError, match=f"{loss}: {name} must be"):
            v.build_loss({"type": loss, **options})


def test_focaler_of_a_function_is_a_pair():
    with pytest.raises(ValueError, match="giou_loss: focaler must be a pair"):
        v.giou_loss(PRED, TARGET, focaler=(0.0, 0.5, 0.9))


def test_options_are_swept_by_vmap():
    ratios, tops = jnp.array([0.7, 1.0, 1.3]), jnp.array([0.6, 0.8, 0.95])
    swept = jax.vmap(lambda r, u: v.diou_loss(PRED, TARGET, inner_ratio=r, focaler=(0.0, u)))
    close(swept(ratios, tops)[2], v.diou_loss(PRED, TARGET, inner_ratio=1.3, focaler=(0.0, 0.95)))


def test_ciou_without_the_gate():
    gated, plain = each(v.ciou_loss), each(v.ciou_loss, gated=False)
    above = iou() > 0.5
    assert 0 < above.sum() < len(above)
    close(plain[above], gated[above])
    assert (plain[~above] > gated[~above]).all()


def test_ciou_holds_alpha_constant(x64):
    """The slope of 1 - IoU + d² / c² + alpha v where alpha is that of the point itself."""
    pred, target = PRED.astype(float), TARGET.astype(float)
    angle = np.arctan2(target[:, 2] - target[:, 0], target[:, 3] - target[:, 1])

    def v_of(p):
        return 4 / np.pi**2 * (angle - np.arctan2(p[:, 2] - p[:, 0], p[:, 3] - p[:, 1])) ** 2

    alpha = v_of(pred) / (1 - iou(pred, target) + v_of(pred))
    step = 1e-5 * RNG.normal(size=pred.shape)
    slope = (alpha * (v_of(pred + step) - v_of(pred - step)) / 2).sum()
    slope += (gradient(v.diou_loss, pred, target) * step).sum()
    close((gradient(v.ciou_loss, pred, target, gated=False) * step).sum(), slope, 1e-6, 1e-12)


EQUAL = [
    *OPTIONS,
    *((v.alpha_iou_loss, {"mode": mode, "alpha": 3.0}) for mode in ("iou", "giou", "diou", "ciou")),
    (v.alpha_iou_loss, {"mode": "ciou", "alpha": 0.5}),
]


@pytest.mark.parametrize(("loss", "config"), EQUAL)
def test_equal_boxes(loss, config):
    rounding = 2e-4 if config.get("alpha") == 0.5 else 1e-5  # √eps
    close(each(loss, TARGET, TARGET, **config), 0, atol=rounding)
    assert np.isfinite(gradient(loss, TARGET, TARGET, **config)).all()


def test_efficient_iou_by_hand():
    pred, target = np.float32([[0, 0, 10, 10]]), np.float32([[5, 0, 20, 5]])
    expected = 1 - 25 / 150 + (7.5**2 + 2.5**2) / 500 + 5**2 / 20**2 + 5**2 / 10**2
    close(each(v.efficient_iou_loss, pred, target), [expected])


def test_focal_efficient_iou():
    weight = iou() ** 0.5
    close(each(v.efficient_iou_loss, focal_gamma=0.5), weight * each(v.efficient_iou_loss))
    constant = weight[:, None] * gradient(v.efficient_iou_loss)
    close(gradient(v.efficient_iou_loss, focal_gamma=0.5), constant)
    far = each(v.efficient_iou_loss, TARGET + 1000, focal_gamma=0.5)
    np.testing.assert_array_equal(far, 0)


def test_mpdiou_by_hand():
    expected = 1 - iou() + ((PRED - TARGET) ** 2).sum(1) / (100**2 + 120**2)
    loss = v.MPDIoULoss(image_shape=[100, 120], reduction="none")
    close(loss(PRED, TARGET), expected)
    close(v.MPDIoULoss(reduction="none")(PRED, TARGET, image_shape=(100, 120)), expected)
    close(loss(PRED, TARGET, image_shape=np.array([100, 120])), expected)
    shapes = np.where(np.arange(16)[:, None] < 8, [[100, 120]], [[50, 60]])
    halves = np.where(np.arange(16) < 8, expected, each(v.mpdiou_loss, image_shape=(50, 60)))
    close(loss(PRED, TARGET, image_shape=shapes), halves)
    weight = np.arange(16, dtype=np.float32)
    slope = jax.grad(lambda p: loss(p, TARGET, weight, image_shape=shapes).sum())(PRED)
    assert not slope[0].any()
    assert np.isfinite(slope).all()


def test_mpdiou_without_an_image_and_with_a_wrong_one():
    with pytest.raises(ValueError, match=r"mpdiou_loss: give image_shape=\(height, width\)"):
        v.MPDIoULoss()(PRED, TARGET)
    for shape in (np.ones(3), np.ones((3, 2)), (1, 2, 3)):
        with pytest.raises((ValueError, TypeError), match="mpdiou_loss: "):
            v.mpdiou_loss(PRED, TARGET, image_shape=shape)
    with pytest.raises(ValueError, match="MPDIoULoss: image_shape must be"):
        v.MPDIoULoss(image_shape=(100,))


def test_a_focal_gamma_below_0():
    with pytest.raises(ValueError, match="EfficientIoULoss: focal_gamma must be ≥ 0"):
        v.EfficientIoULoss(focal_gamma=-0.5)


def test_shape_iou_follows_the_shape_of_the_target():
    wide = np.float32([[0, 0, 40, 10]])
    along, across = wide + np.float32([2, 0, 2, 0]), wide + np.float32([0, 2, 0, 2])

    def distance(pred, scale):
        return each(v.shape_iou_loss, pred, wide, scale=scale) - 1 + iou(pred, wide)

    close(distance(along, 1.0), 2 * 10 / 50 * 4 / (42**2 + 10**2))
    close(distance(across, 1.0), 2 * 40 / 50 * 4 / (40**2 + 12**2))
    close(distance(along, 0.0), 4 / (42**2 + 10**2))
    square = np.float32([[0, 0, 20, 20]])
    pred = square + np.float32([1, 2, 5, 3])
    close(each(v.shape_iou_loss, pred, square, scale=2.0), each(v.shape_iou_loss, pred, square))
    close(distance(across, 100.0), 2 * 4 / (40**2 + 12**2))  # 40^100 is no float


PLAIN = {
    "iou": (v.iou_loss, {"mode": "linear", "eps": 0.0}),
    "giou": (v.giou_loss, {}),
    "diou": (v.diou_loss, {}),
    "ciou": (v.ciou_loss, {"gated": False}),
}


@pytest.mark.parametrize("mode", PLAIN)
def test_alpha_1_is_the_plain_loss(mode):
    loss, config = PLAIN[mode]
    close(each(v.alpha_iou_loss, mode=mode, alpha=1.0), each(loss, **config))
    close(gradient(v.alpha_iou_loss, mode=mode, alpha=1.0), gradient(loss, **config))


def test_alpha_iou_is_powers():
    close(each(v.alpha_iou_loss, alpha=3.0), 1 - iou() ** 3)
    penalty = each(v.giou_loss) - 1 + iou()
    close(each(v.alpha_iou_loss, mode="giou", alpha=3.0), 1 - iou() ** 3 + penalty**3)
    penalty = each(v.diou_loss) - 1 + iou()
    close(each(v.alpha_iou_loss, mode="diou", alpha=3.0), 1 - iou() ** 3 + penalty**3)
    huge = 1e3 * PRED, 1e3 * TARGET  # whose sides to the twelfth are no float32
    close(each(v.alpha_iou_loss, *huge, mode="diou", alpha=6.0), 1 - iou() ** 6 + penalty**6)


def test_wasserstein_by_hand():
    pred, target = np.float32([[0, 0, 10, 10]]), np.float32([[3, 4, 21, 24]])
    w2 = (12 - 5) ** 2 + (14 - 5) ** 2 + (8**2 + 10**2) / 4
    expected = {
        "w2": w2,
        "sqrt": w2**0.5,
        "log": np.log(1 + w2),
        "norm_sqrt": 1 - 1 / (3 + w2**0.5),
        "exp": 1 - np.exp(-(w2**0.5) / 20),
    }
    for mode, value in expected.items():
        config = {"mode": mode, "gamma": 3.0, "constant": 20.0}
        close(each(v.wasserstein_loss, pred, target, **config), [value])
        equal = gradient(v.wasserstein_loss, TARGET, TARGET, eps=0.0, **config)
        np.testing.assert_array_equal(equal, 0)


@pytest.mark.parametrize("name", ["AlphaIoULoss", "WassersteinLoss"])
def test_another_mode(name):
    with pytest.raises(ValueError, match=f"{name}: mode must be one of"):
        v.build_loss({"type": name, "mode": "linear"})
    function = {"AlphaIoULoss": v.alpha_iou_loss, "WassersteinLoss": v.wasserstein_loss}[name]
    with pytest.raises(ValueError, match=f"{function.__name__}: mode must be one of"):
        function(PRED, TARGET, mode="linear")


def test_wiou_version_1_by_hand():
    centre = (PRED - TARGET)[:, :2] + (PRED - TARGET)[:, 2:]
    hull = np.maximum(PRED, TARGET)[:, 2:] - np.minimum(PRED, TARGET)[:, :2]
    factor = np.exp((centre**2).sum(1) / 4 / (hull**2).sum(1))
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


@pytest.mark.parametrize("base", BASES)
def test_wiou_focuses_by_a_constant(base):
    state = v.WIoUState(jnp.float32(0.4))
    beta = (1 - iou()) / np.float32(0.4)
    focus = {1: np.ones(16), 2: np.sqrt(beta), 3: beta / (3 * 1.9 ** (beta - 3))}
    for version in (2, 3) if base == "wiou" else (3,):
        config = {"base": base, "version": version, "alpha": 1.9, "delta": 3.0}
        close(each(v.wiou_loss, state=state, **config), focus[version] * each(BASES[base]))
        constant = focus[version][:, None] * gradient(BASES[base])
        close(gradient(v.wiou_loss, state=state, **config), constant)


def test_wiou_running_mean():
    loss, state = v.WIoULoss(momentum=0.25), v.WIoUState(jnp.float32(0.8))
    weight = np.where(np.arange(16) < 10, 0.5, 0).astype(np.float32)
    pred = np.where(weight[:, None] == 0, np.nan, PRED)
    target = TARGET.copy()
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
def test_wiou_of_any_mean_is_finite(mean, version):
    config = {"state": v.WIoUState(jnp.float32(mean)), "version": version}
    assert np.isfinite(each(v.wiou_loss, **config)).all()
    assert np.isfinite(gradient(v.wiou_loss, **config)).all()


def test_wiou_refuses():
    with pytest.raises(ValueError, match="wiou_loss: version 3 needs a state"):
        v.wiou_loss(PRED, TARGET)
    with pytest.raises(ValueError, match="wiou_loss: base must be one of wiou, iou"):
        v.wiou_loss(PRED, TARGET, version=1, base="focal")
    for config in ({"version": 4}, {"base": "focal"}, {"momentum": 1.5}, {"delta": 0.0}):
        (name,) = config
        with pytest.raises(ValueError, match=f"WIoULoss: {name} must be"):
            v.WIoULoss(**config)
    with pytest.raises(TypeError, match="WIoULoss keeps running statistics"):
        v.WIoULoss()(PRED, TARGET)
