"""Box coders: between boxes and what a network predicts, by the functions of `boxes`."""

from dataclasses import dataclass
from typing import Annotated, Any

import jax

from visdet_jax.boxes.deltas import (
    bbox2delta,
    delta2bbox,
    legacy_bbox2delta,
    legacy_delta2bbox,
)
from visdet_jax.boxes.distances import bbox2distance, distance2bbox
from visdet_jax.boxes.tblr import bboxes2tblr, for_each_side, tblr2bboxes
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Range
from visdet_jax.core.jitted import errors_named
from visdet_jax.detectors.registry import TASK_UTILS


@dataclass(frozen=True, kw_only=True)
class BoxCoder(FrozenModule):
    """Base of the coders of boxes whose priors are boxes: anchors or regions."""

    def encode(self, priors: jax.Array, boxes: jax.Array) -> jax.Array:
        """What the network learns (..., 4) for priors (..., 4) and their boxes (..., 4)."""
        raise NotImplementedError(f"{type(self).__name__} must define encode")

    def decode(self, priors: jax.Array, deltas: jax.Array, max_shape: Any = None) -> jax.Array:
        """The boxes (..., 4) in pixels that were predicted for priors (..., 4)."""
        raise NotImplementedError(f"{type(self).__name__} must define decode")


@dataclass(frozen=True, kw_only=True)
class _DeltaCoder(BoxCoder):
    """Base of the coders of deltas.

    Args:
      target_means: Four numbers that are subtracted from the deltas dx, dy, dw, dh.
      target_stds: Four numbers above 0 that the deltas are then divided by. Smaller values make
        what the network learns larger.
    """

    target_means: Annotated[tuple[float, ...], Range()] = (0.0, 0.0, 0.0, 0.0)
    target_stds: Annotated[tuple[float, ...], Range(0, without_low=True)] = (1.0, 1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_means", "target_stds"):
            if len(getattr(self, name)) != 4:
                raise self.value_error(f"{name} must be four numbers, got {getattr(self, name)}")


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DeltaXYWHBBoxCoder(_DeltaCoder, function=(bbox2delta, delta2bbox)):
    """Boxes as deltas of a prior: `bbox2delta` and `delta2bbox`.

    Args:
      clip_border: Whether `decode` clips boxes to its `max_shape`.
    """

    clip_border: bool = True
    add_ctr_clamp: bool = False
    ctr_clamp: float = 32

    def encode(self, priors: jax.Array, boxes: jax.Array) -> jax.Array:
        """Deltas (..., 4) from priors (..., 4) to boxes (..., 4), both in pixels."""
        return bbox2delta(priors, boxes, means=self.target_means, stds=self.target_stds)

    def decode(
        self,
        priors: jax.Array,
        deltas: jax.Array,
        max_shape: Any = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> jax.Array:
        """Boxes (..., 4) in pixels from deltas (..., 4) of priors (..., 4).

        Args:
          priors, deltas, wh_ratio_clip: See `delta2bbox`.
          max_shape: (height, width) in pixels, to which boxes are clipped where `clip_border`.
        """
        return delta2bbox(
            priors,
            deltas,
            means=self.target_means,
            stds=self.target_stds,
            max_shape=max_shape if self.clip_border else None,
            wh_ratio_clip=wh_ratio_clip,
            add_ctr_clamp=self.add_ctr_clamp,
            ctr_clamp=self.ctr_clamp,
        )


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class LegacyDeltaXYWHBBoxCoder(_DeltaCoder, function=(legacy_bbox2delta, legacy_delta2bbox)):
    """Boxes as deltas of a prior in mmdet 1's pixels: `legacy_bbox2delta`, `legacy_delta2bbox`.

    `decode` always clips boxes to its `max_shape`.
    """

    def encode(self, priors: jax.Array, boxes: jax.Array) -> jax.Array:
        """Deltas (..., 4) from priors (..., 4) to boxes (..., 4), both in pixels."""
        return legacy_bbox2delta(priors, boxes, means=self.target_means, stds=self.target_stds)

    def decode(
        self,
        priors: jax.Array,
        deltas: jax.Array,
        max_shape: Any = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> jax.Array:
        """Boxes (..., 4) in pixels from deltas (..., 4) of priors (..., 4).

        Args:
          priors, deltas, wh_ratio_clip: See `delta2bbox`.
          max_shape: (height, width) in pixels, to whose last pixel boxes are clipped.
        """
        return legacy_delta2bbox(
            priors,
            deltas,
            means=self.target_means,
            stds=self.target_stds,
            max_shape=max_shape,
            wh_ratio_clip=wh_ratio_clip,
        )


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class TBLRBBoxCoder(BoxCoder, function=(bboxes2tblr, tblr2bboxes)):
    """Boxes as distances from a prior's centre, in its sizes: `bboxes2tblr` and `tblr2bboxes`.

    Args:
      clip_border: Whether `decode` clips boxes to its `max_shape`.
    """

    normalizer: float | tuple[float, ...] = 4.0
    clip_border: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        with errors_named(type(self).__name__):
            for_each_side(self.normalizer)

    def encode(self, priors: jax.Array, boxes: jax.Array) -> jax.Array:
        """Distances (..., 4) from the centres of priors (..., 4) to the sides of boxes (..., 4)."""
        return bboxes2tblr(priors, boxes, normalizer=self.normalizer)

    def decode(self, priors: jax.Array, deltas: jax.Array, max_shape: Any = None) -> jax.Array:
        """Boxes (..., 4) in pixels from the distances (..., 4) for priors (..., 4).

        Args:
          priors: See `tblr2bboxes`.
          deltas: The distances; see `tblr2bboxes`.
          max_shape: (height, width) in pixels, to which boxes are clipped where `clip_border`.
        """
        return tblr2bboxes(
            priors,
            deltas,
            normalizer=self.normalizer,
            max_shape=max_shape if self.clip_border else None,
        )


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DistancePointBBoxCoder(FrozenModule, function=(bbox2distance, distance2bbox)):
    """Boxes as the distances from a point to their sides: `bbox2distance` and `distance2bbox`.

    Args:
      clip_border: Whether `decode` clips boxes to its `max_shape`.
    """

    clip_border: bool = True

    def encode(
        self, points: jax.Array, boxes: jax.Array, max_dis: float | None = None, eps: float = 0.1
    ) -> jax.Array:
        """Distances (..., 4) from points (..., 2) to the sides of boxes (..., 4), in one unit.

        Args:
          points, boxes, max_dis, eps: See `bbox2distance`.
        """
        return bbox2distance(points, boxes, max_dis=max_dis, eps=eps)

    def decode(self, points: jax.Array, distances: jax.Array, max_shape: Any = None) -> jax.Array:
        """Boxes (..., 4) around points (..., 2) by the distances (..., 4) to their sides.

        Args:
          points, distances: See `distance2bbox`.
          max_shape: (height, width) in pixels, to which boxes are clipped where `clip_border`.
        """
        return distance2bbox(points, distances, max_shape=max_shape if self.clip_border else None)
