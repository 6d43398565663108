"""A small detector in flax.nnx: residual backbone, feature pyramid, and the outputs of a head.

The outputs come from towers that all levels share, or from a transformer: DETR's (detr.py) or
D-FINE's (dfine.py).
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from visdet_jax.boxes import KeptDetections
from visdet_jax.detectors import (
    DenoisingQueries,
    DenseHead,
    DETROutputs,
    DFINECriterion,
    DFINEOutputs,
    FCOSHead,
    HeadOutputs,
    QueryHead,
    RTMDetHead,
    RTMDetInsHead,
)

from . import detr, dfine
from .heads import with_slots

GROUPS = 8  # of GroupNorm


class ConvNorm(nnx.Module):
    """3 x 3 convolution, GroupNorm and ReLU. GroupNorm allows small batches."""

    def __init__(
        self, channels_in: int, channels_out: int, *, stride: int = 1, rngs: nnx.Rngs
    ) -> None:
        self.conv = nnx.Conv(
            channels_in, channels_out, (3, 3), strides=stride, use_bias=False, rngs=rngs
        )
        self.norm = nnx.GroupNorm(channels_out, num_groups=GROUPS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class ResidualBlock(nnx.Module):
    """Two convolutions whose result is added to their input."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.first = ConvNorm(channels, channels, rngs=rngs)
        self.second = ConvNorm(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.second(self.first(x))


class Backbone(nnx.Module):
    """Stages that each halve the sides; returns the features at each of `strides`."""

    def __init__(self, strides: tuple[int, ...], width: int, *, rngs: nnx.Rngs) -> None:
        self.strides = strides
        channels = [3, width, 2 * width, 3 * width, 4 * width, 4 * width]
        stages = []
        for level in range(int(math.log2(max(strides)))):
            stage = [ConvNorm(channels[level], channels[level + 1], stride=2, rngs=rngs)]
            if level > 0:  # At half resolution a block would add a quarter to the cost of a step.
                stage.append(ResidualBlock(channels[level + 1], rngs=rngs))
            stages.append(nnx.Sequential(*stage))
        self.stages = nnx.List(stages)
        self.channels = [channels[int(math.log2(stride))] for stride in strides]

    def __call__(self, x: jax.Array) -> list[jax.Array]:
        features = []
        for level, stage in enumerate(self.stages):
            x = stage(x)
            if 2 ** (level + 1) in self.strides:
                features.append(x)
        return features


class Pyramid(nnx.Module):
    """Feature pyramid: adds to each level the upsampled coarser level."""

    def __init__(self, channels_in: list[int], channels: int, *, rngs: nnx.Rngs) -> None:
        self.lateral = nnx.List([nnx.Conv(c, channels, (1, 1), rngs=rngs) for c in channels_in])
        self.smooth = nnx.List([ConvNorm(channels, channels, rngs=rngs) for _ in channels_in])

    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        levels = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            coarse = levels[i + 1].repeat(2, axis=1).repeat(2, axis=2)
            levels[i] = levels[i] + coarse
        return [conv(x) for conv, x in zip(self.smooth, levels, strict=True)]


class Towers(nnx.Module):
    """The outputs of a head at every cell: a convolution for each, which all levels share.

    FCOS needs distances that are positive, in pixels or in strides, and RTMDet distances in pixels.
    The other heads take any numbers.
    """

    def __init__(self, channels: int, head: DenseHead, *, rngs: nnx.Rngs) -> None:
        self.class_tower = ConvNorm(channels, channels, rngs=rngs)
        self.box_tower = ConvNorm(channels, channels, rngs=rngs)
        count = {name: head.num_base_priors * size for name, size in head.channels.items()}
        # Every prior starts at a probability of 0.01. Without it the many negatives dominate the
        # first steps (Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.3).
        prior = nnx.initializers.constant(-math.log((1 - 0.01) / 0.01))
        self.classes = nnx.Conv(channels, count["cls_scores"], (3, 3), bias_init=prior, rngs=rngs)
        self.boxes = nnx.Conv(channels, count["bbox_preds"], (3, 3), rngs=rngs)
        self.scale = nnx.Param(jnp.ones(len(head.strides)))
        self.centerness = (
            nnx.Conv(channels, count["centernesses"], (3, 3), rngs=rngs)
            if "centernesses" in count
            else None
        )
        self.masks = (
            MaskTowers(channels, head, rngs=rngs) if isinstance(head, RTMDetInsHead) else None
        )
        # RTMDet's distances may be negative, as those of its small models in mmdet, which have no
        # exp_on_reg.
        self.positive, self.units = isinstance(head, FCOSHead), None
        if isinstance(head, FCOSHead | RTMDetHead):
            in_strides = isinstance(head, FCOSHead) and head.norm_on_bbox
            self.units = (1,) * len(head.strides) if in_strides else head.strides

    def __call__(self, levels: list[jax.Array]) -> HeadOutputs:
        towers = [self.box_tower(x) for x in levels]
        boxes = [self.scale[i] * self.boxes(x) for i, x in enumerate(towers)]
        if self.positive:
            boxes = [jnp.exp(x) for x in boxes]
        if self.units is not None:
            boxes = [unit * x for unit, x in zip(self.units, boxes, strict=True)]
        outputs = HeadOutputs(
            cls_scores=[self.classes(self.class_tower(x)) for x in levels],
            bbox_preds=boxes,
            centernesses=None if self.centerness is None else [self.centerness(x) for x in towers],
        )
        if self.masks is None:
            return outputs
        kernels, features = self.masks(levels)
        return outputs._replace(kernel_preds=kernels, mask_feats=features)


class MaskTowers(nnx.Module):
    """What `RTMDetInsHead` makes masks of: convolutions of each cell, and features they read."""

    def __init__(self, channels: int, head: RTMDetInsHead, *, rngs: nnx.Rngs) -> None:
        self.kernel_tower = ConvNorm(channels, channels, rngs=rngs)
        self.kernels = nnx.Conv(channels, head.channels["kernel_preds"], (1, 1), rngs=rngs)
        self.feature_tower = ConvNorm(channels, channels, rngs=rngs)
        self.features = nnx.Conv(channels, head.num_prototypes, (1, 1), rngs=rngs)

    def __call__(self, levels: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
        """The kernels of all levels, and the features, which are those of the finest level."""
        kernels = [self.kernels(self.kernel_tower(x)) for x in levels]
        return kernels, self.features(self.feature_tower(levels[0]))


class Detector(nnx.Module):
    """From images to the outputs of one head, to its losses and to detections."""

    def __init__(
        self, head: DenseHead | QueryHead, *, width: int = 32, channels: int = 64, rngs: nnx.Rngs
    ) -> None:
        """A network with random weights.

        Args:
          head: The head whose outputs the network computes.
          width: Channels of the first stage.
          channels: Channels of the pyramid and of the towers.
          rngs: Draw the weights.
        """
        self.head = head
        strides = (detr.STRIDE,) if isinstance(head, QueryHead) else head.strides
        self.backbone = Backbone(strides, width, rngs=rngs)
        self.pyramid = Pyramid(self.backbone.channels, channels, rngs=rngs)
        self.top: dfine.Transformer | detr.Transformer | Towers
        if isinstance(head, DFINECriterion):
            self.top = dfine.Transformer(channels, head, rngs=rngs)
        elif isinstance(head, QueryHead):
            self.top = detr.Transformer(channels, head, rngs=rngs)
        else:
            self.top = Towers(channels, head, rngs=rngs)

    def __call__(
        self, images: jax.Array, *denoising: DenoisingQueries
    ) -> HeadOutputs | DETROutputs | DFINEOutputs:
        """The outputs for uint8 (B, H, W, 3), whose sides are multiples of the largest stride.

        A decoder with denoising queries gives what they become too.
        """
        x = images.astype(jnp.float32) / 127.5 - 1
        return self.top(self.pyramid(self.backbone(x)), *denoising)

    @property
    def loss_names(self) -> list[str]:
        """The losses that are shown: of a decoder those of the last layer."""
        if isinstance(self.head, DFINECriterion):
            return dfine.LOSSES
        return list(self.head.init())

    def losses(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """The losses of a batch by name. The key draws the noise of denoising queries."""
        images, boxes, labels = batch["images"], batch["boxes"], batch["labels"]
        shapes = image_shapes(images)
        if isinstance(self.head, DFINECriterion):
            queries = dfine.denoising_queries(key, batch, shapes, self.head.num_classes)
            return self.head.loss(self(images, queries), boxes, labels, shapes)
        masks = {"gt_masks": batch["masks"]} if isinstance(self.head, RTMDetInsHead) else {}
        return self.head.loss(self(images), boxes, labels, shapes, **masks)

    def detect(
        self, images: jax.Array, max_detections: int
    ) -> tuple[KeptDetections, jax.Array | None]:
        """The detections (B, K, ...), and their masks (B, K, H, W) if the detector has masks."""
        outputs, shapes = self(images), image_shapes(images)
        found = with_slots(self.head, max_detections).detect(outputs, shapes)
        if getattr(outputs, "centernesses", None) is not None:
            # These scores are products of two, class and centerness. Their root is on the scale of
            # the other heads' scores.
            found = found._replace(scores=jnp.sqrt(found.scores))
        if isinstance(self.head, RTMDetInsHead):
            return found, self.head.paste_masks(outputs, found, image_shape=images.shape[1:3])
        return found, None


def image_shapes(images: jax.Array) -> jax.Array:
    """Height and width (B, 2) of images (B, H, W, 3)."""
    count, *shape, _ = images.shape
    return jnp.broadcast_to(jnp.array(shape), (count, 2))
