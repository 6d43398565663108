"""Priors: the anchors and points that a detector's outputs refer to, fixed by the feature sizes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.fields import as_tuple
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Range
from visdet_jax.detectors.registry import TASK_UTILS

Sizes = tuple[tuple[int, int], ...]
# The rules of a tuple's numbers; priors are constants, so that these are never traced.
PositiveNumbers = Annotated[tuple[float, ...], Range(0, without_low=True)]
# Of each level, the widths and heights of its anchors.
SizesOfAnchors = Annotated[tuple[tuple[tuple[float, ...], ...], ...], Range(0, without_low=True)]


class Grid(NamedTuple):
    """The N priors of all levels: level after level, row by row, those of one cell together.

    Constants in NumPy: they depend on the feature sizes alone. `detect` gathers rows of them.
    """

    # (N, 4) anchors as x1, y1, x2, y2, or (N, 2) points as x, y; pixels
    priors: np.ndarray | jax.Array
    corners: np.ndarray  # (N, 2) x, y of the upper left corner of the prior's cell, pixels
    strides: np.ndarray | jax.Array  # (N,) of the prior's level, pixels
    level_sizes: tuple[int, ...]  # priors of each level
    sizes: Sizes  # (height, width) of each level, cells


def valid_flags(grid: Grid, pad_shape: jax.Array) -> jax.Array:
    """Which priors (N,) have their cell inside one image of a batch.

    Row y of a level counts where y < ceil(height / stride), which is y · stride < height.

    Args:
      grid: The priors of the batch's feature maps.
      pad_shape: (height, width) in pixels of the image with its own padding, of the grid's type.
    """
    x, y = (jnp.asarray(column, grid.priors.dtype) for column in grid.corners.T)
    return (y < pad_shape[0]) & (x < pad_shape[1])


def inside_flags(anchors: jax.Array, image_shape: jax.Array, allowed_border: float) -> jax.Array:
    """Which anchors (N,) reach over the image by less than `allowed_border`.

    In pixels: x1, y1 ≥ -border, x2 < width + border, y2 < height + border.

    Args:
      anchors: (N, 4) as x1, y1, x2, y2, in pixels.
      image_shape: (height, width) in pixels, of the anchors' type.
      allowed_border: In pixels. Larger values leave more anchors.
    """
    x1, y1, x2, y2 = (anchors[:, i] for i in range(4))
    height, width = image_shape[0], image_shape[1]
    border = jnp.asarray(allowed_border, anchors.dtype)
    return (x1 >= -border) & (y1 >= -border) & (x2 < width + border) & (y2 < height + border)


def split_small(sizes: Sequence[int]) -> tuple[slice, slice]:
    """The large groups, and the last ones that have an eighth of all together, if they are several.

    On a GPU a small group costs as many kernels as a large one.
    """
    small = [i for i in range(len(sizes) - 1) if 8 * sum(sizes[i:]) <= sum(sizes)]
    first = min(small, default=len(sizes))
    return slice(first), slice(first, None)


@dataclass(frozen=True, kw_only=True)
class PriorGenerator(FrozenModule):
    """Base of the generators: a subclass has `num_base_priors` and `priors_at`.

    Args:
      strides: Of the levels, in pixels, at least 1.
    """

    strides: Annotated[tuple[int, ...], Range(1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.strides:
            raise self.value_error("strides must be one number or more, got none")

    @property
    def num_base_priors(self) -> int:
        """How many priors a cell has."""
        raise NotImplementedError(f"{type(self).__name__} must define num_base_priors")

    def priors_at(self, corners: np.ndarray, level: int) -> np.ndarray:
        """The priors of a level, (cells · num_base_priors, 4 or 2), in the corners' type.

        Args:
          corners: (cells, 2) x, y of the cells' upper left corners, in pixels.
          level: Which of the strides is the level's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define priors_at")

    def grid(self, sizes: Sizes, dtype: Any = np.float32) -> Grid:
        """The priors of feature maps of the given (height, width), one for each stride."""
        if len(sizes) != len(self.strides):
            raise self.value_error(
                f"{len(sizes)} feature maps do not fit {len(self.strides)} strides"
            )
        return _grid(self, as_tuple(sizes), np.dtype(dtype).type)


@functools.lru_cache(maxsize=64)
def _grid(generator: PriorGenerator, sizes: Sizes, dtype: Any) -> Grid:
    corners = [
        _corners(stride, size, dtype) for stride, size in zip(generator.strides, sizes, strict=True)
    ]
    priors = [generator.priors_at(corner, level) for level, corner in enumerate(corners)]
    level_sizes = tuple(map(len, priors))
    return Grid(
        priors=np.concatenate(priors),
        corners=np.concatenate(corners).repeat(generator.num_base_priors, axis=0),
        strides=np.repeat(np.asarray(generator.strides, dtype), level_sizes),
        level_sizes=level_sizes,
        sizes=sizes,
    )


def _corners(stride: int, size: tuple[int, int], dtype: Any) -> np.ndarray:
    """x, y (height · width, 2) of the upper left corners of a level's cells."""
    y, x = np.mgrid[: size[0], : size[1]]
    return (np.stack([x.ravel(), y.ravel()], axis=1) * stride).astype(dtype)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class AnchorGenerator(PriorGenerator):
    """Anchors of some scales and ratios in every cell; mmdet's class of this name.

    An anchor of scale s and ratio r (height / width) on a level of base size b has the width
    b s / √r and the height b s √r. Scales are given as they are, or by octaves:
    octave_base_scale · 2^(i / scales_per_octave) for i from 0 to scales_per_octave - 1.

    Args:
      ratios: Heights over widths, above 0.
      scales: Of the base sizes, above 0; or give octave_base_scale and scales_per_octave.
      base_sizes: Of the levels, in pixels, above 0; the strides unless given.
      scale_major: Whether the anchors of a cell go ratio by ratio, the scales within each, or
        scale by scale.
      octave_base_scale: The least of the scales, above 0.
      scales_per_octave: How many scales there are, at least 1.
      center_offset: Of an anchor's centre from its cell's corner, in base sizes, in [0, 1].
      centers: Of each level the x, y of an anchor's centre from its cell's corner, in pixels, in
        place of `center_offset`, which must be 0 then.
    """

    ratios: PositiveNumbers
    scales: PositiveNumbers | None = None
    base_sizes: PositiveNumbers | None = None
    scale_major: bool = True
    octave_base_scale: Annotated[float, Range(0, without_low=True)] | None = None
    scales_per_octave: Annotated[int, Range(1)] | None = None
    center_offset: Annotated[float, Range(0, 1)] = 0.0
    centers: Annotated[tuple[tuple[float, ...], ...], Range()] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        octaves = (self.octave_base_scale is not None) + (self.scales_per_octave is not None)
        if octaves != (2 if self.scales is None else 0):
            raise self.value_error("give either scales, or octave_base_scale and scales_per_octave")
        if not self.num_base_priors:
            raise self.value_error("give one ratio and one scale at least")
        if self.base_sizes is not None and len(self.base_sizes) != len(self.strides):
            raise self.value_error(
                f"{len(self.strides)} strides need as many base_sizes: {self.base_sizes}"
            )
        if self.centers is not None:
            if self.center_offset != 0:
                raise self.value_error("give either centers or center_offset")
            if len(self.centers) != len(self.strides) or any(len(x) != 2 for x in self.centers):
                raise self.value_error(
                    f"{len(self.strides)} strides need as many centers (x, y): {self.centers}"
                )

    @property
    def num_base_priors(self) -> int:
        """How many anchors a cell has."""
        return len(self.ratios) * len(self._scales())

    def base_anchors(
        self, base_size: float, dtype: Any = np.float32, center: Sequence[float] | None = None
    ) -> np.ndarray:
        """The anchors (A, 4) of the cell in the corner, in pixels.

        Args:
          base_size: Of the level.
          dtype: The type of the anchors.
          center: The x, y of their centre; as `center_offset` says unless given.
        """
        return self._around(center, base_size, dtype, 0)

    def priors_at(self, corners: np.ndarray, level: int) -> np.ndarray:
        base_size = (self.base_sizes or self.strides)[level]
        center = None if self.centers is None else self.centers[level]
        anchors = self.base_anchors(base_size, corners.dtype.type, center)
        return (np.tile(corners, 2)[:, None] + anchors).reshape(-1, 4)

    def _around(
        self, center: Sequence[float] | None, base_size: float, dtype: Any, last_pixel: int
    ) -> np.ndarray:
        """See `base_anchors`; corners are closer than a side is long by `last_pixel`."""
        # In the priors' own type from the start, as in mmdet: the same bits.
        ratios = np.sqrt(np.asarray(self.ratios, dtype))
        scales, size = np.asarray(self._scales(), dtype), dtype(base_size)
        if self.scale_major:
            widths = (size * (1 / ratios)[:, None] * scales).ravel()
            heights = (size * ratios[:, None] * scales).ravel()
        else:
            widths = (size * scales[:, None] * (1 / ratios)).ravel()
            heights = (size * scales[:, None] * ratios).ravel()
        half_w, half_h = dtype(0.5) * (widths - last_pixel), dtype(0.5) * (heights - last_pixel)
        if center is None:
            center = (self.center_offset * (size - last_pixel),) * 2
        x, y = dtype(center[0]), dtype(center[1])
        return np.stack([x - half_w, y - half_h, x + half_w, y + half_h], 1)

    def _scales(self) -> Sequence[float]:
        base, count = self.octave_base_scale, self.scales_per_octave
        if base is None or count is None:
            return self.scales or ()
        return [base * 2 ** (i / count) for i in range(count)]


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class LegacyAnchorGenerator(AnchorGenerator):
    """Anchors of mmdet 1, whose corners are whole pixels that belong to them.

    So an anchor of width w reaches from x1 to x1 + w - 1, and its corners are rounded, halves to
    the even number. Configs of mmdet 1's models set `center_offset=0.5`.

    Source: mmdet's `LegacyAnchorGenerator`
    """

    def base_anchors(
        self, base_size: float, dtype: Any = np.float32, center: Sequence[float] | None = None
    ) -> np.ndarray:
        # Always rounded in float32, as in mmdet: whole numbers are the same in every type.
        return self._around(center, base_size, np.float32, 1).round().astype(dtype)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOAnchorGenerator(PriorGenerator):
    """Anchors of given sizes around the middle of every cell; mmdet's class of this name.

    Args:
      base_sizes: Of each level the (width, height) of its anchors, in pixels, above 0. Every level
        has as many.
    """

    base_sizes: SizesOfAnchors

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.base_sizes) != len(self.strides):
            raise self.value_error(
                f"{len(self.strides)} strides need the base_sizes of as many levels, got "
                f"{len(self.base_sizes)}"
            )
        counts = {len(level) for level in self.base_sizes}
        pairs = all(len(size) == 2 for level in self.base_sizes for size in level)
        if len(counts) != 1 or counts == {0} or not pairs:
            raise self.value_error(
                "base_sizes must be as many (width, height) for every level, one at least, got "
                f"{self.base_sizes}"
            )

    @property
    def num_base_priors(self) -> int:
        """How many anchors a cell has."""
        return len(self.base_sizes[0])

    def priors_at(self, corners: np.ndarray, level: int) -> np.ndarray:
        half = np.asarray(self.base_sizes[level], corners.dtype) / 2
        middle = corners.dtype.type(self.strides[level] / 2)
        anchors = np.concatenate([middle - half, middle + half], axis=1)
        return (np.tile(corners, 2)[:, None] + anchors).reshape(-1, 4)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class MlvlPointGenerator(PriorGenerator):
    """A point in every cell: ((x + offset) · stride, (y + offset) · stride); mmdet's class.

    Args:
      offset: Of a point from its cell's corner, in strides: 0.5 is the cell's centre.
    """

    offset: Annotated[float, Range()] = 0.5

    @property
    def num_base_priors(self) -> int:
        """How many points a cell has: one."""
        return 1

    def priors_at(self, corners: np.ndarray, level: int) -> np.ndarray:
        return corners + corners.dtype.type(self.offset * self.strides[level])
