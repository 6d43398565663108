"""`checked`: losses and heads that look at the values they are given, and raise."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from visdet_jax.function import replicated, warn


class Rule(NamedTuple):
    """What values must be."""

    bad: Callable[[jax.Array], jax.Array]  # a mask of items
    must: str
    ignored: Callable[[jax.Array], jax.Array] | None = None  # labels whose rows are not read
    is_logits: bool = False
    of_boxes: bool = False  # an item is a box: all of the last axis


class Expected(NamedTuple):
    """An argument, its rule, and which of its items are read (None: all)."""

    name: str
    x: Any
    rule: Rule
    used: Any = None


def _inverted(boxes):
    return (boxes[..., 2] < boxes[..., 0]) | (boxes[..., 3] < boxes[..., 1])


FINITE = Rule(lambda x: ~jnp.isfinite(x), "must be finite")
LOGITS = FINITE._replace(is_logits=True)
UNIT = Rule(lambda x: ~((x >= 0) & (x <= 1)), "must be in [0, 1]")
WEIGHT = Rule(lambda x: ~(jnp.isfinite(x) & (x >= 0)), "must be finite and not negative")
AVG_FACTOR = Rule(lambda x: ~(jnp.isfinite(x) & (x > 0)), "must be finite and above 0")
BOXES = Rule(
    lambda x: ~jnp.isfinite(x).all(-1) | _inverted(x),
    "must be finite, with x1 ≤ x2 and y1 ≤ y2",
    of_boxes=True,
)
ROTATED_BOXES = Rule(
    lambda x: ~(jnp.isfinite(x).all(-1) & (x[..., 2] >= 0) & (x[..., 3] >= 0)),
    "must be finite, with w ≥ 0 and h ≥ 0",
    of_boxes=True,
)


def classes(last: int, ignore_index: int | None = None, background: bool = False) -> Rule:
    """Class indices from 0 to `last`; -1 and `ignore_index` mean that a row is ignored."""

    def ignored(x):
        marked = x == -1
        return marked if ignore_index is None else marked | (x == ignore_index)

    what = f" ({last} is background)" if background else ""
    others = "" if ignore_index is None else f" or {ignore_index}"
    return Rule(
        lambda x: ((x < 0) | (x > last)) & ~ignored(x),
        f"must be a class from 0 to {last}{what}, or -1{others} to be ignored",
        ignored,
    )


def labels_or_scores(
    pred: Any, target: Any, *, background: bool = True, ignore_index: int | None = None
) -> Rule:
    """Of a target that is class indices, or values of pred's shape."""
    if target.ndim == pred.ndim:
        return UNIT
    return classes(pred.shape[-1] - (not background), ignore_index, background)


def checked(loss: Any) -> "Checked":
    """The same loss, or head, that raises on values which make no sense.

    Called with the same arguments it gives the same result, or raises: jitted code cannot look at
    values, so a wrong label or box is a NaN there, or costs nothing. The message names the loss,
    the argument, the first row and its value:

      >>> checked(FocalLoss())(jnp.zeros((4, 80)), jnp.array([3, 80, 81, 0]))
      FocalLoss: target[2] is 81: must be a class from 0 to 80 (80 is background), or ...

    Outside jit it raises by itself. Inside jit use JAX's own transformation:

      >>> @jax.jit
      ... def step(params, batch):
      ...     return checked(loss)(network(params, batch.images), batch.labels)
      >>> error, value = checkify.checkify(step)(params, batch)  # jax.experimental.checkify
      >>> error.throw()

    (Without it JAX refuses to compile the step, and says so.) Under vmap, grad and scan as well.
    Nothing is added to a loss that is not wrapped.

    What is looked at, in rows whose weight is not 0 and whose label is not ignored:
      predictions: finite; boxes not inverted; probabilities in [0, 1]. A warning where all
        logits are in [0, 1], and not all 0: these look like probabilities.
      rotated boxes: finite, no width or height below 0.
      labels in range (-1 and `ignore_index` are padding), scores and soft targets in [0, 1],
        boxes finite and not inverted: where more than a quarter are, they may be x, y, w, h.
      weight: finite, not negative. avg_factor: finite, above 0.
      heads: outputs finite; boxes finite, not inverted and not outside the image; labels below
        num_classes (negative ones are padding); some image with a box.
    Returns: a `Checked`, with the methods of what it wraps.
    Raises: TypeError for what is no loss and no head. ValueError (checkify.JaxRuntimeError) at the
      call.
    """
    if not hasattr(loss, "expects"):
        raise TypeError(
            "checked takes a loss or a head, as build_loss and build_head make them, got "
            f"{getattr(loss, '__name__', None) or repr(loss)}"
        )
    return Checked(loss)


@dataclass(frozen=True)
class Checked:
    """A loss or a head whose `__call__`, `loss` and `update` check their arguments first."""

    wrapped: Any

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self._checked(self.wrapped, *args, **options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy and pickle ask before there is anything wrapped
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def loss(self, *args: Any, **options: Any) -> Any:
        """As the head's."""
        return self._checked(self.wrapped.loss, *args, **options)

    def update(self, state: Any, *args: Any, **options: Any) -> Any:
        """As the wrapped one's."""
        return self._checked(functools.partial(self.wrapped.update, state), *args, **options)

    def _checked(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result = call(*args, **options)  # first: shapes and types have their own errors
        for argument in self.wrapped.expects(*args, **options):
            if argument.x is not None and np.size(argument.x):
                _check(type(self.wrapped).__name__, *argument)
        return result


def read_rows(arguments: Sequence[Expected], weight: Any) -> list[Expected]:
    """The arguments of a loss, and that only rows of weight other than 0 and whose label is not
    ignored are read."""
    masks = [] if weight is None else [jnp.asarray(weight) != 0]
    masks += [~a.rule.ignored(jnp.asarray(a.x)) for a in arguments if a.rule.ignored]

    def used(shape):
        return functools.reduce(operator.and_, [_spread(mask, shape) for mask in masks], True)

    return [
        a._replace(used=used(np.shape(a.x)[:-1] if a.rule.of_boxes else np.shape(a.x)))
        for a in arguments
    ]


def _spread(mask, shape):
    """A mask of values, rows, or of all coordinates of boxes, for items of another shape."""
    if mask.size == math.prod(shape):
        return mask.reshape(shape)
    rows = mask.reshape(*mask.shape[: len(shape)], -1).any(-1)
    if any(m not in (1, n) for m, n in zip(rows.shape, shape, strict=False)):
        rows = mask.reshape(len(mask), -1).any(-1)  # pixels against (N, C, H, W)
    return rows.reshape(rows.shape + (1,) * (len(shape) - rows.ndim))


def _check(owner, name, x, rule, used):
    """Raises for the first item of `x` that is read and bad."""
    x = jax.lax.stop_gradient(replicated(x))
    bad, used = rule.bad(x), True if used is None else replicated(used)
    if rule.is_logits:
        _warn_of_probabilities(owner, name, x, used)
    bad &= used
    index = jnp.argmax(bad.reshape(-1))
    place = dict(zip("ijklmn", jnp.unravel_index(index, bad.shape), strict=False))
    where = f"[{', '.join(f'{{{axis}}}' for axis in place)}]" if place else ""
    found = {"value": x.reshape(-1, *x.shape[bad.ndim :])[index], **place}
    what = f"{owner}: {name}{where} is {{value}}"
    if rule is BOXES:
        count = (bad & _inverted(x)).sum()
        checkify.check(
            (count < 2) | (4 * count <= bad.size),
            f"{what}, and x2 < x1 or y2 < y1 in {{count}} of {bad.size} boxes: are they x, y, w, "
            "h? They must be x1, y1, x2, y2",
            count=count,
            **found,
        )
    checkify.check(~bad.any(), f"{what}: {rule.must}", **found)


def _warn_of_probabilities(owner, name, x, used):
    suspicious = ((x >= 0) & (x <= 1) | ~jnp.asarray(used)).all() & (x != 0).any()

    def tell(suspicious):
        if suspicious:
            warn(
                f"{owner}: all of {name} is in [0, 1]: are these probabilities? "
                "The loss takes logits"
            )

    if isinstance(suspicious, jax.core.Tracer):
        jax.debug.callback(tell, suspicious)
    else:
        tell(suspicious)
