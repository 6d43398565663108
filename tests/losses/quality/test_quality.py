"""What the losses of a quality share: which they are, and the labels that they take."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from losses.quality.qualities import close
from programs import temporary_bytes

NAMES = ["IoUAwareBCELoss", "MatchabilityAwareLoss", "QualityFocalLoss", "VarifocalLoss"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_quality_losses_of_sigmoids(name):
    assert issubclass(v.LOSSES[name], v.QualityLoss)
    with pytest.raises(ValueError, match=f"{name}: use_sigmoid must be True"):
        v.build_loss({"type": name, "use_sigmoid": False})


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_every_type(name):
    """Of 300 classes, which int8 and uint8 cannot count; floats are truncated, as in mmdet."""
    rng = np.random.default_rng(0)
    pred = rng.normal(size=(4, 300)).astype(np.float32)
    label, iou = np.array([0, 44, 127, 100]), rng.random(4).astype(np.float32)
    loss = v.build_loss({"type": name})
    expected = loss(pred, (label, iou))
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        assert loss(pred, (label.astype(dtype), iou)) == expected
    assert loss(pred, ((label + 0.5).astype(np.float32), iou)) == expected
    background = loss(pred, (np.full(4, -1), iou))
    for label in (np.full(4, 300), np.full(4, -1.0, np.float32), np.full(4, 2**32 - 1, np.uint32)):
        close(loss(pred, (label, iou)), background)


def test_int64_labels_beyond_int32_are_background(x64):
    pred, iou = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    far = v.quality_focal_loss(pred, (np.array([2**32, 2**32 + 1]), iou))
    assert far == v.quality_focal_loss(pred, (np.array([3, 3]), iou))


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_fit(name):
    loss = v.build_loss({"type": name})
    pred, label, iou = np.zeros((2, 3), np.float32), np.zeros(2, int), np.zeros(2, np.float32)
    for target, message in (
        ((label[:1], iou), r"label must have shape \(2,\), got \(1,\)"),
        ((label, iou[:1]), r"score must have shape \(2,\), got \(1,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            loss(pred, target)
    for target in ((label,), (label, iou, iou)):
        with pytest.raises(ValueError, match=r"target must be \(label, score\) or an array, got"):
            loss(pred, target)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("IoUAwareBCELoss", {"alpha": 1.5, "gamma": -1.0, "tau": 0.0}),
        ("MatchabilityAwareLoss", {"alpha": -0.1, "gamma": -1.0}),
        ("QualityFocalLoss", {"alpha": 1.5, "beta": -2.0}),
        ("VarifocalLoss", {"alpha": -0.1, "gamma": -1.0}),
    ],
)
def test_ranges(name, numbers):
    function = v.LOSSES[name].functions[0]
    pred, target = np.zeros((2, 3), np.float32), (np.zeros(2, int), np.zeros(2, np.float32))
    for key, number in numbers.items():
        with pytest.raises(ValueError, match=f"{name}: {key} must be"):
            v.build_loss({"type": name, key: number})
        with pytest.raises(ValueError, match=f"{function.__name__}: {key} must be"):
            function(pred, target, **{key: number})


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("IoUAwareBCELoss", {"gamma": 1.5}),
        ("MatchabilityAwareLoss", {"gamma": 1.5}),
        ("QualityFocalLoss", {"beta": 1.5}),
        ("VarifocalLoss", {"gamma": 1.5}),
    ],
)
def test_the_derivative_needs_no_stored_array(name, config):
    """Value and derivative spell the sigmoid in two ways; in one it would be stored."""
    loss = v.build_loss({"type": name, **config})
    pred, target = np.zeros((500, 80), np.float32), (np.zeros(500, int), np.zeros(500, np.float32))
    with_derivative = temporary_bytes(jax.value_and_grad(loss), pred, target)
    assert with_derivative == temporary_bytes(loss, pred, target)


@pytest.mark.parametrize("name", ["IoUAwareBCELoss", "MatchabilityAwareLoss", "VarifocalLoss"])
def test_of_class_indices_the_gap_of_negatives_is_the_score(name):
    """With |p - q| and its sign it takes up to a tenth longer."""
    loss = v.build_loss({"type": name, "gamma": 1.5})
    pred, target = np.zeros((4, 3), np.float32), (np.zeros(4, int), np.zeros(4, np.float32))
    program = str(jax.make_jaxpr(jax.value_and_grad(loss))(pred, target))
    assert " = sign " not in program
    assert program.count(" = abs ") == 1  # of the sigmoid
