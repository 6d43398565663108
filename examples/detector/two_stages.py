"""Faster and Mask R-CNN in flax.nnx: what they add to the backbone and the pyramid of network.py.

The proposals of the first stage are aligned to one size each, and the second stage sees nothing
else of the image.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from visdet_jax.boxes import KeptDetections, roi_align
from visdet_jax.detectors import RoIOutputs, RPNHead, StandardRoIHead

from .heads import Heads, with_slots
from .network import Backbone, ConvNorm, Pyramid, Towers, image_shapes

BOX_SIDE = 7  # cells of a region from which its class and its box are computed
HIDDEN = 128  # of the two fully connected layers
MASK_CHANNELS = 32
FINEST_SIDE = 56  # pixels; regions twice as large are aligned on the second level


class BoxBranch(nnx.Module):
    """Two fully connected layers, then class and box of each region: mmdet's Shared2FCBBoxHead."""

    def __init__(self, channels: int, roi: StandardRoIHead, *, rngs: nnx.Rngs) -> None:
        count = roi.bbox_head.channels
        small = nnx.initializers.normal(0.01)
        self.first = nnx.Linear(BOX_SIDE * BOX_SIDE * channels, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
        self.classes = nnx.Linear(HIDDEN, count["cls_scores"], kernel_init=small, rngs=rngs)
        self.boxes = nnx.Linear(HIDDEN, count["bbox_preds"], kernel_init=small, rngs=rngs)

    def __call__(self, regions: jax.Array) -> RoIOutputs:
        """The outputs for regions (B, S, 7, 7, D)."""
        x = nnx.relu(self.first(regions.reshape(*regions.shape[:2], -1)))
        x = nnx.relu(self.second(x))
        return RoIOutputs(cls_scores=self.classes(x), bbox_preds=self.boxes(x))


class MaskBranch(nnx.Module):
    """Convolutions, then masks of twice the resolution: mmdet's FCNMaskHead, but smaller."""

    def __init__(self, channels: int, roi: StandardRoIHead, *, rngs: nnx.Rngs) -> None:
        assert roi.mask_head is not None
        width = MASK_CHANNELS
        self.convs = nnx.Sequential(
            ConvNorm(channels, width, rngs=rngs), ConvNorm(width, width, rngs=rngs)
        )
        self.upsample = nnx.Linear(width, 4 * width, rngs=rngs)
        self.masks = nnx.Linear(width, roi.mask_head.channels, rngs=rngs)

    def __call__(self, regions: jax.Array) -> jax.Array:
        """Logits (B, S, 2 h, 2 w, C) for regions (B, S, h, w, D)."""
        batch, slots, height, width, channels = regions.shape
        x = self.convs(regions.reshape(batch * slots, height, width, channels))
        # Four pixels of each cell: a transposed convolution of kernel and stride 2. Keep it a
        # matrix product: XLA:CPU takes ten times as long for the convolution's gradient.
        x = self.upsample(x).reshape(*x.shape[:3], 2, 2, -1)
        x = self.masks(nnx.relu(x)).swapaxes(2, 3)
        return x.reshape(batch, slots, 2 * height, 2 * width, -1)


class TwoStageDetector(nnx.Module):
    """From images to losses or detections, through proposals and what is learnt of them."""

    def __init__(
        self, heads: Heads, *, width: int = 32, channels: int = 64, rngs: nnx.Rngs
    ) -> None:
        """A network with random weights. The arguments are those of `network.Detector`."""
        rpn, roi = heads["rpn_head"], heads["roi_head"]
        assert isinstance(rpn, RPNHead)
        assert isinstance(roi, StandardRoIHead)
        self.rpn, self.roi = rpn, roi
        self.backbone = Backbone(rpn.strides, width, rngs=rngs)
        self.pyramid = Pyramid(self.backbone.channels, channels, rngs=rngs)
        self.towers = Towers(channels, rpn, rngs=rngs)
        self.box_branch = BoxBranch(channels, roi, rngs=rngs)
        self.mask_branch = None if roi.mask_head is None else MaskBranch(channels, roi, rngs=rngs)

    @property
    def loss_names(self) -> list[str]:
        """The losses, in the order in which they are shown."""
        names = ["loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"]
        return names if self.mask_branch is None else [*names, "loss_mask"]

    def features(self, images: jax.Array) -> list[jax.Array]:
        """The levels of the pyramid for uint8 (B, H, W, 3)."""
        return self.pyramid(self.backbone(images.astype(jnp.float32) / 127.5 - 1))

    def losses(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """The losses of a batch by name."""
        of_anchors, of_proposals = jax.random.split(key)
        boxes, labels, shapes = batch["boxes"], batch["labels"], image_shapes(batch["images"])
        levels = self.features(batch["images"])
        rpn_outputs = self.towers(levels)
        rpn_losses = self.rpn.loss(rpn_outputs, boxes, labels, shapes, key=of_anchors)
        proposals = self.rpn.proposals(rpn_outputs, shapes)
        samples = self.roi.sample(proposals, boxes, labels, key=of_proposals)
        outputs = self.box_branch(self.align(levels, samples.boxes, BOX_SIDE))
        masks = None
        if self.mask_branch is not None:  # Only the first slots can hold a positive.
            masks = batch["masks"]
            positives = samples.boxes[:, : self.roi.mask_slots(samples)]
            outputs = outputs._replace(mask_preds=self.mask_logits(levels, positives))
        return {**rpn_losses, **self.roi.loss(outputs, samples, masks)}

    def detect(
        self, images: jax.Array, max_detections: int
    ) -> tuple[KeptDetections, jax.Array | None]:
        """The detections (B, K, ...), and their masks (B, K, H, W) if the detector has masks."""
        shapes, levels = image_shapes(images), self.features(images)
        rpn, roi = (with_slots(head, max_detections) for head in (self.rpn, self.roi))
        proposals = rpn.detect(self.towers(levels), shapes)
        outputs = self.box_branch(self.align(levels, proposals.boxes, BOX_SIDE))
        found = roi.detect(outputs, proposals, shapes)
        if self.mask_branch is None:
            return found, None
        logits = self.mask_logits(levels, found.boxes)
        return found, roi.paste_masks(logits, found, image_shape=images.shape[1:3])

    def mask_logits(self, levels: list[jax.Array], boxes: jax.Array) -> jax.Array:
        """The logits (B, S, m, m, C) of the masks in boxes (B, S, 4)."""
        assert self.mask_branch is not None
        return self.mask_branch(self.align(levels, boxes, self.roi.mask_size // 2))

    def align(self, levels: list[jax.Array], boxes: jax.Array, side: int) -> jax.Array:
        """What the pyramid holds in boxes (B, S, 4), (B, S, side, side, D).

        A box is aligned on the level that suits its size, as in mmdet's `SingleRoIExtractor`. All
        boxes are visited on all levels, since shapes cannot depend on sizes; where the level is
        another one the result is 0.
        """
        sides = boxes[..., 2:] - boxes[..., :2]
        size = jnp.sqrt(jnp.maximum(sides, 0).prod(axis=-1))
        level = jnp.floor(jnp.log2(size / FINEST_SIDE + 1e-6)).clip(0, len(levels) - 1)
        aligned = [
            roi_align(
                features,
                boxes,
                level == number,
                output_size=side,
                spatial_scale=1 / stride,
                sampling_ratio=2,
            )
            for number, (features, stride) in enumerate(zip(levels, self.rpn.strides, strict=True))
        ]
        return sum(aligned[1:], start=aligned[0])
