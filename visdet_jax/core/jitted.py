"""The edge of every public function: one jit, checked hyperparameters, errors with a name."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax
import numpy as np

from visdet_jax.core.hyperparameters import allowed
from visdet_jax.core.names import did_you_mean
from visdet_jax.core.power import WholeExponent

P = ParamSpec("P")
R = TypeVar("R")


@overload
def jitted(function: Callable[P, R]) -> Callable[P, R]: ...


@overload
def jitted(*, static: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def jitted(function: Any = None, *, static: Sequence[str] = ()) -> Any:
    """Decorator that jits a function, checks its hyperparameters and puts its name in its errors.

    - Parameters whose default is a string or a bool choose the formula, and are static; so are
      `axis_name` and those named in `static`. All other parameters are traced: a new number
      compiles nothing, and `jax.vmap` can sweep it.
    - Python numbers for `avg_factor` or for a parameter with a float default are passed on as
      floats of one type, so that 3, 3.0 and an array share one trace.
    - Parameters annotated as `Exponent` are static where they are whole Python numbers up to 4:
      such a power is a product or two, several times faster than a power of any number.
    - Annotations with a range or with choices are checked; see `core.hyperparameters`.
    - A keyword that is unknown or missing is a TypeError that says what was meant.
    """
    if function is None:
        return functools.partial(jitted, static=static)
    name, rules = function.__name__, allowed(function)
    parameters = inspect.signature(function).parameters
    positional = [p.name for p in parameters.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    known = parameters.keys()
    required = {p.name for p in parameters.values() if p.default is p.empty}
    exponents = {p: parameters[p].default for p, rule in rules.items() if rule.exponent}
    static_names = [
        p.name
        for p in parameters.values()
        if isinstance(p.default, str | bool) or p.name in ("axis_name", *static)
    ]
    floats = {p.name for p in parameters.values() if isinstance(p.default, float)} | {"avg_factor"}
    compiled = jax.jit(function, static_argnames=static_names)

    def check(args: Sequence[Any], options: dict[str, Any]) -> None:
        if not known >= options.keys():
            key = next(key for key in options if key not in known)
            raise TypeError(
                f"there is no argument {key!r}.{did_you_mean(key, parameters)} "
                f"The arguments: {', '.join(parameters)}."
            )
        given = dict(zip(positional, args, strict=False)) | options
        if not required <= given.keys():
            key = next(key for key in parameters if key in required and key not in given)
            raise TypeError(f"the argument {key!r} is missing")
        for key, rule in rules.items():
            if key in given:
                rule.check(key, given[key])

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        with errors_named(name):
            check(args, options)
            number = jax.dtypes.canonicalize_dtype(np.float64).type
            options = exponents | options
            for key in floats & options.keys():
                value = options[key]
                if isinstance(value, int | float | np.number):
                    is_whole = key in exponents and value in range(5)
                    options[key] = WholeExponent(int(value)) if is_whole else number(value)
            return compiled(*args, **options)

    return call


class errors_named:
    """Context that puts `name` before the message of a TypeError or ValueError, unless it is there.

    A class, since a generator made a context takes 1.5 µs of each call of a loss.
    """

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        # jax's own errors are subclasses with constructors of their own; they stay as they are.
        if kind not in (TypeError, ValueError) or str(error).startswith(f"{self.name}: "):
            return
        raise kind(f"{self.name}: {error}") from error
