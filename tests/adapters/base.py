"""How the golden cases of later years are called: each original has its own arguments.

An adapter is a function of a case's config and inputs, which says the original's call in the words
of this package:

    @adapts("mmrotate.GDLoss")
    def gd_loss(config, pred, target, **call):
        return build_loss({"type": "GDLoss", **config})(pred, target, **call)

Numbers of the config are traced, but for those in tuples and those named in `static`, so that cases
share programs.

A case that is answered differently on purpose stands in DIFFERENCES, with its reason and its
answer: RAISES, an `Instead`, a `Rounding`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

RAISES = "raises"


class Adapter(NamedTuple):
    """call: (config, **inputs) -> outputs; see `adapts` for the others."""

    call: Callable[..., Any]
    static: tuple[str, ...]
    whole: bool


class Instead(NamedTuple):
    """Our own outputs and gradients, in NumPy, of the original's and of what it was given.

    outputs: (config, inputs, outputs) -> outputs by name. Gradients of the sum of all outputs are
    those of the original times `gradient`, or not compared where that is None.
    """

    outputs: Callable[[dict, dict, dict], dict]
    gradient: float | None = None


class Rounding(NamedTuple):
    """The same, but for the rounding of the original, which is of this relative size.

    Gradients, where it is magnified, are finite.
    """

    rtol: float


ADAPTERS: dict[str, Adapter] = {}
DIFFERENCES: dict[tuple[str, str], tuple[str, Any]] = {}


def adapts(*names: str, static: Sequence[str] = (), whole: bool = False) -> Callable[[Any], Any]:
    """Registers an adapter for the golden files of these names, `<source>.<Loss>`.

    static: keys of the config and inputs whose numbers are shapes, or choose the formula.
    whole: a case without gradient is one program too, instead of the functions' own.
    """

    def register(call):
        for name in names:
            ADAPTERS[name] = Adapter(call, tuple(static), whole)
        return call

    return register


def differ(reason: str, answer: Any, names: str, *slugs: str) -> None:
    """The cases of these files (names separated by spaces), by what follows their number.

    With the number ("005_identical") where several cases of a file share the rest.
    """
    for name in names.split():
        for slug in slugs:
            DIFFERENCES[name, slug] = (reason, answer)
