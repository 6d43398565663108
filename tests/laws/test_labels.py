"""Class indices of every integer type give what int32 gives, value and gradient to the last bit.

In a narrow type the comparisons that a loss makes would be wrong: uint8 has no -1, and 256 classes
counted in uint8 begin again at 0. So the losses widen their labels before they compute with them,
which is seen in what JAX traces; with `--all` values and gradients are compared too.
"""

import functools
import inspect
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES, CLASSES, WITH_METRICS, first_state, updated, value_of
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


def is_metric(loss):
    rows = CASES.get(type(loss).__name__, ())
    return any(row.is_metric for row in rows)


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
        if is_metric(loss):
            return total(pred)[1]
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


# What may be done with narrow integers before they are widened: they are moved, not computed with.
MOVES = {"broadcast_in_dim", "copy", "reshape", "select_n", "slice", "squeeze", "transpose"}


def is_narrow(x):
    dtype = getattr(x.aval, "dtype", np.dtype(bool))
    return dtype in NARROW


def is_jaxpr(x):
    return hasattr(x, "eqns")


def computed_with(jaxpr, of_floats=()):
    """The operations that compute with narrow integers, or make them.

    Those that are made of floats or of bools, such as places among bins, are no labels:
    `of_floats` are the inputs that are such, and what is computed from them is found on the way.
    """
    of_floats = set(of_floats)
    for operation in jaxpr.eqns:
        parameters = jax.tree.leaves([*operation.params.values()], is_leaf=is_jaxpr)
        inner = [part for part in parameters if is_jaxpr(part)]
        for part in inner:
            pairs = zip(part.invars[::-1], operation.invars[::-1], strict=False)
            yield from computed_with(part, [own for own, x in pairs if is_of_floats(x, of_floats)])
        given = [x for x in operation.invars if is_narrow(x)]
        name = operation.primitive.name
        is_float = not any(jnp.issubdtype(x.aval.dtype, jnp.integer) for x in operation.invars)
        if (name == "convert_element_type" and is_float) or (
            given and all(is_of_floats(x, of_floats) for x in given)
        ):
            of_floats |= {x for x in operation.outvars if is_narrow(x)}
            continue
        widens = name == "convert_element_type" and not is_narrow(operation.outvars[0])
        # Labels may be compared with each other; a number may not be one of their type.
        compares = name in ("eq", "ne") and not any(hasattr(x, "val") for x in given)
        if given and not (inner or widens or compares or name in MOVES):
            yield name
        if not given and not inner and any(map(is_narrow, operation.outvars)):
            yield name


def is_of_floats(x, of_floats):
    """Whether it is a number, or a variable among those."""
    return hasattr(x, "val") or x in of_floats


def assert_widened(loss, *arguments):
    for dtype in NARROW:

        def value(pred, target, keywords):
            return value_of(loss, pred, target, **keywords)

        function = value if is_metric(loss) else jax.value_and_grad(value)
        pred, *labels = arguments
        narrow = map_integers(functools.partial(narrowed, dtype=dtype), labels)
        wrong = set(computed_with(jax.make_jaxpr(function)(pred, *narrow).jaxpr))
        assert not wrong, (
            f"{type(loss).__name__} computes with {np.dtype(dtype)} labels ({', '.join(wrong)}): "
            "widen them with as_labels (visdet_jax/core/checks.py) before anything else"
        )


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("name", "row"), WITH_LABELS)
def test_labels_are_widened_before_they_are_computed_with(name, row):
    loss, arguments = loss_and_arguments(name, row, CLASSES)
    assert_widened(loss, *arguments)


@pytest.mark.long
@pytest.mark.parametrize(("name", "row"), WITH_LABELS)
def test_narrow_labels_of_256_classes(name, row):
    loss, (pred, *labels) = loss_and_arguments(name, row, 256)
    assert_all_types_are_one(loss, pred, *labels)


@pytest.mark.long
@pytest.mark.parametrize("classes", [CLASSES, 127, 128, 256, 300])
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
            own = target[:, None] == jnp.arange(pred.shape[1], dtype=target.dtype)[None]
            return jnp.where(own, pred, 0).sum()

    pred, label = np.ones((2, 300), np.float32), np.array([3, 4], np.int32)
    with pytest.raises(AssertionError, match=r"Narrow computes with int8 labels \(.*iota.*\)"):
        assert_widened(Narrow(), pred, label, {})
    assert_all_types_are_one(Narrow(), pred[:, :100], label, {})
    with pytest.raises(AssertionError, match="Narrow of int8 labels is not what it is of int32"):
        assert_all_types_are_one(Narrow(), pred, label, {})
