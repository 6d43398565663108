"""What values must be: the rules that `checked` goes by, and which rows they are asked of."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


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


def inverted(boxes: jax.Array) -> jax.Array:
    """Which boxes (..., 4) have x2 < x1 or y2 < y1."""
    return (boxes[..., 2] < boxes[..., 0]) | (boxes[..., 3] < boxes[..., 1])


FINITE = Rule(lambda x: ~jnp.isfinite(x), "must be finite")
LOGITS = FINITE._replace(is_logits=True)
UNIT = Rule(lambda x: ~((x >= 0) & (x <= 1)), "must be in [0, 1]")
WEIGHT = Rule(lambda x: ~(jnp.isfinite(x) & (x >= 0)), "must be finite and not negative")
AVG_FACTOR = Rule(lambda x: ~(jnp.isfinite(x) & (x > 0)), "must be finite and above 0")
BOXES = Rule(
    lambda x: ~jnp.isfinite(x).all(-1) | inverted(x),
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


def rows_that_are_read(arguments: Sequence[Expected], weight: Any) -> list[Expected]:
    """The arguments of a loss, and that only rows of weight other than 0 and whose label is not
    ignored are read."""
    masks = [] if weight is None else [jnp.asarray(weight) != 0]
    masks += [~a.rule.ignored(jnp.asarray(a.x)) for a in arguments if a.rule.ignored]

    def used(shape):
        return functools.reduce(
            operator.and_, [_mask_of_shape(mask, shape) for mask in masks], True
        )

    return [
        a._replace(used=used(np.shape(a.x)[:-1] if a.rule.of_boxes else np.shape(a.x)))
        for a in arguments
    ]


def _mask_of_shape(mask, shape):
    """A mask of values, rows, or of all coordinates of boxes, for items of another shape."""
    if mask.size == math.prod(shape):
        return mask.reshape(shape)
    rows = mask.reshape(*mask.shape[: len(shape)], -1).any(-1)
    if any(m not in (1, n) for m, n in zip(rows.shape, shape, strict=False)):
        rows = mask.reshape(len(mask), -1).any(-1)  # pixels against (N, C, H, W)
    return rows.reshape(rows.shape + (1,) * (len(shape) - rows.ndim))
