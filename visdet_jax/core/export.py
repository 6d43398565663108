"""What `jax.export` has to know about the package's types."""

from typing import TypeVar

import jax.export

Type = TypeVar("Type", bound=type)


def exportable(cls: Type) -> Type:
    """Class decorator that lets a NamedTuple be an argument of a function that is exported."""
    jax.export.register_namedtuple_serialization(cls, serialized_name=f"visdet_jax.{cls.__name__}")
    return cls
