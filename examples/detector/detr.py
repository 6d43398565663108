"""A small two-stage DETR in flax.nnx.

Each cell of a feature map proposes a box. The best proposals become queries, and each decoder layer
corrects their boxes, as in Deformable DETR (Zhu et al. 2021). Attention is limited to windows about
the boxes, where Deformable DETR samples points.

Inside the network boxes are (cx, cy, w, h) in cells of the feature map, so that an object looks the
same wherever it lies and however large the image is. The outputs are fractions of the image.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from visdet_jax.detectors import DETRHead, DETROutputs

STRIDE = 8  # of the one feature map that is attended to, in pixels
CELLS_PER_QUERY = 6  # the number of queries grows with the image
SIDE = 4.0  # side in cells of the square from which a cell's proposal starts
LAYERS = 3  # of the decoder
HEADS = 4  # of each attention


def query_count(height: int, width: int) -> int:
    """How many queries a feature map of so many cells has."""
    return -(-height * width // CELLS_PER_QUERY)


class Attention(nnx.Module):
    """Multi-head attention in soft windows about the boxes of the queries.

    The window is a parabola that is added to the logits of a head. Its peak lies at an offset from
    the centre of the query's box, and its width is a fraction of the box's sides; both are computed
    from the query. At the start of training the peaks of the heads form a ring. Plain attention
    has to learn where to look, which is why DETR trains for so long.

    Source: Gao et al. 2021 (SMCA), https://arxiv.org/abs/2101.07448
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
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
        self,
        x: jax.Array,
        boxes: jax.Array,
        memory: jax.Array,
        places: jax.Array,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """The queries' features after attention to a memory.

        Args:
          x: Queries (B, Q, D).
          boxes: Their boxes (B, Q, 4).
          memory: Features (B, P, D) that are attended to.
          places: Their centres (B, P, 2).
          mask: (Q, P) True where a query must not see a feature. None hides nothing.

        Returns: (B, Q, D).
        """

        def split_heads(features: jax.Array) -> jax.Array:  # (B, N, H·d) to (B, H, N, d)
            return features.reshape(*features.shape[:2], HEADS, -1).swapaxes(1, 2)

        query, key, value = (
            split_heads(features)
            for features in (self.query(x), self.key(memory), self.value(memory))
        )
        centre, side = jnp.split(boxes[:, None], 2, axis=-1)
        offset, log_width = jnp.split(split_heads(self.window(x)), 2, axis=-1)
        curvature = (jnp.exp(log_width) * side) ** -2
        # The parabola -curvature (place - peak)² / 2 with peak = centre + offset side. Keep it in
        # the scalar product of query and key: its terms in place and place² are two more products,
        # and what is the same at all places cancels in the softmax. Written out, it would be an
        # array (B, H, Q, P, 2).
        parabola = jnp.concatenate([places, -(places**2) / 2], axis=-1)[:, None]
        parabola = jnp.broadcast_to(parabola, (*key.shape[:3], 4))
        linear = curvature * (centre + offset * side)
        query = jnp.concatenate([query / math.sqrt(query.shape[-1]), linear, curvature], axis=-1)
        key = jnp.concatenate([key, parabola], axis=-1)
        logits = query @ key.swapaxes(2, 3)
        if mask is not None:
            logits = jnp.where(mask, -jnp.inf, logits)
        attended = jax.nn.softmax(logits, axis=-1) @ value
        return self.out(attended.swapaxes(1, 2).reshape(x.shape))


class Layer(nnx.Module):
    """Self-attention, in a decoder (`cross`) attention to the cells, and a feed-forward network."""

    def __init__(self, channels: int, *, cross: bool, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(channels, rngs=rngs) for _ in range(2 + cross)])
        self.own = Attention(channels, rngs=rngs)
        self.cross = Attention(channels, rngs=rngs) if cross else None
        self.expand = nnx.Linear(channels, 2 * channels, rngs=rngs)
        self.contract = nnx.Linear(2 * channels, channels, rngs=rngs)

    def __call__(
        self, x: jax.Array, boxes: jax.Array, *cells: jax.Array, mask: jax.Array | None = None
    ) -> jax.Array:
        """The queries' next features.

        Args:
          x: Queries (B, Q, D).
          boxes: Their boxes (B, Q, 4).
          cells: In a decoder, the cells' features (B, P, D) and their centres (B, P, 2).
          mask: (Q, Q) True where a query must not see another. None hides nothing.

        Returns: (B, Q, D).
        """
        own = self.norms[0](x)
        x += self.own(own, boxes, own, boxes[..., :2], mask)
        if self.cross is not None:
            x += self.cross(self.norms[1](x), boxes, *cells)
        return x + self.contract(nnx.relu(self.expand(self.norms[-1](x))))


class Estimate(nnx.Module):
    """Class logits, and a box that is moved and resized in units of its sides."""

    def __init__(self, channels: int, classes: int, numbers: int = 4, *, rngs: nnx.Rngs) -> None:
        # Every class starts at a probability of 0.01, as in Towers of network.py.
        prior = nnx.initializers.constant(-math.log((1 - 0.01) / 0.01))
        zeros = nnx.initializers.zeros
        self.norm = nnx.LayerNorm(channels, rngs=rngs)
        self.classes = nnx.Linear(channels, classes, bias_init=prior, rngs=rngs)
        self.hidden = nnx.Linear(channels, channels, rngs=rngs)
        self.boxes = nnx.Linear(channels, numbers, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits (B, Q, C) and corrected boxes (B, Q, 4) of queries (B, Q, D) and boxes."""
        logits, correction = self.raw(x)
        centre, side = jnp.split(boxes, 2, axis=-1)
        move, growth = jnp.split(correction, 2, axis=-1)
        side_after = side * jnp.exp(jnp.clip(growth, -2, 2))
        return logits, jnp.concatenate([centre + move * side, side_after], axis=-1)

    def raw(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits (B, Q, C) and `numbers` for the box of each query (B, Q, D)."""
        x = self.norm(x)
        return self.classes(x), self.boxes(nnx.relu(self.hidden(x)))


class Transformer(nnx.Module):
    """Predictions after each decoder layer, and the proposal of every cell, of one feature map.

    Class 0 of a proposal stands for an object of any class.
    """

    def __init__(self, channels: int, head: DETRHead, *, rngs: nnx.Rngs) -> None:
        classes = head.channels["cls_scores"]
        self.encoder = Layer(channels, cross=False, rngs=rngs)
        self.proposal = Estimate(channels, classes, rngs=rngs)
        self.layers = nnx.List([Layer(channels, cross=True, rngs=rngs) for _ in range(LAYERS)])
        self.estimates = nnx.List([Estimate(channels, classes, rngs=rngs) for _ in range(LAYERS)])

    def __call__(self, levels: list[jax.Array]) -> DETROutputs:
        """The head's outputs for a list of one feature map (B, H, W, D)."""
        (features,) = levels
        batch, height, width, channels = features.shape
        count = height * width
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1) + 0.5
        places = jnp.broadcast_to(grid.reshape(1, count, 2), (batch, count, 2))
        squares = jnp.concatenate([places, jnp.full_like(places, SIDE)], axis=-1)
        memory = self.encoder(features.reshape(batch, count, channels), squares)
        proposed_logits, proposed_boxes = self.proposal(memory, squares)
        _, best = jax.lax.top_k(proposed_logits[..., 0], query_count(height, width))
        x, boxes = (
            jnp.take_along_axis(rows, best[..., None], axis=1) for rows in (memory, proposed_boxes)
        )
        predictions = []
        for layer, estimate in zip(self.layers, self.estimates, strict=True):
            boxes = jax.lax.stop_gradient(boxes)  # Each layer learns its own correction only.
            x = layer(x, boxes, memory, places)
            logits, boxes = estimate(x, boxes)
            predictions.append((logits, boxes))
        logits, boxes = (jnp.stack(rows) for rows in zip(*predictions, strict=True))
        sides = jnp.array([width, height, width, height], jnp.float32)
        return DETROutputs(logits, boxes / sides, proposed_logits, proposed_boxes / sides)
