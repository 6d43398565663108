"""The derivative of every loss is that of its value, at every option and other numbers."""

import functools
from dataclasses import dataclass, replace
from typing import Literal

import jax.numpy as jnp
import numpy as np
import pytest

from cases import (
    CASES,
    CLASSES,
    ROWS,
    Row,
    elementwise,
    elementwise_extremes,
    few,
    floats,
    heatmaps,
    labels,
    probabilities,
    saturated,
)
from derivatives import assert_derivative, check_class
from settings import numbers
from visdet_jax import LOSSES, Loss, weighted_loss
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.hyperparameters import Exponent, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.reduction import weight_reduce_loss

DIFFERENTIABLE = [name for name, rows in CASES.items() if not rows[0].is_metric]


def rows_of_bases(name):
    """The rows of the registered base classes of a class."""
    bases = (base.__name__ for base in LOSSES[name].__mro__[1:])
    return [row for base in bases for row in CASES.get(base, ())]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", few(DIFFERENTIABLE))
def test_derivatives_at_every_option(name, x64):
    check_class(LOSSES[name], CASES[name], rows_of_bases(name))


@pytest.mark.long
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_at_every_option_of_every_row(name, x64):
    check_class(LOSSES[name], CASES[name], rows_of_bases(name), thorough=True)


def listed_peaks(make):
    """A heatmap whose peaks are listed, with an empty slot."""

    def inputs(rng):
        pred, target = heatmaps(make)(rng)
        slots = np.where(np.arange(ROWS) == 2, -1, labels(rng, ROWS))
        return pred, target, {"pos_inds": slots, "pos_labels": labels(rng)}

    return inputs


def test_derivatives_of_listed_peaks(x64):
    """A call whose loss is a scalar, without a weight: no row of CASES can be that."""
    row = Row(listed_peaks(probabilities), listed_peaks(saturated), None, is_bare=True)
    cls = LOSSES["GaussianFocalLoss"]
    assert_derivative(cls(), row, numbers(cls, {}), "pos_inds")


# A law that nothing can break proves nothing. The losses below are wrong, each in another place.


def huber(pred, target, delta):
    gap = jnp.abs(pred - target)
    return jnp.where(gap <= delta, gap**2 / 2, delta * (gap - delta / 2))


def d_huber(pred, target, *, delta):
    return jnp.clip(pred - target, -delta, delta)


def d_huber_at_the_default(pred, target, *, delta):
    return jnp.clip(pred - target, -1, 1)


def huber_loss(derivative):
    @weighted_loss(derivative=derivative)
    def huber_loss(pred, target, *, delta: Positive = 1.0):
        return huber(pred, target, delta)

    return huber_loss


def options_loss(derivative):
    """A loss with a flag, a choice, and a number that may be None."""

    @weighted_loss(derivative=derivative)
    def options_loss(
        pred,
        target,
        *,
        flag: bool = False,
        mode: Literal["square", "cube"] = "square",
        cap: Positive | None = None,
    ):
        value = (pred - target) ** 2 if mode == "square" else (pred - target) ** 3
        value = 3 * value if flag else value
        return value if cap is None else cap * jnp.tanh(value / cap)

    return options_loss


def d_options(pred, target, *, flag, mode, cap, wrong=None):
    gap = pred - target
    square = mode == "square" or wrong == "mode"
    value, derivative = (gap**2, 2 * gap) if square else (gap**3, 3 * gap**2)
    if flag and wrong != "flag":
        value, derivative = 3 * value, 3 * derivative
    if cap is None:
        return derivative
    return derivative if wrong == "cap" else derivative * (1 - jnp.tanh(value / cap) ** 2)


def powers_loss(wrong):
    """A power whose derivative is wrong for whole exponents, for others, or for neither."""

    def value(pred, gamma):
        return power(pred * pred, gamma)

    def derivative(pred, gamma):
        whole = not isinstance(gamma, jnp.ndarray)
        factor = 1 if wrong is None or whole != (wrong == "whole") else 2
        return factor * power_and_derivative(pred * pred, gamma)[1] * 2 * pred

    weighted = closed_form(value, derivative)

    @jitted
    def powers_loss(pred, target, weight=None, *, gamma: Exponent = 2.0, reduction="mean"):
        weight = None if weight is None else weight.astype(pred.dtype)[:, None]
        values = weighted(weight, pred, as_dtype(pred.dtype, gamma))
        return weight_reduce_loss(values, None, reduction)

    return powers_loss


def class_of(function, **fields):
    """A class made of a function, as the package's are."""
    annotations = {name: kind for name, (kind, _) in fields.items()}
    values = {name: default for name, (_, default) in fields.items()}

    def compute(self, pred, target, weight, avg_factor=None, **options):
        return function(pred, target, weight, **self.settings, **options)

    namespace = {"__annotations__": annotations, **values, "compute": compute}
    cls = type(Loss)("WrongLoss", (Loss,), namespace, function=function)
    return dataclass(frozen=True, kw_only=True)(cls)


HUBER = functools.partial(class_of, delta=(float, 1.0))
OPTIONS = functools.partial(
    class_of, flag=(bool, False), mode=(str, "square"), cap=(float | None, None)
)
POWERS = functools.partial(class_of, gamma=(float, 2.0))
ROW = Row(elementwise, elementwise_extremes, floats(ROWS, 1))


def d_options_wrong_in(part):
    return functools.partial(d_options, wrong=part)


@pytest.mark.parametrize(
    "cls",
    [HUBER(huber_loss(d_huber)), OPTIONS(options_loss(d_options)), POWERS(powers_loss(None))],
    ids=["huber", "options", "powers"],
)
def test_right_derivatives_pass(cls, x64):
    check_class(cls, [ROW])


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (HUBER(huber_loss(d_huber_at_the_default)), "WrongLoss, row 0: .*delta=1.3"),
        (OPTIONS(options_loss(d_options_wrong_in("flag"))), "flag=True: "),
        (OPTIONS(options_loss(d_options_wrong_in("mode"))), "mode='cube': "),
        (OPTIONS(options_loss(d_options_wrong_in("cap"))), "cap=0.7: "),
        (POWERS(powers_loss("whole")), "gamma=3"),
        (POWERS(powers_loss("traced")), "gamma=1.3"),
    ],
    ids=["at the default", "flag", "mode", "None", "whole exponent", "exponent"],
)
def test_wrong_derivatives_are_found(cls, message, x64):
    with pytest.raises(AssertionError, match=message):
        check_class(cls, [ROW])


def test_an_option_that_no_row_suits_is_named(x64):
    @weighted_loss
    def log_loss(pred, target, *, positive: bool = False):
        return jnp.log(pred) if positive else pred

    cls = class_of(log_loss, positive=(bool, False))
    row = replace(ROW, inputs=lambda rng: (-np.ones((ROWS, CLASSES), np.float32),) * 2)
    with pytest.raises(
        pytest.fail.Exception, match=r"WrongLoss\(positive=True\): add a row with this config"
    ):
        check_class(cls, [row])
