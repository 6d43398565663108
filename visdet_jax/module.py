"""The bases of the Flax shims: a loss as its configuration."""

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from visdet_jax.checks import AVG_FACTOR, FINITE, WEIGHT, Expected, read_rows
from visdet_jax.reduction import REDUCTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(nnx.Module):
    """A Flax module that is its configuration: frozen, equal and hashed by value, no leaves.

    It is callable without init or apply, usable as a jit argument (static or not), and as an
    attribute of nnx and linen modules. Subclasses repeat the dataclass decorator.
    """

    def __post_init__(self) -> None:
        for name, kind in field_types(type(self)).items():
            value = getattr(self, name)
            if any(typing.get_origin(option) is tuple for option in alternatives(kind)):
                value = as_tuple(value)  # as lists are: a loss is hashed by its fields
                object.__setattr__(self, name, value)
            if not _fits(value, kind):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be {describe(kind)}, got {value!r}"
                )

    def refuse_unless_positive(self, *names: str) -> None:
        """Raises a ValueError for a number that is known and not above 0."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, jax.Array) and not value > 0:
                self.refuse(f"{name} must be > 0, got {value!r}")

    def refuse_softmax(self, use_sigmoid: bool) -> None:
        """Raises a ValueError for the `use_sigmoid=False` of a config."""
        if not use_sigmoid:
            self.refuse("use_sigmoid must be True: there is no softmax form")

    def refuse(self, why: str) -> typing.NoReturn:
        """Raises a ValueError that names the class."""
        raise ValueError(f"{type(self).__name__}: {why}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss(Config):
    """Base of the losses without state: a subclass is its fields and `compute`.

    Args:
      reduction: "mean", "sum" or "none"; see `weight_reduce_loss`.
      loss_weight: factor of the reduced loss.
    """

    reduction: str = "mean"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_reduction("reduction", self.reduction)

    def __call__(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: jax.Array | float | None = None,
        reduction_override: str | None = None,
        **extra: Any,
    ) -> jax.Array:
        """The weighed, reduced loss of `pred` against `target`, times `loss_weight`.

        `reduction_override` replaces `reduction` for this call; see `weight_reduce_loss` for
        `weight` and `avg_factor`. Other keywords are the loss's own.
        """
        reduction = self._reduction(reduction_override)
        value = self.compute(
            pred, target, weight, reduction=reduction, avg_factor=avg_factor, **extra
        )
        return self.loss_weight * value

    def compute(
        self, pred: jax.Array, target: Any, weight: jax.Array | None, **reduce: Any
    ) -> jax.Array:
        """The loss before `loss_weight`; `reduce` holds `reduction` and `avg_factor`."""
        raise NotImplementedError(f"{type(self).__name__} must define compute")

    def expects(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: jax.Array | float | None = None,
        reduction_override: str | None = None,
        **extra: Any,
    ) -> list[Expected]:
        """What `checked` looks at in a call: its arguments, and what their values must be."""
        for name in ("label_weight", "label_weights"):  # the reference's names for it
            weight = extra.pop(name, None) if weight is None else weight
        arguments = self.rules(pred, target, **extra)
        rows = read_rows([*arguments, Expected("weight", weight, WEIGHT)], weight)
        return [*rows, Expected("avg_factor", avg_factor, AVG_FACTOR)]

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        """What `pred`, `target` and the loss's own keywords must be: finite, unless redefined."""
        return [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]

    def init(self) -> Any:
        """The state before the first `update`: () for a loss that keeps none."""
        return ()

    def update(self, state: Any, pred: jax.Array, target: Any, *args: Any, **kwargs: Any) -> Any:
        """(loss, next state) of a call, for losses with and without state alike.

        `axis_name` is for the statistics of a `StatefulLoss`; here is nothing to merge.
        """
        kwargs.pop("axis_name", None)
        return self(pred, target, *args, **kwargs), state

    def _reduction(self, override: str | None) -> str:
        if override is None:
            return self.reduction
        self._check_reduction("reduction_override", override)
        return override

    def _check_reduction(self, name: str, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            self.refuse(f"{name} must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StatefulLoss(Loss):
    """Base of the losses that keep running statistics: a subclass has `init` and `step`.

    The state is explicit, a NamedTuple of arrays that goes through jit, scan,
    `value_and_grad(has_aux=True)`, an nnx Variable, a linen collection and a checkpoint as any
    pytree does:

      state = loss.init()
      value, state = loss.update(state, pred, target, weight)

    No gradient flows through it. A batch without a valid element costs 0 and leaves it as it is.

    Over several devices the statistics are those of the whole batch. Under `jit` with sharded
    arrays nothing is to be done. Inside `shard_map`, `pmap` or `vmap(axis_name=...)` say
    `update(..., axis_name="data")`: the state is then the same on every device, and the mean of
    the devices' losses (`reduce_mean(value, "data")`) is the loss of the whole batch.
    """

    def __call__(self, pred: jax.Array, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, where the config keeps no statistics (GHM without momentum)."""
        state = self.init()
        if jax.tree.leaves(state):
            raise TypeError(
                f"{type(self).__name__} keeps running statistics: write `state = loss.init()` "
                "once and `value, state = loss.update(state, pred, target, ...)` at each step"
            )
        return self.update(state, pred, target, *args, **kwargs)[0]

    def init(self) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define init")

    def update(
        self,
        state: Any,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: jax.Array | float | None = None,
        reduction_override: str | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
        **extra: Any,
    ) -> Any:
        """(loss, next state); arguments as those of `Loss.__call__`.

        `axis_name` names the mesh axis, or axes, over which the batch is spread.
        """
        given, expected = (jax.tree.map(np.shape, tree) for tree in (state, self.init()))
        if jax.tree.flatten(given) != jax.tree.flatten(expected):
            self.refuse(f"state must come from init() or update(), {expected}; got {given}")
        if axis_name is not None:
            extra["axis_name"] = axis_name
        reduction = self._reduction(reduction_override)
        value, state = self.step(
            state, pred, target, weight, reduction=reduction, avg_factor=avg_factor, **extra
        )
        return jax.tree.map(lambda part: self.loss_weight * part, value), state

    def step(
        self, state: Any, pred: jax.Array, target: Any, weight: jax.Array | None, **reduce: Any
    ) -> Any:
        """(loss before `loss_weight`, next state).

        `reduce` holds `reduction`, `avg_factor` and, where it is given, `axis_name`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def one_of(self, **named: Any) -> Any:
        """The one of two arguments that is not None: the reference's name and ours for it."""
        given = [value for value in named.values() if value is not None]
        if len(given) > 1:
            self.refuse(f"{' and '.join(named)} are the same; give one of them")
        return given[0] if given else None


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, by name."""
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def as_tuple(value: Any) -> Any:
    """A list or another sequence, of sequences or not, as tuples; anything else as it is."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(as_tuple(v) for v in value)
    return value


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union such as `int | None`; any other type alone."""
    return (
        typing.get_args(kind)
        if typing.get_origin(kind) in (types.UnionType, typing.Union)
        else (kind,)
    )


def describe(kind: Any) -> str:
    """A type in the words of an error message: `float | None` is "a number or None"."""
    words = {float: "a number", int: "an integer", bool: "True or False", str: "a string"}
    return " or ".join(
        "None"
        if kind is type(None)
        else "a tuple of numbers"
        if typing.get_origin(kind) is tuple
        else words.get(kind, getattr(kind, "__name__", str(kind)))
        for kind in alternatives(kind)
    )


def _fits(value: Any, kind: Any) -> bool:
    """Whether a field of type `kind` may hold `value`; arrays and tracers count as numbers."""
    for option in alternatives(kind):
        is_bool = isinstance(value, bool | np.bool_)
        if option is float:
            fits = isinstance(value, int | float | np.number | jax.Array) and not is_bool
        elif option is int:
            fits = isinstance(value, int | np.integer | jax.Array) and not is_bool
        elif typing.get_origin(option) is tuple:
            item = typing.get_args(option)[0]
            fits = isinstance(value, tuple) and all(_fits(v, item) for v in value)
        elif option is bool:
            fits = is_bool
        else:
            fits = not isinstance(option, type) or isinstance(value, option)
        if fits:
            return True
    return False
