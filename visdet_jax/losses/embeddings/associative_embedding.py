"""Associative embedding: corners of one object together, objects apart."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_array, check_same_shape
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import absolute, divide
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Finite
from visdet_jax.core.jitted import errors_named, jitted
from visdet_jax.core.rules import FINITE, Expected, Rule
from visdet_jax.registry import LOSSES

PullAndPush = tuple[jax.Array, jax.Array]


def _padding_lists(loss: Callable[..., PullAndPush]) -> Callable[..., PullAndPush]:
    """Decorator that makes arrays of a nested list of matches, outside the jit."""

    @functools.wraps(loss)
    def call(
        pred: jax.Array, target: jax.Array, match: Any, mask: Any = None, **options: Any
    ) -> PullAndPush:
        if isinstance(match, list | tuple):
            with errors_named(loss.__name__):
                if mask is not None:
                    raise ValueError("mask belongs to match as an array")
                match, mask = _padded(match)
        return loss(pred, target, match, mask, **options)

    return call


def _padded(match: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Arrays (B, K, 2, 2) and (B, K) of a nested list."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(match)):
        raise TypeError(
            "a list of matches is no argument of a jitted function; "
            "pass arrays match (B, K, 2, 2) and mask (B, K)"
        )
    cells = np.zeros((len(match), max(map(len, match), default=0), 2, 2), np.int32)
    mask = np.zeros(cells.shape[:2], bool)
    for i, objects in enumerate(match):
        if objects:
            cells[i, : len(objects)] = np.asarray(objects)
            mask[i, : len(objects)] = True
    return cells, mask


@_padding_lists
@jitted
def associative_embedding_loss(
    pred: jax.Array,
    target: jax.Array,
    match: Any,
    mask: jax.Array | None = None,
    *,
    pull_weight: Finite = 0.25,
    push_weight: Finite = 0.25,
) -> PullAndPush:
    """Pulls the embeddings of an object's two corners together and those of objects apart.

    pull = Σ_k (a_k - b_k)² / 2 n, with a and b the embeddings of object k's corners, and
    push = Σ_{j ≠ k} max(1 - |m_j - m_k|, 0) / n (n - 1), with m = (a + b) / 2 and n the objects of
    an image. Both are summed over the images. An image without objects adds 0, one with a single
    object no push.

    Args:
      pred: Embeddings of top-left corners (B, 1, H, W). Each of several channels counts as an
        object of its own, as in mmdet.
      target: Embeddings of bottom-right corners, of pred's shape.
      match: Cells (B, K, 2, 2) of the objects' corners as ((y1, x1), (y2, x2)), integers; or
        mmdet's nested list, with as many objects as each image has. A list's longest image is K:
        each new K compiles, so arrays are for jitted training.
      mask: (B, K), true for objects, false for padding, which is not read. None: all are objects.
        An object's cell outside the map makes the loss NaN.
      pull_weight: Factor of the pull.
      push_weight: Factor of the push.

    Returns: (pull, push), scalars.
    Raises: ValueError where shapes do not fit, TypeError for cells that are floats.
    Source: Newell et al. 2017, https://arxiv.org/abs/1611.05424; Law & Deng 2018 (CornerNet),
      https://arxiv.org/abs/1808.01244
    """
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    if pred.ndim != 4:
        raise ValueError(f"pred must have shape (B, C, H, W), got {pred.shape}")
    images, channels = pred.shape[:2]
    check_array("match", match)
    if match.ndim != 4 or match.shape[::2] != (images, 2) or match.shape[3] != 2:
        raise ValueError(f"match must have shape ({images}, K, 2, 2), got {match.shape}")
    if not jnp.issubdtype(match.dtype, jnp.integer):
        raise TypeError(f"match must hold integer cells, got {match.dtype}")
    match = as_labels("match", match)  # In int8 the place of a cell in its map would overflow.
    if mask is None:
        mask = jnp.ones_like(match[:, :, 0, 0], bool)
    if mask.shape != match.shape[:2]:
        raise ValueError(f"mask must have shape {match.shape[:2]}, got {mask.shape}")
    mask = mask.astype(bool)
    first = _at_cells(pred.astype(dtype), match[:, :, 0], mask)
    second = _at_cells(target.astype(dtype), match[:, :, 1], mask)
    n = channels * mask.sum(1).astype(dtype)
    pull = divide(((first - second) ** 2).sum((1, 2)), 2 * n).sum()
    objects = match.shape[1] * channels
    middle = ((first + second) / 2).reshape(images, objects)
    mask = jnp.repeat(mask, channels, axis=1) if channels != 1 else mask
    pairs = mask[:, :, None] & mask[:, None, :] & ~jnp.eye(objects, dtype=bool)[None]
    distance = absolute(middle[:, :, None] - middle[:, None, :])
    closeness = jax.nn.relu(1 - jnp.where(pairs, distance, 1))
    push = divide(closeness.sum((1, 2)), n * (n - 1)).sum()
    pull_weight, push_weight = as_dtype(dtype, pull_weight, push_weight)
    return pull_weight * pull, push_weight * push


def _at_cells(maps: jax.Array, cells: jax.Array, mask: jax.Array) -> jax.Array:
    """The embeddings (B, K, C) of maps (B, C, H, W) at cells (B, K, 2) as (y, x)."""
    images, channels, height, width = maps.shape
    y, x = cells[..., 0], cells[..., 1]
    outside = (y < 0) | (y >= height) | (x < 0) | (x >= width)
    index = jnp.where(mask, y * width + x, 0)[:, None, :]
    flat = maps.reshape(images, channels, height * width)
    found = jnp.take_along_axis(flat, index, axis=2)
    found = jnp.where((mask & outside)[:, None, :], jnp.nan, found)
    return jnp.where(mask[:, None, :], found, 0).transpose(0, 2, 1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class AssociativeEmbeddingLoss(FrozenModule, function=associative_embedding_loss):
    """Associative embedding: `associative_embedding_loss`, called with its arguments."""

    pull_weight: float = 0.25
    push_weight: float = 0.25

    def expects(
        self, pred: jax.Array, target: jax.Array, match: Any, mask: Any = None
    ) -> list[Expected]:
        """See `Loss.expects`."""
        if not hasattr(match, "shape"):
            match, mask = _padded(match)
        height, width = pred.shape[-2:]
        inside = Rule(
            lambda x: (x < 0) | (as_labels("match", x) >= jnp.array([[[[height, width]]]])),
            f"must be a cell (y, x) of the {height} × {width} map",
        )
        used = None if mask is None else mask[:, :, None, None] != 0
        return [
            Expected("pred", pred, FINITE),
            Expected("target", target, FINITE),
            Expected("match", match, inside, used),
        ]

    def __call__(
        self, pred: jax.Array, target: jax.Array, match: Any, mask: jax.Array | None = None
    ) -> PullAndPush:
        return associative_embedding_loss(pred, target, match, mask, **self.settings)
