"""What all losses of pairs of boxes have in common."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import programs
import visdet_jax as v
from losses.boxes.pairs import TARGET, boxes, close, gradient, values
from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import clamp_min, divide, divide_once
from visdet_jax.losses.boxes.box_loss import smooth_near_0

STATE = v.WIoUState(jnp.float32(0.4))
PER_BOX = [
    (v.iou_loss, {}),
    (v.giou_loss, {}),
    (v.diou_loss, {}),
    (v.ciou_loss, {}),
    (v.ciou_loss, {"gated": False}),
    (v.eiou_loss, {}),
    (v.siou_loss, {}),
    (v.siou_loss, {"neg_gamma": True}),
    (v.efficient_iou_loss, {}),
    (v.mpdiou_loss, {"image_shape": (100, 120)}),
    (v.shape_iou_loss, {"scale": 1.0}),
    *((v.alpha_iou_loss, {"mode": mode, "alpha": 3.0}) for mode in ("iou", "giou", "diou", "ciou")),
    (v.alpha_iou_loss, {"mode": "ciou", "alpha": 0.5}),
    (v.wasserstein_loss, {"eps": 0.0}),
    (v.wiou_loss, {"state": STATE}),
]
ALL = [*PER_BOX, (v.bounded_iou_loss, {})]


def name_of(case):
    if callable(case):
        return case.__name__
    return "-".join(f"{key}={x}" for key, x in case.items() if isinstance(x, str | float | bool))


KINDS = (v.giou_loss, v.efficient_iou_loss, v.wiou_loss, v.bounded_iou_loss)  # without --all
every_loss = pytest.mark.parametrize(
    ("loss", "config"),
    [case if case[0] in KINDS else pytest.param(*case, marks=pytest.mark.long) for case in ALL],
    ids=name_of,
)
every_loss_per_box = pytest.mark.parametrize(("loss", "config"), PER_BOX, ids=name_of)


@pytest.mark.one_in(2)
@every_loss
def test_equal_boxes_cost_nothing(loss, config):
    rounding = 2e-4 if config.get("alpha") == 0.5 else 1e-5  # √eps
    for equal in (boxes(0), TARGET):
        each = values(loss, equal, equal, **config)
        close(each, 0, atol=rounding)
        close(each.sum(), 0, atol=10 * rounding)
        assert np.isfinite(gradient(loss, equal, equal, **config)).all()


@pytest.mark.one_in(3)
@every_loss_per_box
def test_a_weight_per_coordinate_counts_by_its_mean(loss, config):
    pred, target = boxes(0), boxes(1)
    weight = np.random.default_rng(0).random((32, 4)).astype(np.float32)
    close(loss(pred, target, weight, **config), loss(pred, target, weight.mean(1), **config))
    with pytest.raises(ValueError, match=loss.__name__):
        loss(pred, target, weight[:, :2], **config)


@pytest.mark.one_in(2)
@every_loss
def test_finite_for_any_four_numbers(loss, config):
    """Inverted, empty, equal, touching, tiny and huge boxes in every combination drawn."""
    rng = np.random.default_rng(0)
    numbers = np.float32(
        [0, 1, 2, 5, 9, 10, -1, -9, 1e-6, -1e-6, 2e-6, 1e-3, -1e-3, 1e4, -1e4, 1e-7, 1e-30]
    )
    pred, target = rng.choice(numbers, (2, 20000, 4))
    target[::4] = pred[::4]

    def total(pred, target):
        each = loss(pred, target, reduction="none", **config)
        return each.sum(), each

    gradients, each = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(pred, target)
    for array in (each, *gradients):
        assert np.isfinite(array).all()


@every_loss
def test_invariant_to_place(loss, config):
    pred, target = boxes(0), boxes(1)
    move = np.float32([100, -70, 100, -70])
    moved = loss(pred + move, target + move, **config)
    close(moved, loss(pred, target, **config), rtol=1e-4)


def test_a_smooth_width_near_0_is_l1():
    """See `smooth_near_0`: 20² / 2e-38 is no float32."""
    error = jnp.float32([0.0, 0.5, 20.0])

    def total(error):
        return smooth_near_0(error, jnp.float32(2e-38)).sum()

    value, derivative = jax.value_and_grad(total)(error)
    assert value == 20.5
    np.testing.assert_array_equal(derivative[1:], 1)


# Of each loss the numbers that mean nothing: the field, the value and what the error says.
MEANINGLESS = [
    (v.alpha_iou_loss, "AlphaIoULoss", "alpha", 0.0, "above 0"),
    (v.alpha_iou_loss, "AlphaIoULoss", "eps", -1.0, "at least 0"),
    (v.bounded_iou_loss, "BoundedIoULoss", "beta", 0, "above 0"),
    (v.bounded_iou_loss, "BoundedIoULoss", "eps", -1.0, "at least 0"),
    (v.ciou_loss, "CIoULoss", "eps", -1.0, "at least 0"),
    (v.diou_loss, "DIoULoss", "eps", -1.0, "at least 0"),
    (v.efficient_iou_loss, "EfficientIoULoss", "eps", -1.0, "at least 0"),
    (v.efficient_iou_loss, "EfficientIoULoss", "focal_gamma", -0.5, "at least 0"),
    (v.eiou_loss, "EIoULoss", "eps", -1.0, "at least 0"),
    (v.eiou_loss, "EIoULoss", "smooth_point", 0, "above 0"),
    (v.giou_loss, "GIoULoss", "eps", -1.0, "at least 0"),
    (v.iou_loss, "IoULoss", "eps", -1.0, "at least 0"),
    (v.mpdiou_loss, "MPDIoULoss", "eps", -1.0, "at least 0"),
    (v.shape_iou_loss, "ShapeIoULoss", "eps", -1.0, "at least 0"),
    (v.shape_iou_loss, "ShapeIoULoss", "scale", np.inf, "finite"),
    (v.siou_loss, "SIoULoss", "eps", -1.0, "at least 0"),
    (v.wasserstein_loss, "WassersteinLoss", "constant", 0.0, "above 0"),
    (v.wasserstein_loss, "WassersteinLoss", "eps", -1.0, "at least 0"),
    (v.wasserstein_loss, "WassersteinLoss", "gamma", -2.0, "above 0"),
    (v.wiou_loss, "WIoULoss", "alpha", 0.0, "above 0"),
    (v.wiou_loss, "WIoULoss", "delta", 0.0, "above 0"),
    (v.wiou_statistics, "WIoULoss", "momentum", 1.5, r"in \(0, 1\]"),
]


@pytest.mark.parametrize(("function", "name", "field", "number", "must"), MEANINGLESS)
def test_numbers_that_mean_nothing_raise(function, name, field, number, must):
    config = {field: number}
    with pytest.raises(ValueError, match=f"{name}: {field} must be {must}, got {number}"):
        v.build_loss({"type": name, **config})
    batch = (STATE, TARGET, TARGET) if function is v.wiou_statistics else (TARGET, TARGET)
    with pytest.raises(ValueError, match=f"{function.__name__}: {field} must be {must}, got"):
        function(*batch, **config)


def test_the_derivative_by_columns_makes_no_arrays_of_mostly_zeros():
    """See `loss_of_columns`: the derivative by slices of pred pads each to pred's shape."""
    pred, target = jnp.asarray(boxes(0, 4096)), jnp.asarray(boxes(1, 4096))

    def of_slices(pred):
        pair = pair_geometry(pred, target)
        return divide(pair.overlap, pair.union).sum()

    assert " pad(" in programs.compiled(jax.grad(of_slices), pred).as_text()
    for loss in (v.giou_loss, v.ciou_loss):
        both = jax.value_and_grad(lambda p, loss=loss: loss(p, target))
        assert " pad(" not in programs.compiled(both, pred).as_text()


def test_columns_need_half_the_memory_of_slices():
    """See `columns`: GIoU of arrays (..., 2)."""
    pred, target = jnp.asarray(boxes(0, 4096)), jnp.asarray(boxes(1, 4096))

    def area(sides):
        sides = clamp_min(sides, 0)
        return sides[..., 0] * sides[..., 1]

    def of_slices(pred):
        (a1, a2), (b1, b2) = ((b[..., :2], b[..., 2:]) for b in (pred, target))
        overlap = area(jnp.minimum(a2, b2) - jnp.maximum(a1, b1))
        union = area(a2 - a1) + area(b2 - b1) - overlap
        enclosing = area(jnp.maximum(a2, b2) - jnp.minimum(a1, b1))
        return (1 - (divide(overlap, union) - divide(enclosing - union, enclosing))).sum()

    def of_columns(pred):
        return v.giou_loss(pred, target, reduction="sum")

    slices, columns = (
        programs.temporary_bytes(jax.value_and_grad(loss), pred) for loss in (of_slices, of_columns)
    )
    assert columns < 3 * pred.nbytes
    assert slices > 1.3 * columns


def test_classes_hold_their_numbers():
    pred, target = jnp.asarray(boxes(0)), jnp.asarray(boxes(1))
    for config, expected in (
        ({"type": "DIoULoss", "eps": 1.0}, v.diou_loss(pred, target, eps=1.0)),
        ({"type": "CIoULoss", "eps": 1.0}, v.ciou_loss(pred, target, eps=1.0)),
        ({"type": "EIoULoss", "smooth_point": 0.5}, v.eiou_loss(pred, target, smooth_point=0.5)),
        ({"type": "SIoULoss", "neg_gamma": True}, v.siou_loss(pred, target, neg_gamma=True)),
        ({"type": "BoundedIoULoss", "beta": 0.5}, v.bounded_iou_loss(pred, target, beta=0.5)),
    ):
        close(v.build_loss(config)(pred, target), expected)


def test_a_short_gradient_stores_less_than_by_divide(monkeypatch):
    """See `divide_once`. XLA of jax 0.10 stores the values alone, that of 0.12 quotients too."""
    pred, target = jnp.asarray(boxes(0, 4096)), jnp.asarray(boxes(1, 4096))

    def stored():
        jax.clear_caches()
        return [
            programs.temporary_bytes(
                jax.value_and_grad(functools.partial(loss, avg_factor=7.0)),
                *(pred, target, jnp.ones(4096)),
            )
            for loss in (v.iou_loss, v.giou_loss, v.diou_loss, v.efficient_iou_loss)
        ]

    once = stored()
    monkeypatch.setattr(divide_once, "jvp", lambda *given: jax.jvp(divide, *given))
    by_divide = stored()
    jax.clear_caches()
    assert (np.array(once) < by_divide).all()
    if programs.IS_JAX_0_10:
        assert max(once) < 0.5 * pred.nbytes
