"""Box coders: between boxes and what a network predicts; shims of the functions in `boxes`."""

from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.boxes.deltas import bbox2delta, delta2bbox
from visdet_jax.boxes.distances import bbox2distance, distance2bbox
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.registry import TASK_UTILS


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class DeltaXYWHBBoxCoder(FrozenModule):
    """Flax shim of `bbox2delta` and `delta2bbox`."""

    target_means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    target_stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    clip_border: bool = True
    add_ctr_clamp: bool = False
    ctr_clamp: float = 32

    def __post_init__(self):
        super().__post_init__()
        for name in ("target_means", "target_stds"):
            if len(getattr(self, name)) != 4:
                raise self.value_error(f"{name} must be four numbers, got {getattr(self, name)}")

    def encode(self, priors: jax.Array, boxes: jax.Array) -> jax.Array:
        """Deltas (..., 4) from priors to boxes."""
        return bbox2delta(priors, boxes, means=self.target_means, stds=self.target_stds)

    def decode(
        self,
        priors: jax.Array,
        deltas: jax.Array,
        max_shape: Any = None,
        wh_ratio_clip: float = 16 / 1000,
    ) -> jax.Array:
        """Boxes (..., 4), clipped to `max_shape` (height, width) where `clip_border`."""
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
class DistancePointBBoxCoder(FrozenModule):
    """Flax shim of `bbox2distance` and `distance2bbox`."""

    clip_border: bool = True

    def encode(
        self, points: jax.Array, boxes: jax.Array, max_dis: float | None = None, eps: float = 0.1
    ) -> jax.Array:
        """Distances (..., 4) from points to the sides of boxes."""
        return bbox2distance(points, boxes, max_dis=max_dis, eps=eps)

    def decode(self, points: jax.Array, distances: jax.Array, max_shape: Any = None) -> jax.Array:
        """Boxes (..., 4), clipped to `max_shape` (height, width) where `clip_border`."""
        return distance2bbox(points, distances, max_shape=max_shape if self.clip_border else None)
