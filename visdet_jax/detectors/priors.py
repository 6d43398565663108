"""Priors: the anchors and points that a detector's outputs refer to, fixed by the feature sizes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.registry import TASK_UTILS

Sizes = tuple[tuple[int, int], ...]


class Grid(NamedTuple):
    """The N priors of all levels: level after level, row by row, those of one cell together.

    Constants in NumPy: they depend on the feature sizes alone.
    """

    priors: np.ndarray  # (N, 4) anchors as x1, y1, x2, y2, or (N, 2) points as x, y; pixels
    corners: np.ndarray  # (N, 2) x, y of the upper left corner of the prior's cell, pixels
    strides: np.ndarray  # (N,) of the prior's level, pixels
    level_sizes: tuple[int, ...]  # priors of each level


def valid_flags(grid: Grid, pad_shape: jax.Array) -> jax.Array:
    """Which priors (N,) have their cell in the image of a batch: `pad_shape` is (height, width).

    Row y of a level counts where y < ceil(height / stride), which is y · stride < height.
    """
    x, y = (jnp.asarray(column, grid.priors.dtype) for column in grid.corners.T)
    return (y < pad_shape[0]) & (x < pad_shape[1])


def inside_flags(anchors: jax.Array, image_shape: jax.Array, allowed_border: float) -> jax.Array:
    """Which anchors (N, 4) reach over the image (height, width) by less than `allowed_border`.

    In pixels: x1, y1 ≥ -border, x2 < width + border, y2 < height + border.
    """
    x1, y1, x2, y2 = (anchors[:, i] for i in range(4))
    height, width = image_shape[0], image_shape[1]
    border = jnp.asarray(allowed_border, anchors.dtype)
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class AnchorGenerator(FrozenModule):
    """Anchors of some scales and ratios at every cell; mmdet's class of this name.

    An anchor of scale s and ratio r (height / width) on a level of base size b has the width
    b s / √r and the height b s √r. Scales are given as they are, or by octaves:
    octave_base_scale · 2^(i / scales_per_octave).

    Args:
      strides: of the levels, in pixels.
      ratios: heights over widths.
      scales: of the base sizes; or give octave_base_scale and scales_per_octave.
      base_sizes: of the levels, in pixels; the strides unless given.
      scale_major: whether the anchors of a cell go ratio by ratio, the scales within each.
      center_offset: of an anchor's centre from its cell's corner, in base sizes.
    """

    strides: tuple[int, ...]
    ratios: tuple[float, ...]
    scales: tuple[float, ...] | None = None
    base_sizes: tuple[float, ...] | None = None
    scale_major: bool = True
    octave_base_scale: float | None = None
    scales_per_octave: int | None = None
    center_offset: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        octaves = (self.octave_base_scale is not None) + (self.scales_per_octave is not None)
        if octaves != (2 if self.scales is None else 0):
            raise self.value_error("give either scales, or octave_base_scale and scales_per_octave")
        if self.base_sizes is not None and len(self.base_sizes) != len(self.strides):
            raise self.value_error(
                f"{len(self.strides)} strides need as many base_sizes: {self.base_sizes}"
            )

    @property
    def num_base_priors(self) -> int:
        """How many anchors a cell has."""
        return len(self.ratios) * len(self._scales())

    def base_anchors(self, base_size: float, dtype: Any = np.float32) -> np.ndarray:
        """The anchors (A, 4) of the cell in the corner, in pixels."""
        # In the priors' own type from the start, as the reference: the same bits.
        ratios = np.sqrt(np.asarray(self.ratios, dtype))
        scales, size = np.asarray(self._scales(), dtype), dtype(base_size)
        if self.scale_major:
            widths = (size * (1 / ratios)[:, None] * scales).ravel()
            heights = (size * ratios[:, None] * scales).ravel()
        else:
            widths = (size * scales[:, None] * (1 / ratios)).ravel()
            heights = (size * scales[:, None] * ratios).ravel()
        half_w, half_h, center = (
            dtype(0.5) * widths,
            dtype(0.5) * heights,
            self.center_offset * size,
        )
        return np.stack([center - half_w, center - half_h, center + half_w, center + half_h], 1)

    def _scales(self) -> Sequence[float]:
        base, count = self.octave_base_scale, self.scales_per_octave
        if base is None or count is None:
            return self.scales or ()
        return [base * 2 ** (i / count) for i in range(count)]

    def grid(self, sizes: Sizes, dtype: Any = np.float32) -> Grid:
        """The anchors of feature maps of the given (height, width)."""
        return _anchor_grid(self, sizes, np.dtype(dtype).type)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class MlvlPointGenerator(FrozenModule):
    """A point in every cell: ((x + offset) · stride, (y + offset) · stride); mmdet's class.

    Args:
      strides: of the levels, in pixels.
      offset: of a point from its cell's corner, in strides.
    """

    strides: tuple[int, ...]
    offset: float = 0.5

    @property
    def num_base_priors(self) -> int:
        """How many points a cell has."""
        return 1

    def grid(self, sizes: Sizes, dtype: Any = np.float32) -> Grid:
        """The points of feature maps of the given (height, width)."""
        return _point_grid(self, sizes, np.dtype(dtype).type)


@functools.lru_cache(maxsize=64)
def _anchor_grid(generator: AnchorGenerator, sizes: Sizes, dtype: Any) -> Grid:
    base = [generator.base_anchors(b, dtype) for b in generator.base_sizes or generator.strides]
    corners = _corners(generator.strides, sizes, dtype)
    anchors = [
        (np.tile(corner, 2)[:, None] + anchors).reshape(-1, 4)
        for corner, anchors in zip(corners, base, strict=True)
    ]
    count = generator.num_base_priors
    return _grid(anchors, [corner.repeat(count, axis=0) for corner in corners], generator.strides)


@functools.lru_cache(maxsize=64)
def _point_grid(generator: MlvlPointGenerator, sizes: Sizes, dtype: Any) -> Grid:
    corners = _corners(generator.strides, sizes, dtype)
    points = [
        corner + dtype(generator.offset * stride)
        for corner, stride in zip(corners, generator.strides, strict=True)
    ]
    return _grid(points, corners, generator.strides)


def _corners(strides: tuple[int, ...], sizes: Sizes, dtype: Any) -> list[np.ndarray]:
    """x, y (H · W, 2) of the cells' upper left corners, for each level."""
    corners = []
    for stride, (height, width) in zip(strides, sizes, strict=True):
        y, x = np.mgrid[:height, :width]
        corners.append((np.stack([x.ravel(), y.ravel()], axis=1) * stride).astype(dtype))
    return corners


def _grid(priors: list[np.ndarray], corners: list[np.ndarray], strides: tuple[int, ...]) -> Grid:
    level_sizes = tuple(len(level) for level in priors)
    all_priors = np.concatenate(priors)
    return Grid(
        priors=all_priors,
        corners=np.concatenate(corners),
        strides=np.repeat(np.asarray(strides, all_priors.dtype), level_sizes),
        level_sizes=level_sizes,
    )
