"""MPDIoU: overlap and distance of the corners of pairs of boxes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import jax

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import divide_once
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def mpdiou_loss(
    pred: Columns,
    target: Columns,
    *,
    image_shape: Sequence[Number] | jax.Array | None = None,
    eps: NonNegative = 1e-7,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the IoU of each pair of boxes, plus the distance of their corners.

    1 - IoU + (d1² + d2²) / (h² + w²), d1 between the upper left corners, d2 between the lower
    right ones, h and w of the image that the boxes are in.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      image_shape: (height, width) in the boxes' unit, or an array (..., 2) of one for each box,
        whose leading axes are those of the boxes or 1. In larger images distances cost less.
      eps: Added to the union, in pixels squared, and to the heights in it, in pixels; at least 0.

    Returns: (...), from 0 (equal) to 3 (in opposite corners), reduced as `weight_reduce_loss`
      says.
    Raises: ValueError where the shapes differ or do not end in 4, and for no `image_shape` or one
      of another shape.
    Source: Ma & Xu 2023, https://arxiv.org/abs/2307.07662
    """
    height, width = _sides(image_shape, pred[0].ndim)
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou_with_eps_in_heights, eps=eps)
    iou = overlap_term(iou_of(pair, by=divide_once), iou_of, pred, target, inner_ratio, focaler)
    dx1, dy1, dx2, dy2 = (a - b for a, b in zip(pred, target, strict=True))
    corners = dx1**2 + dy1**2 + dx2**2 + dy2**2
    return 1 - (iou - divide_once(corners, height**2 + width**2))


def _sides(image_shape: Any, ndim: int) -> tuple[Any, Any]:
    """The height and the width of the image, or of each box's image."""
    if image_shape is None:
        raise ValueError("give image_shape=(height, width), to the loss or to its call")
    if isinstance(image_shape, tuple | list):
        if len(image_shape) == 2:
            return image_shape[0], image_shape[1]
        shape: tuple[int, ...] = (len(image_shape),)
    else:
        shape = image_shape.shape
        if shape[-1:] == (2,) and len(shape) in (1, ndim + 1):
            return image_shape[..., 0], image_shape[..., 1]
    raise ValueError(
        f"image_shape must be (height, width), or an array (..., 2) of each box, got {shape}"
    )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MPDIoULoss(OverlapLoss, function=mpdiou_loss):
    """MPDIoU loss: `mpdiou_loss` with its hyperparameters as fields.

    Args:
      image_shape: (height, width) in the boxes' unit. The `image_shape` of a call replaces it, and
        may be an array (..., 2) of one for each box.
    """

    image_shape: tuple[float, ...] | None = None
    eps: float = 1e-7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_shape is not None and len(self.image_shape) != 2:
            raise self.value_error(f"image_shape must be (height, width), got {self.image_shape!r}")

    def compute(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None,
        *,
        image_shape: Any = None,
        **options: Any,
    ) -> jax.Array:
        settings = self.settings
        if image_shape is not None:
            settings["image_shape"] = image_shape
        return mpdiou_loss(pred, target, weight, **settings, **options)
