"""A small FCOS network in flax.nnx: residual backbone, feature pyramid and one shared head."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

GROUPS = 8


class ConvNorm(nnx.Module):
    """3 x 3 convolution, GroupNorm (per image, so the batch may be small) and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, rngs: nnx.Rngs):
        self.conv = nnx.Conv(
            channels_in, channels_out, (3, 3), strides=stride, use_bias=False, rngs=rngs
        )
        self.norm = nnx.GroupNorm(channels_out, num_groups=GROUPS, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.norm(self.conv(x)))


class ResidualBlock(nnx.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.first = ConvNorm(channels, channels, rngs=rngs)
        self.second = ConvNorm(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.second(self.first(x))


class Backbone(nnx.Module):
    """Halves the sides stage by stage and returns the features at each of `strides`."""

    def __init__(self, strides: tuple[int, ...], width: int, *, rngs: nnx.Rngs):
        self.strides = strides
        channels = [3, width, 2 * width, 3 * width, 4 * width, 4 * width]
        stages = []
        for level in range(int(math.log2(max(strides)))):
            stage = [ConvNorm(channels[level], channels[level + 1], stride=2, rngs=rngs)]
            if level > 0:  # at half resolution a block would add a quarter to the cost of a step
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
    """Adds to each level the upsampled coarser one."""

    def __init__(self, channels_in: list[int], channels: int, *, rngs: nnx.Rngs):
        self.lateral = nnx.List([nnx.Conv(c, channels, (1, 1), rngs=rngs) for c in channels_in])
        self.smooth = nnx.List([ConvNorm(channels, channels, rngs=rngs) for _ in channels_in])

    def __call__(self, features: list[jax.Array]) -> list[jax.Array]:
        levels = [conv(x) for conv, x in zip(self.lateral, features, strict=True)]
        for i in reversed(range(len(levels) - 1)):
            coarse = levels[i + 1].repeat(2, axis=1).repeat(2, axis=2)
            levels[i] = levels[i] + coarse
        return [conv(x) for conv, x in zip(self.smooth, levels, strict=True)]


class FCOSHead(nnx.Module):
    """Class logits, distances to the four sides and centerness at every point."""

    def __init__(self, channels: int, num_classes: int, num_levels: int, *, rngs: nnx.Rngs):
        self.class_tower = ConvNorm(channels, channels, rngs=rngs)
        self.box_tower = ConvNorm(channels, channels, rngs=rngs)
        # Every point starts at a probability of 0.01, or the many negatives drown the first steps
        # (Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.3).
        prior = nnx.initializers.constant(-math.log((1 - 0.01) / 0.01))
        self.logits = nnx.Conv(channels, num_classes, (3, 3), bias_init=prior, rngs=rngs)
        self.distances = nnx.Conv(channels, 4, (3, 3), rngs=rngs)
        self.centerness = nnx.Conv(channels, 1, (3, 3), rngs=rngs)
        self.scale = nnx.Param(jnp.ones(num_levels))

    def __call__(self, x: jax.Array, level: int, stride: int) -> dict[str, jax.Array]:
        batch = len(x)
        boxes = self.box_tower(x)
        distances = stride * jnp.exp(self.scale[level] * self.distances(boxes))
        logits = self.logits(self.class_tower(x))
        return {
            "logits": logits.reshape(batch, -1, logits.shape[-1]),
            "distances": distances.reshape(batch, -1, 4),
            "centerness": self.centerness(boxes).reshape(batch, -1),
        }


class Detector(nnx.Module):
    """Images uint8 (B, H, W, 3), sides divisible by the largest stride, to outputs at P points.

    Returns logits (B, P, C), distances (B, P, 4) in pixels (left, top, right, bottom) and
    centerness logits (B, P), level after level in the order of `fcos.make_points`.
    """

    def __init__(
        self,
        num_classes: int,
        strides: tuple[int, ...],
        *,
        width: int = 32,
        channels: int = 64,
        rngs: nnx.Rngs,
    ):
        self.num_classes, self.strides = num_classes, strides
        self.backbone = Backbone(strides, width, rngs=rngs)
        self.pyramid = Pyramid(self.backbone.channels, channels, rngs=rngs)
        self.head = FCOSHead(channels, num_classes, len(strides), rngs=rngs)

    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        x = images.astype(jnp.float32) / 127.5 - 1
        levels = self.pyramid(self.backbone(x))
        outputs = [
            self.head(x, level, stride)
            for level, (x, stride) in enumerate(zip(levels, self.strides, strict=True))
        ]
        return {name: jnp.concatenate([o[name] for o in outputs], axis=1) for name in outputs[0]}
