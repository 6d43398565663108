"""Heatmaps of classes: a peak for every box, and where peaks overlap the larger value."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# How many boxes of a class a pass over the heatmaps draws. More are fewer passes, of which the last
# draws more for nothing. 16 images of 100 boxes, 80 classes and 128 x 128 cells take 90 ms with 1
# or 2 on two CPU cores, 115 ms with 4 and 200 ms with 8 (jax 0.10.2).
BOXES_IN_A_PASS = 2


def draw_heatmaps(
    gt_labels: jax.Array,
    boxes: Any,
    start: list[jax.Array],
    draw: Callable[[Any], list[jax.Array]],
) -> list[jax.Array]:
    """The heatmaps (H, W, C) of one image, of each level: the maximum over the boxes of a class.

    A pass draws the first boxes of all classes at once, the next one their next boxes, and so on:
    as many passes as the class with most boxes needs, whatever G is. Each is one elementwise
    program that reads and writes the heatmaps in place; there is no array of boxes and cells. Under
    `vmap` the image that needs most passes decides. 16 images of 100 boxes, 80 classes and
    128 x 128 cells take 3 MB beside the heatmaps, which are 84 MB, and 90 to 300 ms on two CPU
    cores (jax 0.10.2). As a maximum over an axis of boxes they take 8 GB and 13 s, as a scatter of
    the boxes' maps 190 MB and 300 ms.

    Args:
      gt_labels: (G,) the class of each box, negative for padding, of which nothing is drawn.
      boxes: A tree of arrays (G,) that say where and how a box is drawn.
      start: Zeros, of the heatmaps' shapes and type.
      draw: From such a tree of arrays (C,), of one box of each class, to its values in every cell,
        at least 0, of each level. Classes without another box get numbers that mean nothing, and
        their values are not read.
    """
    classes = jnp.arange(start[0].shape[-1], dtype=gt_labels.dtype)
    exists = gt_labels >= 0
    numbers = jnp.arange(len(gt_labels), dtype=jnp.int32)
    before = (gt_labels[:, None] == gt_labels[None]) & (numbers[:, None] > numbers[None])
    rank = before.sum(axis=1, dtype=jnp.int32)
    passes = jnp.where(exists, rank + 1, 0).max()

    def draw_next(state: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
        count, maps = state
        for i in range(BOXES_IN_A_PASS):
            chosen = (gt_labels[None] == classes[:, None]) & (rank == count + i)[None]
            own = jax.tree.map(lambda x, chosen=chosen: jnp.where(chosen, x[None], 0).sum(1), boxes)
            drawn = chosen.any(axis=1)[None, None]
            maps = [
                jnp.maximum(x, jnp.where(drawn, new, 0))
                for x, new in zip(maps, draw(own), strict=True)
            ]
        return count + BOXES_IN_A_PASS, maps

    # Keep these `where` whose sides are equal; see `no_box_yet` of the assigners. Inside
    # `shard_map` the state of a loop has to vary over the devices from its start on.
    first = jnp.where(exists.any(), jnp.int32(0), 0)
    start = [jnp.where(exists.any(), x, 0) for x in start]
    return jax.lax.while_loop(lambda state: state[0] < passes, draw_next, (first, start))[1]


def peak(cells: jax.Array, center: jax.Array, twice_variance: jax.Array) -> jax.Array:
    """exp(-d² / twice_variance) with d = cells - center, and 1 at the centre itself.

    A heatmap is 1 exactly at centres, by which losses know them, and exp(0) need not be.
    """
    d = cells - center
    return jnp.where(d == 0, 1, jnp.exp(-d * d / twice_variance))
