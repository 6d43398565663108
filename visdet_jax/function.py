"""The edge of every public function: one jit, traceable numbers, checked arrays, named errors."""

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from visdet_jax.numerics import WholeExponent


def jitted(
    function: Callable[..., Any], static: Sequence[str] = (), exponents: Sequence[str] = ()
) -> Callable[..., Any]:
    """Jits `function` and puts its name in front of its errors.

    Parameters whose default is a string or a bool choose the formula and are static, and so are
    `axis_name` and those named in `static`. All others are traced: a new number compiles nothing,
    and `jax.vmap` can sweep it.
    Python numbers given for `avg_factor` or for a parameter with a float default are handed over
    as floats of one type, so that 3, 3.0 and an array share one trace.
    Those named in `exponents` are an exception where they are whole Python numbers up to 4: such
    a power is a product or two, several times faster than one that may be anything.
    """
    parameters = inspect.signature(function).parameters.values()
    powers = {p.name: p.default for p in parameters if p.name in exponents}
    chosen = [
        p.name
        for p in parameters
        if isinstance(p.default, str | bool) or p.name in ("axis_name", *static)
    ]
    floats = {p.name for p in parameters if isinstance(p.default, float)} | {"avg_factor"}
    compiled = jax.jit(function, static_argnames=chosen)
    if "fun" in chosen:  # which the jit of jax 0.8 has a parameter of its own for
        compiled = jax.jit(_with_fun_renamed(function), static_argnames=[*chosen, "fun_"])

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        number = jax.dtypes.canonicalize_dtype(np.float64).type
        options = powers | options
        for name in floats & options.keys():
            value = options[name]
            if isinstance(value, int | float | np.number):
                whole = name in powers and value in range(5)
                options[name] = WholeExponent(int(value)) if whole else number(value)
        with errors_named(function.__name__):
            if "fun" in chosen and "fun" in options:
                options["fun_"] = options.pop("fun")
            return compiled(*args, **options)

    return call


def _with_fun_renamed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with `fun_` for its keyword `fun`."""

    def renamed(*args: Any, **options: Any) -> Any:
        if "fun_" in options:
            options["fun"] = options.pop("fun_")
        return function(*args, **options)

    renamed.__name__ = function.__name__
    return renamed


@contextlib.contextmanager
def errors_named(name: str) -> Iterator[None]:
    """Puts `name` in front of the message of a TypeError or ValueError."""
    try:
        yield
    except (TypeError, ValueError) as error:
        # jax's own errors are subclasses with their own constructors and tell their own story.
        if type(error) not in (TypeError, ValueError):
            raise
        raise type(error)(f"{name}: {error}") from error


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's code that led here.

    Between the two lie jax, when it traces, and flax, when it builds a module: with a fixed
    `stacklevel` the warning would be theirs, and Python hides deprecations in others' modules.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


_BETWEEN = ("visdet_jax", "flax", "jax", "contextlib")


def exportable(cls: type) -> type:
    """Lets a NamedTuple be an argument of what `jax.export` serialises."""
    name = f"visdet_jax.{cls.__name__}"
    return jax.export.register_namedtuple_serialization(cls, serialized_name=name)


def class_mask(labels: jax.Array, classes: int) -> jax.Array:
    """Which class each label is, (..., classes) as bools; none for a label out of range."""
    index = jnp.arange(classes, dtype=labels.dtype).reshape((1,) * labels.ndim + (classes,))
    return jnp.expand_dims(labels, -1) == index


def check_array(name: str, x: Any) -> None:
    """Raises a TypeError where `x` has no shape and dtype (a list, None, a string)."""
    if not (hasattr(x, "dtype") and hasattr(x, "shape")):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}")


def compute_dtype(**arrays: Any) -> Any:
    """float64 where an array is float64, else float32: half floats are computed in float32.

    Raises a TypeError where `pred` holds no floats, or where something is no array.
    """
    for name, x in arrays.items():
        check_array(name, x)
    if "pred" in arrays and not jnp.issubdtype(arrays["pred"].dtype, jnp.floating):
        raise TypeError(f"pred must be floating point, got {arrays['pred'].dtype}")
    return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays.values()) else jnp.float32


def as_dtype(dtype: Any, *numbers: Any) -> Any:
    """Hyperparameters in the type that is computed in, whatever type they were given in."""
    arrays = tuple(
        number if isinstance(number, WholeExponent) else jnp.asarray(number).astype(dtype)
        for number in numbers
    )
    return arrays if len(arrays) > 1 else arrays[0]


def check_same_shape(pred: jax.Array, target: jax.Array) -> None:
    """Raises a ValueError where one array would have to be broadcast to the other."""
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have the same shape, got {pred.shape} and {target.shape}"
        )


def check_labels(name: str, labels: Any, shape: tuple[int, ...]) -> None:
    """Raises where `labels` are no integers (TypeError) or not of `shape` (ValueError)."""
    check_array(name, labels)
    if labels.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {labels.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integer class indices, got {labels.dtype}")


def replicated(x: jax.Array) -> jax.Array:
    """`x` whole on every device, for a loss whose rows depend on each other.

    Explicitly sharded arrays can neither be sorted along a sharded axis nor paired with
    themselves (both axes of N × N would be the same of the mesh). All others stay as they are.
    """
    x = jnp.asarray(x)
    if all(axis is None for axis in jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*[None] * x.ndim))


def sharded_as(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x` spread over the devices as the first axes of an explicitly sharded array are."""
    spec = jax.typeof(like).sharding.spec
    spec = [*spec, *[None] * like.ndim][: x.ndim]
    if all(axis is None for axis in spec):
        return x
    return jax.sharding.reshard(x, PartitionSpec(*spec))
