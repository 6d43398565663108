"""What values must be: the rules that `checked` goes by, and which rows they are asked of."""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels


def in_unit(x: jax.Array, read: jax.Array) -> jax.Array:
    """Whether all numbers that are read lie in [0, 1], and not all are 0."""
    read = read.reshape(read.shape + (1,) * (x.ndim - read.ndim))
    return (((x >= 0) & (x <= 1)) | ~read).all() & ((x != 0) & read).any()


class Rule(NamedTuple):
    """What the items of an array must be."""

    bad: Callable[[jax.Array], jax.Array]  # A mask of the items that break the rule.
    must: str  # What an item must be, for the message.
    ignored: Callable[[jax.Array], jax.Array] | None = None  # Labels whose rows are not read.
    of_boxes: bool = False  # An item is a box: all numbers of the last axis.
    doubt: str = ""  # A warning about {name}, if `doubtful` is true of x and the items read.
    doubtful: Callable[[jax.Array, jax.Array], jax.Array] = in_unit


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
LOGITS = FINITE._replace(
    doubt="all of {name} is in [0, 1]: are these probabilities? The loss takes logits"
)
UNIT = Rule(lambda x: ~((x >= 0) & (x <= 1)), "must be in [0, 1]")
WEIGHT = Rule(lambda x: ~(jnp.isfinite(x) & (x >= 0)), "must be finite and not negative")
AVG_FACTOR = Rule(lambda x: ~(jnp.isfinite(x) & (x > 0)), "must be finite and above 0")
BOXES = Rule(
    lambda x: ~jnp.isfinite(x).all(-1) | inverted(x),
    "must be finite, with x1 ≤ x2 and y1 ≤ y2",
    of_boxes=True,
    doubt="all of {name} is in [0, 1]: are these fractions of the image? Boxes must be in pixels",
)
# Of a batch's number of boxes or masks. 0 is a warning and no error: a small batch may have none.
GROUND_TRUTH_COUNT = FINITE._replace(
    doubt="every image is without ground truth: negative gt_labels mean padding",
    doubtful=lambda count, _: count == 0,
)
ROTATED_BOXES = Rule(
    lambda x: ~(jnp.isfinite(x).all(-1) & (x[..., 2] >= 0) & (x[..., 3] >= 0)),
    "must be finite, with w ≥ 0 and h ≥ 0",
    of_boxes=True,
)


def classes(
    last: int,
    ignore_index: int | None = None,
    *,
    background: bool = False,
    minus_1: Literal["to be ignored", "for background"] = "to be ignored",
) -> Rule:
    """Class indices from 0 to `last`, and -1.

    Args:
      last: The last index.
      ignore_index: Another index whose rows are ignored.
      background: The last index is background.
      minus_1: What -1 means.
    """

    def allowed(x: jax.Array) -> jax.Array:
        marked = x == -1
        return marked if ignore_index is None else marked | (x == ignore_index)

    what = f" ({last} is background)" if background else ""
    others = "" if ignore_index is None else f" or {ignore_index}"
    return Rule(
        lambda x: ((x < 0) | (x > last)) & ~allowed(x),
        f"must be a class from 0 to {last}{what}, or -1{others} {minus_1}",
        allowed if minus_1 == "to be ignored" else None,
    )


def labels_or_scores(
    pred: Any,
    target: Any,
    *,
    minus_1: Literal["to be ignored", "for background"] = "to be ignored",
) -> Rule:
    """The rule of a target: class indices, of which C is background, or values in [0, 1]."""
    if target.ndim == pred.ndim:
        return UNIT
    return classes(pred.shape[-1], background=True, minus_1=minus_1)


def widened(x: Any) -> jax.Array:
    """Integers as int32 or int64: in uint8 no label is negative, and -1 means 255."""
    x = jnp.asarray(x)
    return as_labels("labels", x) if jnp.issubdtype(x.dtype, jnp.integer) else x


def rows_that_are_read(arguments: Sequence[Expected], weight: Any) -> list[Expected]:
    """The arguments of a loss, with a mask of the items that the loss reads.

    It reads the rows whose weight is not 0 and whose label is not ignored.
    """
    masks = [] if weight is None else [jnp.asarray(weight) != 0]
    masks += [~a.rule.ignored(widened(a.x)) for a in arguments if a.rule.ignored]

    def used(shape: tuple[int, ...]) -> Any:
        return functools.reduce(
            operator.and_, [_mask_of_shape(mask, shape) for mask in masks], True
        )

    return [
        a._replace(used=used(np.shape(a.x)[:-1] if a.rule.of_boxes else np.shape(a.x)))
        for a in arguments
    ]


def _mask_of_shape(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A mask of values, of rows or of all coordinates of boxes, for items of another shape."""
    if mask.size == math.prod(shape):
        return mask.reshape(shape)
    rows = mask.reshape(*mask.shape[: len(shape)], -1).any(-1)
    if any(m not in (1, n) for m, n in zip(rows.shape, shape, strict=False)):
        rows = mask.reshape(mask.shape[0], -1).any(-1)  # A mask of pixels against (N, C, H, W).
    return rows.reshape(rows.shape + (1,) * (len(shape) - rows.ndim))
