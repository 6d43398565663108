"""A small D-FINE in flax.nnx: the decoder of detr.py, with denoising, and sides as distributions.

Each layer corrects the distributions of the layer before it, about the boxes of a plain head after
the first layer (Peng et al. 2024, https://arxiv.org/abs/2410.13842). In training noisy copies of
the ground truth are queries too, which learn their boxes without a matching.

As in detr.py boxes are (cx, cy, w, h) in cells inside the network.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from visdet_jax import dfine
from visdet_jax.detectors import DenoisingQueries, DFINECriterion, DFINEOutputs, dn_queries

from .detr import LAYERS, SIDE, STRIDE, Estimate, Layer, query_count

UP, REG_SCALE = 0.5, 4.0  # of the bins, as in D-FINE's own configs
LEAST_SIDE = 0.25  # of boxes that attention looks at, in cells
NUM_DENOISING = 24  # about half of how many denoising queries there are
LOSSES = ["loss_vfl", "loss_bbox", "loss_giou", "loss_fgl"]  # of the last layer


class Transformer(nnx.Module):
    """Predictions after each decoder layer, of the plain head, and of the best proposals."""

    def __init__(self, channels: int, head: DFINECriterion, *, rngs: nnx.Rngs) -> None:
        classes = head.channels["cls_scores"]
        self.reg_max = head.reg_max
        self.encoder = Layer(channels, cross=False, rngs=rngs)
        self.proposal = Estimate(channels, classes, rngs=rngs)
        self.noisy_labels = nnx.Embed(classes + 1, channels, rngs=rngs)  # One more for padding.
        self.layers = nnx.List([Layer(channels, cross=True, rngs=rngs) for _ in range(LAYERS)])
        self.first = Estimate(channels, classes, rngs=rngs)
        bins = 4 * (head.reg_max + 1)
        self.sides = nnx.List([Estimate(channels, classes, bins, rngs=rngs) for _ in range(LAYERS)])

    def __call__(
        self, levels: list[jax.Array], denoising: DenoisingQueries | None = None
    ) -> DFINEOutputs:
        """The head's outputs for a list of one feature map (B, H, W, D)."""
        (features,) = levels
        batch, height, width, channels = features.shape
        count = height * width
        extent = jnp.array([width, height, width, height], jnp.float32)
        grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), axis=-1) + 0.5
        places = jnp.broadcast_to(grid.reshape(1, count, 2), (batch, count, 2))
        squares = jnp.concatenate([places, jnp.full_like(places, SIDE)], axis=-1)
        memory = self.encoder(features.reshape(batch, count, channels), squares)
        logits, boxes = self.proposal(memory, squares)
        _, best = jax.lax.top_k(logits.max(-1), query_count(height, width))
        x, logits, boxes = (
            jnp.take_along_axis(rows, best[..., None], axis=1) for rows in (memory, logits, boxes)
        )
        encoder = (logits, boxes / extent)
        mask, slots = None, 0
        if denoising is not None:
            mask, slots = denoising.attn_mask, denoising.labels.shape[1]
            x = jnp.concatenate([self.noisy_labels(denoising.labels), x], axis=1)
            noisy = jax.nn.sigmoid(denoising.box_logits) * extent
            boxes = jnp.concatenate([noisy, boxes], axis=1)
        predictions = []
        sides = jnp.zeros((), jnp.float32)
        first = reference = boxes
        for number, (layer, estimate) in enumerate(zip(self.layers, self.sides, strict=True)):
            # Each layer learns its own correction only.
            seen = jax.lax.stop_gradient(boxes)
            seen = seen.at[..., 2:].max(LEAST_SIDE)
            x = layer(x, seen, memory, places, mask=mask)
            if number == 0:
                first_logits, first = self.first(x, seen)
                reference = jax.lax.stop_gradient(first)
            logits, correction = estimate.raw(x)
            sides = sides + correction
            distances = dfine.integral(
                sides.reshape(*sides.shape[:2], 4, -1), self.reg_max, REG_SCALE, UP
            )
            boxes = dfine.distance2bbox(reference, distances, REG_SCALE)
            predictions.append((logits, boxes / extent, sides))
        by_layer = [jnp.stack(rows) for rows in zip(*predictions, strict=True)]
        plain = (first_logits, first / extent)
        own = [rows[:, :, slots:] for rows in by_layer]
        outputs = DFINEOutputs(
            *own,
            reference[:, slots:] / extent,
            UP,
            REG_SCALE,
            *(rows[:, slots:] for rows in plain),
            *encoder,
        )
        if denoising is None:
            return outputs
        cls_scores, bbox_preds, corners = (rows[:, :, :slots] for rows in by_layer)
        return outputs._replace(
            dn_cls_scores=cls_scores,
            dn_bbox_preds=bbox_preds,
            dn_corners=corners,
            dn_ref_points=reference[:, :slots] / extent,
            dn_pre_cls_scores=first_logits[:, :slots],
            dn_pre_bbox_preds=first[:, :slots] / extent,
            dn_gt_inds=denoising.gt_inds,
        )


def denoising_queries(
    key: jax.Array, batch: dict[str, jax.Array], image_shapes: jax.Array, num_classes: int
) -> DenoisingQueries:
    """Noisy copies of a batch's ground truth, which the decoder has in front of its queries."""
    height, width = (side // STRIDE for side in batch["images"].shape[1:3])
    return dn_queries(
        key,
        batch["boxes"],
        batch["labels"],
        image_shapes,
        num_classes=num_classes,
        num_matching_queries=query_count(height, width),
        num_dn_queries=NUM_DENOISING,
        style="dfine",
    )
