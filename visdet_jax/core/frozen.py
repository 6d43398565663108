"""The base class of every loss, head, assigner and cost: a Flax module that is its fields."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from flax import nnx

from visdet_jax.core.docstrings import with_arguments
from visdet_jax.core.fields import as_tuple, describe, field_types, fits, union_members
from visdet_jax.core.hyperparameters import allowed, field_rules
from visdet_jax.core.jitted import errors_named

Functions = Callable[..., Any] | tuple[Callable[..., Any], ...]


class _ShownSignature:
    """What `inspect.signature` shows: the fields of the class, or the call of an instance.

    Flax's metaclass would show `(*args, **kwargs)`.
    """

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        if instance is not None:
            return inspect.signature(instance.__call__)
        _, *fields = inspect.signature(owner.__init__).parameters.values()
        return inspect.Signature(fields)


@dataclasses.dataclass(frozen=True)
class Parts(Sequence[Any]):
    """The modules of a field that holds several, as Flax takes them for one static value.

    Keep it. A tuple of modules Flax takes for data, and raises a ValueError, since a static
    attribute holds none.
    """

    modules: tuple[Any, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.modules[index]

    def __len__(self) -> int:
        return len(self.modules)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenModule(nnx.Module):
    """A Flax module without variables: frozen, equal and hashed by value, no pytree leaves.

    It is callable without init or apply, usable as a jit argument (static or not), and as an
    attribute of nnx and linen modules. Subclasses repeat the dataclass decorator, and name the
    function whose hyperparameters their fields are:

      @dataclass(frozen=True, kw_only=True)
      class FocalLoss(Loss, function=sigmoid_focal_loss): ...

    The fields are then described by that function's docstring and checked by its annotations (see
    `core.hyperparameters`). Several functions may be given as a tuple.
    """

    __signature__: ClassVar[Any] = _ShownSignature()
    functions: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def __init_subclass__(cls, function: Functions = (), **options: Any) -> None:
        super().__init_subclass__(**options)
        if function:
            cls.functions = function if isinstance(function, tuple) else (function,)
        bases = [base for base in cls.__mro__[1:] if issubclass(base, FrozenModule)]
        # Bases have described the fields that come from a function of theirs.
        documents = [*cls.functions, *bases] if function else bases
        names = dict.fromkeys(
            name
            for base in (*reversed(bases), cls)
            for name, kind in vars(base).get("__annotations__", {}).items()
            if typing.get_origin(kind) is not ClassVar and kind is not ClassVar
        )
        cls.__doc__ = with_arguments(
            vars(cls).get("__doc__"), names, [inspect.getdoc(source) or "" for source in documents]
        )

    def __post_init__(self) -> None:
        types = field_types(type(self))
        for name, kind in types.items():
            value = getattr(self, name)
            if any(typing.get_origin(member) is tuple for member in union_members(kind)):
                value = as_tuple(value)  # A list has no hash.
                object.__setattr__(self, name, value)
            if not fits(value, kind):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be {describe(kind)}, got {value!r}"
                )
            if isinstance(value, tuple) and any(isinstance(x, FrozenModule) for x in value):
                object.__setattr__(self, name, Parts(value))
        with errors_named(type(self).__name__):
            for function in self.functions:
                for name, rule in allowed(function).items():
                    if name in types:
                        rule.check(name, getattr(self, name))
            for name, rule in field_rules(type(self)).items():
                rule.check(name, getattr(self, name))

    def _check_valid_context(self, error_msg: Callable[[], str]) -> None:
        """Lets an object made at one trace level be part of a model made at another.

        Flax raises a TraceContextError otherwise, for the sake of variables, which a frozen module
        has none of. Field defaults are made at import and models under `nnx.jit` or `nnx.vmap`, so
        every head made there would raise. The name is Flax's own and private (0.12.4 to 0.12.12
        have it); there is no public way to say that a module holds no variables.
        """

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that are hyperparameters of the class's function, for a call of it."""
        return {name: getattr(self, name) for name in _setting_names(type(self))}

    def _raise_without_sigmoid(self, use_sigmoid: bool, instead: str = "") -> None:
        """Raises a ValueError for the `use_sigmoid=False` of a config."""
        if not use_sigmoid:
            why = f"the softmax form is {instead}" if instead else "there is no softmax form"
            raise self.value_error(f"use_sigmoid must be True: {why}")

    def value_error(self, why: str) -> ValueError:
        """An error to raise, which names the class."""
        return ValueError(f"{type(self).__name__}: {why}")


@functools.cache
def _setting_names(cls: type[FrozenModule]) -> tuple[str, ...]:
    """The fields that all functions of a class have as parameters."""
    parameters = [inspect.signature(function).parameters for function in cls.functions]
    return tuple(
        field.name
        for field in dataclasses.fields(cls)
        if field.name != "reduction" and parameters and all(field.name in p for p in parameters)
    )
