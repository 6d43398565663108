"""A small DETR in flax.nnx: cells propose boxes, the best become queries, layers correct them.

Two stages and boxes corrected layer by layer as in Deformable DETR (Zhu et al. 2021), whose
attention at sampled points is here attention within windows. Boxes are (cx, cy, w, h) in cells of
the feature map, so that an object looks the same wherever it lies and however large the image is;
what comes out are fractions of the image.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from visdet_jax.detectors import DETRHead, DETROutputs

STRIDE = 8  # of the one level whose cells are attended to
CELLS_PER_QUERY = 6  # so that a larger image has more queries
SIDE = 4.0  # of the square, in cells, from which a cell's proposal starts
LAYERS = 3  # of the decoder
HEADS = 4


class Attention(nnx.Module):
    """Multi-head attention in soft windows about the boxes of the queries.

    To a head's logits a parabola is added whose top lies beside the centre of the query's box, and
    whose width is a share of the box's sides; both follow from the query. At first the heads' tops
    are a ring. Plain attention has to learn where to look: hence DETR's long training.
    Gao et al. 2021 (SMCA), https://arxiv.org/abs/2101.07448
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.query = nnx.Linear(channels, channels, rngs=rngs)
        self.key = nnx.Linear(channels, channels, rngs=rngs)
        self.value = nnx.Linear(channels, channels, rngs=rngs)
        self.out = nnx.Linear(channels, channels, rngs=rngs)
        angles = 2 * np.pi * np.arange(HEADS) / HEADS
        width = np.full(HEADS, math.log(0.3))
        ring = np.stack([0.4 * np.cos(angles), 0.4 * np.sin(angles), width, width], axis=-1)
        self.window = nnx.Linear(
            channels,
            ring.size,
            kernel_init=nnx.initializers.zeros,
            bias_init=lambda *_: jnp.asarray(ring.ravel(), jnp.float32),
            rngs=rngs,
        )

    def __call__(
        self, x: jax.Array, boxes: jax.Array, memory: jax.Array, places: jax.Array
    ) -> jax.Array:
        """What queries x (B, Q, D) of boxes (B, Q, 4) find in memory (B, P, D) at (B, P, 2)."""

        def by_head(y: jax.Array) -> jax.Array:  # (B, N, H·d) to (B, H, N, d)
            return y.reshape(*y.shape[:2], HEADS, -1).swapaxes(1, 2)

        query, key, value = (
            by_head(y) for y in (self.query(x), self.key(memory), self.value(memory))
        )
        centre, side = jnp.split(boxes[:, None], 2, axis=-1)
        top, width = jnp.split(by_head(self.window(x)), 2, axis=-1)
        curvature = (jnp.exp(width) * side) ** -2
        slope = curvature * (centre + top * side)
        # The parabola -curvature (place - centre - top side)² / 2, less what is the same at all
        # places, is a scalar product too: no array (B, H, Q, P, 2).
        parabola = jnp.concatenate([places, -(places**2) / 2], axis=-1)[:, None]
        parabola = jnp.broadcast_to(parabola, (*key.shape[:3], 4))
        query = jnp.concatenate([query / math.sqrt(query.shape[-1]), slope, curvature], axis=-1)
        key = jnp.concatenate([key, parabola], axis=-1)
        found = jax.nn.softmax(query @ key.swapaxes(2, 3), axis=-1) @ value
        return self.out(found.swapaxes(1, 2).reshape(x.shape))


class Layer(nnx.Module):
    """Queries attend to each other, in a decoder (`cross`) to the cells, and are transformed."""

    def __init__(self, channels: int, *, cross: bool, rngs: nnx.Rngs):
        self.norms = nnx.List([nnx.LayerNorm(channels, rngs=rngs) for _ in range(2 + cross)])
        self.own = Attention(channels, rngs=rngs)
        self.cross = Attention(channels, rngs=rngs) if cross else None
        self.expand = nnx.Linear(channels, 2 * channels, rngs=rngs)
        self.contract = nnx.Linear(2 * channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array, boxes: jax.Array, *cells: jax.Array) -> jax.Array:
        """x (B, Q, D) of boxes (B, Q, 4); cells: their features (B, P, D) and places (B, P, 2)."""
        own = self.norms[0](x)
        x += self.own(own, boxes, own, boxes[..., :2])
        if self.cross is not None:
            x += self.cross(self.norms[1](x), boxes, *cells)
        return x + self.contract(nnx.relu(self.expand(self.norms[-1](x))))


class Estimate(nnx.Module):
    """The logits of the classes, and the box, moved and resized in units of its sides."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs):
        # a probability of 0.01, as in Towers of network.py
        prior = nnx.initializers.constant(-math.log((1 - 0.01) / 0.01))
        zeros = nnx.initializers.zeros
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.classes = nnx.Linear(channels, classes, bias_init=prior, rngs=rngs)
        self.hidden = nnx.Linear(channels, channels, rngs=rngs)
        self.boxes = nnx.Linear(channels, 4, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.norm(x)
        centre, side = jnp.split(boxes, 2, axis=-1)
        move, growth = jnp.split(self.boxes(nnx.relu(self.hidden(x))), 2, axis=-1)
        side_after = side * jnp.exp(jnp.clip(growth, -2, 2))
        return self.classes(x), jnp.concatenate([centre + move * side, side_after], axis=-1)


class Transformer(nnx.Module):
    """One level's features to a set of predictions after each layer, and every cell's proposal.

    The proposals' class 0 stands for any object.
    """

    def __init__(self, channels: int, head: DETRHead, *, rngs: nnx.Rngs):
        classes = head.channels["cls_scores"]
        self.encoder = Layer(channels, cross=False, rngs=rngs)
        self.proposal = Estimate(channels, classes, rngs=rngs)
        self.layers = nnx.List([Layer(channels, cross=True, rngs=rngs) for _ in range(LAYERS)])
        self.estimates = nnx.List([Estimate(channels, classes, rngs=rngs) for _ in range(LAYERS)])

    def __call__(self, levels: list[jax.Array]) -> DETROutputs:
        (features,) = levels
        batch, height, width, channels = features.shape
        count = height * width
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1) + 0.5
        places = jnp.broadcast_to(grid.reshape(1, count, 2), (batch, count, 2))
        squares = jnp.concatenate([places, jnp.full_like(places, SIDE)], axis=-1)
        memory = self.encoder(features.reshape(batch, count, channels), squares)
        proposals = self.proposal(memory, squares)
        _, best = jax.lax.top_k(proposals[0][..., 0], -(-count // CELLS_PER_QUERY))
        x, boxes = (jnp.take_along_axis(y, best[..., None], axis=1) for y in (memory, proposals[1]))
        found = []
        for layer, estimate in zip(self.layers, self.estimates, strict=True):
            boxes = jax.lax.stop_gradient(boxes)  # each layer learns its own correction
            x = layer(x, boxes, memory, places)
            logits, boxes = estimate(x, boxes)
            found.append((logits, boxes))
        logits, boxes = (jnp.stack(y) for y in zip(*found, strict=True))
        sides = jnp.array([width, height, width, height], jnp.float32)
        return DETROutputs(logits, boxes / sides, proposals[0], proposals[1] / sides)
