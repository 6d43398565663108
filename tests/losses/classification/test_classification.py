"""Asymmetric, softmax focal, Tversky and federated losses; PolyLoss and label smoothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 3, (16, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, 16).astype(np.int32)
ONE_HOT = np.eye(5, dtype=np.float32)[LABEL]
BINARY = (RNG.random((16, 5)) < 0.4).astype(np.float32)
SOFT = RNG.dirichlet(np.ones(5), 16).astype(np.float32)
CLASS_WEIGHT = np.array([0.5, 1, 2, 0.25, 1.5], np.float32)
MAPS = RNG.normal(0, 3, (3, 5, 4, 2)).astype(np.float32)
REGIONS = RNG.integers(0, 5, (3, 4, 2)).astype(np.int32)
EXTREME = np.array([[-1e4, -100, -17, -1e-3, 0, 17, 1e4]], np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def log_softmax(x, axis=1):
    x = x.astype(np.float64)
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def assert_slope(loss, formula, x, step=1e-6):
    """The gradient by `x` is the central difference of a NumPy formula, or of the loss itself."""
    direction = np.random.default_rng(1).normal(size=x.shape)
    ahead, behind = (formula(x + sign * step * direction).sum() for sign in (1, -1))
    slope = (jax.grad(lambda x: loss(x).sum())(x) * direction).sum()
    close(slope, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8)


def asymmetric(x, y, gamma_neg, gamma_pos, clip, eps, focus_at=None):
    """In NumPy; the focusing weight taken at the logits `focus_at`, where they are given."""

    def both(x):
        p = 1 / (1 + np.exp(-x))
        return p, np.minimum(1 - p + clip, 1)

    p, q = both(x)
    at, at_q = (p, q) if focus_at is None else both(focus_at)
    bce = -y * np.log(np.maximum(p, eps)) - (1 - y) * np.log(np.maximum(q, eps))
    return bce * (1 - at * y - at_q * (1 - y)) ** (gamma_pos * y + gamma_neg * (1 - y))


ASYMMETRIC = [
    {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05, "eps": 1e-8},
    {"gamma_neg": 1.5, "gamma_pos": 0.5, "clip": 0.3, "eps": 1e-2},
    {"gamma_neg": 2.0, "gamma_pos": 0.0, "clip": 0.0, "eps": 1e-2},
]


@pytest.mark.parametrize("target", [BINARY, SOFT], ids=["hard", "soft"])
def test_asymmetric_formula_and_what_is_detached(target, x64):
    x, y = PRED.astype(np.float64), target.astype(np.float64)

    def loss(x, detached, options):
        return v.asymmetric_loss(x, y, reduction="none", detached=detached, **options)

    for options in ASYMMETRIC:
        for detached in (True, False):
            close(loss(x, detached, options), asymmetric(x, y, **options), 1e-9)
        assert_slope(
            lambda x, o=options: loss(x, True, o),
            lambda x, o=options: asymmetric(x, y, **o, focus_at=PRED.astype(np.float64)),
            x,
        )
        assert_slope(
            lambda x, o=options: loss(x, False, o), lambda x, o=options: asymmetric(x, y, **o), x
        )


def test_asymmetric_loss_without_asymmetry_is_cross_entropy():
    none = {"gamma_neg": 0.0, "gamma_pos": 0.0, "eps": 0.0, "reduction": "none"}
    x = np.concatenate([EXTREME, EXTREME])
    y = np.stack([np.zeros(7), np.ones(7)]).astype(np.float32)
    expected = jax.value_and_grad(v.binary_cross_entropy)(x, y, reduction="sum")
    for clip in (None, 0.0):
        close(v.asymmetric_loss(x, y, clip=clip, **none).sum(), expected[0])
        for detached in (True, False):
            sums = none | {"clip": clip, "detached": detached, "reduction": "sum"}
            close(jax.grad(v.asymmetric_loss)(x, y, **sums), expected[1])


def test_asymmetric_targets_may_be_class_indices():
    labels = np.where(np.arange(16) == 2, 5, LABEL)  # 5: background
    values = v.asymmetric_loss(PRED, labels, reduction="none")
    close(values, v.asymmetric_loss(PRED, np.eye(6, dtype="f4")[labels][:, :5], reduction="none"))
    close(v.asymmetric_loss(PRED, labels * 0 - 1), 0)
    assert np.isnan(v.asymmetric_loss(PRED, labels * 0 + 6))


def test_asymmetric_negatives_below_the_clip_cost_nothing():
    x = np.log(np.array([[0.2, 0.04], [0.049, 0.051]], np.float32) / (1 - 0.05))
    value, slope = jax.value_and_grad(v.asymmetric_loss)(x, 0 * x, reduction="sum", gamma_neg=0.0)
    easy = 1 / (1 + np.exp(-x)) <= 0.05
    assert easy.any()
    assert not easy.all()
    np.testing.assert_array_equal(slope == 0, easy)
    assert value > 0


@pytest.mark.parametrize("clip", [None, 0.0, 1e-4, 0.05, 0.7])
@pytest.mark.parametrize("detached", [True, False])
def test_asymmetric_digits_and_finite_slopes(clip, detached, x64):
    """float32 against float64, at fractional powers and saturated logits too."""
    x = np.concatenate([np.linspace(-12, 12, 49, dtype=np.float32), EXTREME[0]])[None]
    options = {"clip": clip, "gamma_neg": 1.5, "gamma_pos": 0.5, "detached": detached}
    for y in (np.zeros_like(x), np.ones_like(x), np.full_like(x, 0.25)):
        for eps in (1e-8, 0.0):

            def loss(x, y=y, eps=eps):
                value = v.asymmetric_loss(x, y, reduction="none", eps=eps, **options)
                return value.sum(), value

            pairs = [jax.grad(loss, has_aux=True)(x.astype(d)) for d in ("f4", "f8")]
            for single, double in zip(*pairs, strict=True):
                assert np.isfinite(single).all()
                close(single, double, 2e-5, 1e-9 if not clip else 1e-7)


def test_asymmetric_costs_of_easy_negatives_keep_their_digits(x64):
    x = np.linspace(-8, -2, 50, dtype=np.float32)
    single, double = (
        v.asymmetric_loss(x, 0 * x, clip=1e-4, gamma_neg=0.0, reduction="none")
        for x in (x, x.astype(np.float64))
    )
    close(single, double, 2e-6, 0)


def test_single_label_without_focus_is_smoothed_cross_entropy():
    value = v.asl_single_label(PRED, LABEL, gamma_neg=0.0, eps=0.2, reduction="none")
    close(value, v.cross_entropy(PRED, LABEL, label_smoothing=0.2, reduction="none"))


def test_single_label_formula_and_labels(x64):
    x, y = PRED.astype(np.float64), ONE_HOT.astype(np.float64)

    def formula(x):
        log_p = log_softmax(x)
        p = np.exp(log_p)
        focus = np.where(y == 1, (1 - p) ** 0.5, p**1.5)
        return -((0.7 * y + 0.3 / 5) * focus * log_p).sum(1)

    options = {"gamma_pos": 0.5, "gamma_neg": 1.5, "eps": 0.3, "reduction": "none"}
    close(v.asl_single_label(x, LABEL, **options), formula(x), 1e-9)
    assert_slope(lambda x: v.asl_single_label(x, LABEL, **options), formula, x)
    labels = np.where(np.arange(16) < 2, [-1, 5] * 8, LABEL)
    values = np.asarray(v.asl_single_label(x, labels, reduction="none"))
    assert values[0] == 0
    np.testing.assert_array_equal(np.isnan(values), np.arange(16) == 1)


def miss_of(x, t):
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    return t * (1 - p) + (1 - t) * p


@pytest.mark.parametrize("gamma", [0.0, 2.0, 1.5])
@pytest.mark.parametrize("target", [LABEL, SOFT], ids=["indices", "soft"])
def test_poly_focal_adds_its_term(gamma, target):
    t = ONE_HOT if target is LABEL else target
    expected = 0.7 * miss_of(PRED, t) ** (gamma + 1)
    for activated in (False, True):
        pred = jax.nn.sigmoid(PRED) if activated else PRED
        options = {"gamma": gamma, "activated": activated, "reduction": "none"}
        for alpha in (0.25, None):
            plain = v.sigmoid_focal_loss(pred, target, alpha=alpha, **options)
            poly = v.sigmoid_focal_loss(pred, target, alpha=alpha, poly_epsilon=0.7, **options)
            close(poly - plain, expected)


def test_focal_without_alpha_weighs_both_sides_alike():
    twice = 2 * v.FocalLoss(alpha=0.5)(PRED, LABEL)
    close(v.FocalLoss(alpha=None)(PRED, LABEL), twice)


def test_poly_cross_entropy_adds_its_term():
    p = np.exp(log_softmax(PRED))
    weighed = {"class_weight": CLASS_WEIGHT, "reduction": "none"}
    for target, share in ((LABEL, ONE_HOT), (SOFT, SOFT)):
        plain = v.cross_entropy(PRED, target, **weighed)
        poly = v.cross_entropy(PRED, target, poly_epsilon=0.7, **weighed)
        close(poly - plain, 0.7 * (CLASS_WEIGHT * share * (1 - p)).sum(1))
        plain = v.binary_cross_entropy(PRED, target, **weighed)
        poly = v.binary_cross_entropy(PRED, target, poly_epsilon=0.7, **weighed)
        p_of_each = miss_of(PRED, 0)
        positive = CLASS_WEIGHT * share * (1 - p_of_each)
        close(poly - plain, 0.7 * (positive + (1 - share) * p_of_each))


OPTIONS = {
    "poly focal": (v.FocalLoss, LABEL, {"poly_epsilon": 0.7, "alpha": 0.3}, {"gamma": 1.5}),
    "poly focal of scores": (v.FocalLoss, SOFT, {"poly_epsilon": 0.7}, {"alpha": None}),
    "poly focal of probabilities": (
        v.FocalLoss, SOFT, {"poly_epsilon": 0.7, "alpha": 0.3}, {"activated": True}
    ),
    "smoothed": (v.CrossEntropyLoss, LABEL, {"poly_epsilon": 0.7, "label_smoothing": 0.1}, {}),
    "poly": (v.CrossEntropyLoss, LABEL, {"poly_epsilon": -1.0}, {"class_weight": (1, 2, 3, 4, 5)}),
    "poly of scores": (v.CrossEntropyLoss, SOFT, {"poly_epsilon": 0.7, "label_smoothing": 0.1}, {}),
    "poly of sigmoids": (
        v.CrossEntropyLoss, SOFT, {"poly_epsilon": 0.7},
        {"use_sigmoid": True, "class_weight": (1, 2, 3, 4, 5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_slopes_by_pred_and_by_the_options(name, x64):
    """Options that may be None are numbers to a gradient, and to vmap, all the same."""
    cls, target, numbers, config = OPTIONS[name]
    x = PRED.astype(np.float64)
    x = np.asarray(jax.nn.sigmoid(x)) if config.get("activated") else x
    target = target.astype(np.float64) if target is SOFT else target

    @jax.jit
    def loss(x, numbers):
        return cls(**config, **numbers)(x, target)

    assert_slope(lambda x: loss(x, numbers), lambda x: np.asarray(loss(x, numbers)), x)
    slopes = jax.jit(jax.grad(loss, argnums=1))(x, numbers)
    for key, value in numbers.items():
        ahead, behind = (loss(x, {**numbers, key: value + d}) for d in (1e-6, -1e-6))
        close(slopes[key], (ahead - behind) / 2e-6, 1e-6, 1e-8)
    sweep = jax.vmap(lambda e: loss(x, {**numbers, "poly_epsilon": e}))(jnp.array([0.0, 1.0]))
    close(sweep[0], cls(**config, **numbers | {"poly_epsilon": None})(x, target), 1e-12)


def test_label_smoothing_is_torchs():
    """(1 - s) w_y CE_y + s / C Σ_c w_c CE_c, the row's class and every class by its own weight."""
    cost = -log_softmax(PRED)
    expected = (CLASS_WEIGHT * cost * (0.9 * ONE_HOT + 0.1 / 5)).sum(1)
    options = {"class_weight": CLASS_WEIGHT, "reduction": "none"}
    close(v.cross_entropy(PRED, LABEL, label_smoothing=0.1, **options), expected)
    close(v.cross_entropy(PRED, ONE_HOT, label_smoothing=0.1, **options), expected)
    mixed = (CLASS_WEIGHT * cost * (0.9 * SOFT + 0.1 / 5)).sum(1)
    close(v.cross_entropy(PRED, SOFT, label_smoothing=0.1, **options), mixed)
    close(
        v.cross_entropy(PRED, LABEL, label_smoothing=0.0, **options),
        v.cross_entropy(PRED, LABEL, **options),
    )


def test_label_smoothing_of_ignored_rows_and_of_maps():
    labels = np.where(REGIONS == 3, -1, np.where(REGIONS == 4, 255, REGIONS))
    cost = -log_softmax(MAPS)
    own = np.moveaxis(np.eye(5)[REGIONS], -1, 1)
    expected = np.where(REGIONS < 3, (cost * (0.8 * own + 0.2 / 5)).sum(1), 0)
    options = {"label_smoothing": 0.2, "ignore_index": 255}
    close(v.cross_entropy(MAPS, labels, reduction="none", **options), expected)
    mean = v.cross_entropy(MAPS, labels, avg_non_ignore=True, **options)
    close(mean, expected.sum() / (REGIONS < 3).sum())
    assert np.isnan(v.cross_entropy(MAPS, labels, label_smoothing=0.2))  # 255 is no class


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"label_smoothing": 0.1, "use_sigmoid": True}, "label_smoothing is softmax's"),
        ({"label_smoothing": 0.1, "use_mask": True}, "label_smoothing is softmax's"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"poly_epsilon": 1.0, "use_mask": True}, "use_mask knows no poly_epsilon"),
    ],
)
def test_what_cross_entropy_refuses(config, message):
    with pytest.raises(ValueError, match=f"CrossEntropyLoss: {message}"):
        v.CrossEntropyLoss(**config)


def test_the_classifiers_losses_take_the_options():
    options = {"poly_epsilon": 0.5, "label_smoothing": 0.1}
    custom = v.CrossEntropyCustomLoss(num_classes=4, **options)
    close(custom(PRED, LABEL), v.CrossEntropyLoss(**options)(PRED, LABEL))
    options = {"poly_epsilon": 0.5, "alpha": None}
    custom = v.FocalCustomLoss(num_classes=5, **options)
    close(custom(PRED, LABEL), v.FocalLoss(**options)(PRED, LABEL))


def test_softmax_focal_of_gamma_0_is_cross_entropy():
    options = {"class_weight": (0.5, 1, 2, 0.25, 1.5), "ignore_index": 3, "avg_non_ignore": True}
    for pred, target in ((PRED, LABEL), (MAPS, REGIONS)):
        got = jax.value_and_grad(v.SoftmaxFocalLoss(gamma=0.0, **options))(pred, target)
        expected = jax.value_and_grad(v.CrossEntropyLoss(**options))(pred, target)
        jax.tree.map(close, got, expected)
    close(v.SoftmaxFocalLoss(class_weight=2.0)(PRED, LABEL), 2 * v.SoftmaxFocalLoss()(PRED, LABEL))


def test_softmax_focal_of_two_classes_is_sigmoids():
    """Of the difference of the logits, class 0 being background: 1 - alpha, alpha."""
    label = LABEL % 2
    pred, gap = PRED[:, :2], PRED[:, 1:2] - PRED[:, :1]
    options = {"gamma": 1.5, "reduction": "none"}
    focal = v.sigmoid_focal_loss(gap, label[:, None].astype(np.float32), alpha=0.3, **options)
    of_classes = np.array([0.7, 0.3], np.float32)
    close(v.softmax_focal_loss(pred, label, class_weight=of_classes, **options), focal[:, 0])


def test_softmax_focal_labels():
    labels = np.where(np.arange(16) < 2, [-1, 5] * 8, LABEL)
    values = np.asarray(v.softmax_focal_loss(PRED, labels, reduction="none"))
    assert values[0] == 0
    np.testing.assert_array_equal(np.isnan(values), np.arange(16) == 1)
    with pytest.warns(UserWarning, match="SoftmaxFocalLoss: ignored labels count in the mean"):
        loss = v.SoftmaxFocalLoss(ignore_index=3)
    with pytest.raises(checkify.JaxRuntimeError, match=r"target\[1\] is 5: .* or 3 to be ignored"):
        v.checked(loss)(PRED, labels)
    with pytest.raises(ValueError, match=r"softmax_focal_loss: pred must have shape \(N, C, ...\)"):
        loss(PRED[0], LABEL)


def test_tversky_of_halves_is_dice():
    p = np.exp(log_softmax(MAPS)).astype(np.float32)
    own = np.moveaxis(np.eye(5, dtype=np.float32)[REGIONS], -1, 1)
    dice = v.dice_loss(
        p.reshape(15, -1), own.reshape(15, -1), naive_dice=True, eps=2.0, reduction="none"
    )
    value = v.tversky_loss(MAPS, REGIONS, alpha=0.5, beta=0.5, smooth=1.0, reduction="none")
    close(value, dice.reshape(3, 5).mean(1))


def test_tversky_weighs_false_alarms_and_misses_apart():
    """Class 1 of two everywhere, or nowhere, against half of the pixels."""
    half = np.array([[0, 0, 1, 1]])
    everywhere = np.stack([np.full((1, 4), -50.0), np.full((1, 4), 50.0)], 1).astype(np.float32)
    of_class_1 = {"smooth": 0.0, "class_weight": np.array([0, 1], np.float32)}
    alarms = v.tversky_loss(everywhere, half, alpha=0.3, beta=0.7, **of_class_1)
    close(alarms, 0.5 * 0.3 * 2 / (2 + 0.3 * 2))
    misses = v.tversky_loss(-everywhere, half, alpha=0.3, beta=0.7, **of_class_1)
    close(misses, 0.5 * 1)  # no hit
    right = np.where(half[:, None] == np.arange(2)[None, :, None], 50, -50).astype(np.float32)
    close(v.tversky_loss(right, half, smooth=0.0), 0)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_tversky_reads_no_ignored_pixel(smooth):
    labels = np.where(REGIONS == 3, 255, np.where(REGIONS == 4, -1, REGIONS))
    labels[2] = 255
    ignored = (labels < 0) | (labels == 255)
    pred = np.where(ignored[:, None], np.nan, MAPS)
    loss = v.TverskyLoss(smooth=smooth)
    value, gradient = jax.value_and_grad(loss)(pred, labels)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.any(np.moveaxis(np.asarray(gradient), 1, -1)[ignored])
    assert loss(pred, labels, reduction_override="none")[2] == 0
    with pytest.raises(checkify.JaxRuntimeError, match=r"target\[0, 0, 0\] is 7: .* or 255 to be"):
        v.checked(loss)(MAPS, np.full_like(REGIONS, 7))


def test_tversky_classes():
    values = v.tversky_loss(MAPS, REGIONS, ignore_index=None, reduction="none")
    close(v.tversky_loss(MAPS, REGIONS, reduction="none"), values)
    by_class = [
        v.tversky_loss(MAPS, REGIONS, class_weight=w, reduction="none")
        for w in np.eye(5, dtype="f4")
    ]
    close(sum(by_class), values)
    close(v.TverskyLoss(class_weight=2.0)(MAPS, REGIONS), 2 * values.mean())
    unknown = np.where(np.arange(3)[:, None, None] == 1, 255, REGIONS)
    values = v.tversky_loss(MAPS, unknown, ignore_index=None, reduction="none")
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])


def federated(key, labels, frequency, count, **options):
    return v.federated_class_mask(key, labels, frequency, num_classes_sampled=count, **options)


def test_federated_classes_are_those_present_and_enough_others():
    frequency = np.array([0, 5, 0, 1, 100, 3, 7, 2, 9, 4], np.float32)
    labels = np.array([[4, 10], [2, -1], [4, 1000]])  # 2 is present, though of frequency 0
    keys = jax.random.split(jax.random.key(0), 200)
    masks = np.asarray(jax.vmap(lambda key: federated(key, labels, frequency, 5))(keys))
    assert masks.dtype == np.float32
    assert set(masks.ravel()) == {0, 1}
    np.testing.assert_array_equal(masks.sum(1), 5)
    np.testing.assert_array_equal(masks[:, [2, 4]], 1)
    np.testing.assert_array_equal(masks[:, 0], 0)
    assert (masks[:, [1, 3, 5, 6, 7, 8, 9]].mean(0) > 0.1).all()
    everything = federated(keys[0], labels, frequency, 50)
    np.testing.assert_array_equal(everything, [0, *[1] * 9])
    many = federated(keys[0], np.arange(6), frequency, 3)
    np.testing.assert_array_equal(many, np.arange(10) < 6)
    none = federated(keys[0], np.zeros(0, np.int32), frequency, 2)
    assert none.sum() == 2


@pytest.mark.parametrize("power", [0.5, 0.0, 2.0])
def test_federated_draws_are_without_replacement_by_frequency(power):
    """How often each class is in, against draws one after the other in NumPy."""
    frequency, draws = np.array([1, 2, 4, 8, 16, 32, 64], np.float32), 4000
    keys = jax.random.split(jax.random.key(1), draws)
    labels = np.array([3])
    drawn = jax.vmap(lambda key: federated(key, labels, frequency, 4, power=power))(keys)
    rng, counts = np.random.default_rng(2), np.zeros(7)
    weight = np.where(np.arange(7) == 3, 0, frequency.astype(np.float64) ** power)
    for _ in range(draws):
        counts[rng.choice(7, 3, replace=False, p=weight / weight.sum())] += 1
    counts[3] = draws
    # Each share has a standard deviation of up to 0.5 / sqrt(4000), their difference √2 times it.
    np.testing.assert_allclose(drawn.mean(0), counts / draws, atol=4.5 * 0.5 * np.sqrt(2 / draws))


def test_federated_mask_of_sharded_labels_under_jit():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    key, frequency = jax.random.key(3), np.arange(1, 31)
    expected = federated(key, LABEL, frequency, 12)
    with jax.set_mesh(mesh):
        labels = jax.device_put(LABEL, NamedSharding(mesh, P("rows")))
        mask = jax.jit(lambda key, labels: federated(key, labels, frequency, 12))(key, labels)
    np.testing.assert_array_equal(jax.device_get(mask), expected)


def test_federated_loss_reads_the_classes_that_count():
    frequency = np.arange(1, 6)
    mask = v.federated_class_mask(jax.random.key(0), LABEL[:2], frequency, num_classes_sampled=3)
    hidden = np.where(np.asarray(mask)[None] == 0, np.nan, PRED)
    loss = v.CrossEntropyLoss(use_sigmoid=True)
    value, gradient = jax.value_and_grad(loss)(hidden, LABEL, mask[None], 16)
    values = np.asarray(v.binary_cross_entropy(PRED, LABEL, reduction="none"))
    close(value, (values * np.asarray(mask)).sum() / 16)
    np.testing.assert_array_equal(np.any(np.asarray(gradient), axis=0), np.asarray(mask) == 1)


def test_federated_errors():
    key, frequency = jax.random.key(0), np.ones(5, np.float32)
    with pytest.raises(ValueError, match=r"federated_class_mask: class_frequency must have shape"):
        v.federated_class_mask(key, LABEL, frequency[None])
    with pytest.raises(ValueError, match=r"num_classes_sampled must be ≥ 1, got 0"):
        federated(key, LABEL, frequency, 0)
    with pytest.raises(TypeError, match=r"labels must hold integer class indices, got float32"):
        v.federated_class_mask(key, LABEL.astype(np.float32), frequency)
