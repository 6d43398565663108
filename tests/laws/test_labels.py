"""Class indices of every integer type give what int32 gives, value and gradient to the last bit.

In a narrow type the comparisons that a loss makes would be wrong: uint8 has no -1, and 256 classes
counted in uint8 begin again at 0. Nothing is compiled here: once the labels are widened, all types
run the operations that int32 has run before.
"""

import functools
import inspect
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CLASSES, WITH_METRICS, first_state, updated
from visdet_jax import CrossEntropyLoss, FocalLoss, Loss, build_loss

NARROW = (np.int8, np.uint8, np.int16, np.uint16)


def takes_labels(row):
    _, *others = row.arguments()
    return any(np.issubdtype(x.dtype, np.integer) for x in jax.tree.leaves(others))


def takes_classes(row):
    return "classes" in inspect.signature(row.inputs).parameters


WITH_LABELS = [param for param in WITH_METRICS if takes_labels(param.values[1])]
OF_CLASSES = [param for param in WITH_LABELS if takes_classes(param.values[1])]


def loss_and_arguments(name, row, classes):
    """The loss of a row, and inputs with so many classes, where the row's can have more."""
    if not takes_classes(row):
        return build_loss({"type": name, **row.config}), row.arguments()
    config = {key: x for key, x in row.config.items() if np.shape(x) != (CLASSES,)}
    config |= {"num_classes": classes} if "num_classes" in config else {}
    return build_loss({"type": name, **config}), row.arguments(classes=classes)


def map_integers(function, tree):
    return jax.tree.map(lambda x: function(x) if np.issubdtype(x.dtype, np.integer) else x, tree)


def with_negatives(x):
    """Labels of which every third is ignored, or background."""
    return np.where(np.arange(x.size).reshape(x.shape) % 3 == 0, -1, x).astype(x.dtype)


def value_and_gradient(loss, pred, target, keywords):
    def total(pred):
        value, _ = updated(loss, first_state(loss), pred, target, **keywords)
        return sum(x.sum() for x in jax.tree.leaves(value)), value

    with jax.disable_jit():
        if not hasattr(loss, "loss_weight") and not hasattr(loss, "pull_weight"):
            return total(pred)[1]  # a metric
        return jax.value_and_grad(total, has_aux=True)(pred)


def narrowed(x, dtype):
    """Labels as another type; those that it cannot hold are the nearest that it can."""
    return np.clip(x, np.iinfo(dtype).min, np.iinfo(dtype).max).astype(dtype)


def assert_all_types_are_one(loss, pred, *labels):
    for dtype in NARROW:
        narrow = map_integers(functools.partial(narrowed, dtype=dtype), labels)
        given = value_and_gradient(loss, pred, *narrow)
        wide = map_integers(lambda x: x.astype(np.int32), narrow)
        expected = value_and_gradient(loss, pred, *wide)
        for x, y in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
            assert np.isfinite(y).all()
            np.testing.assert_array_equal(
                x,
                y,
                err_msg=f"{type(loss).__name__} of {np.dtype(dtype)} labels is not what it is of "
                "int32: widen them with as_labels (visdet_jax/core/checks.py)",
            )


@pytest.mark.parametrize(("name", "row"), WITH_LABELS)
def test_narrow_labels_of_256_classes(name, row):
    loss, (pred, *labels) = loss_and_arguments(name, row, 256)
    assert_all_types_are_one(loss, pred, *labels)


@pytest.mark.parametrize(("name", "row"), OF_CLASSES)
def test_narrow_negative_labels(name, row):
    loss, (pred, *labels) = loss_and_arguments(name, row, 256)
    assert_all_types_are_one(loss, pred, *map_integers(with_negatives, labels))


@pytest.mark.long
@pytest.mark.parametrize("classes", [CLASSES, 127, 128, 300])
@pytest.mark.parametrize(("name", "row"), OF_CLASSES)
def test_narrow_labels_of_other_numbers_of_classes(name, row, classes):
    loss, (pred, *labels) = loss_and_arguments(name, row, classes)
    assert_all_types_are_one(loss, pred, *labels)
    assert_all_types_are_one(loss, pred, *map_integers(with_negatives, labels))


# The losses of zeros are known.
@pytest.mark.parametrize(
    ("loss", "classes", "labels", "expected"),
    [
        (CrossEntropyLoss(reduction="none"), 182, np.uint8([95, 156, 180]), np.log(182)),
        (CrossEntropyLoss(reduction="none"), 256, np.uint8([0, 7]), np.log(256)),
        (CrossEntropyLoss(reduction="none"), 128, np.int8([0, 127]), np.log(128)),
        (FocalLoss(reduction="none"), 256, np.uint8([0, 7]), np.log(2) / 4 * (0.25 + 255 * 0.75)),
    ],
)
def test_known_values(loss, classes, labels, expected):
    values = loss(jnp.zeros((len(labels), classes)), labels)
    np.testing.assert_allclose(values.reshape(len(labels), -1).sum(-1), expected, rtol=1e-5)


def test_a_known_gradient():
    gradient = jax.grad(CrossEntropyLoss())(jnp.zeros((1, 601)), np.uint8([5]))
    _, negative = np.nonzero(gradient < 0)
    assert negative.tolist() == [5]


def test_a_loss_that_does_not_widen_its_labels_is_found():
    @dataclass(frozen=True, kw_only=True)
    class Narrow(Loss):
        def compute(self, pred, target, weight, **options):
            own = target[:, None] == jnp.arange(pred.shape[1]).astype(target.dtype)[None]
            return jnp.where(own, pred, 0).sum()

    pred, label = np.ones((2, 300), np.float32), np.array([3, 4], np.int32)
    assert_all_types_are_one(Narrow(), pred[:, :100], label, {})
    with pytest.raises(AssertionError, match="Narrow of int8 labels is not what it is of int32"):
        assert_all_types_are_one(Narrow(), pred, label, {})
