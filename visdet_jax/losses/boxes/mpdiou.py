"""MPDIoU: overlap and distance of the corners of pairs of boxes."""

import functools
from dataclasses import dataclass

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import divide
from visdet_jax.losses.boxes._box_loss import box_loss
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_term
from visdet_jax.registry import LOSSES


def _iou(pair, eps):
    area1 = pair.width1 * (pair.height1 + eps)
    area2 = pair.width2 * (pair.height2 + eps)
    return divide(pair.overlap, area1 + area2 - pair.overlap + eps)


@box_loss
def mpdiou_loss(pred, target, *, image_shape=None, eps=1e-7, inner_ratio=None, focaler=None):
    """One minus the IoU of each pair of boxes, plus the distance of their corners.

    1 - IoU + (d1² + d2²) / (h² + w²), d1 between the upper left corners, d2 between the lower
    right ones, h and w of the image the boxes are in.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      image_shape: (height, width) in the boxes' unit; or an array (..., 2), of each box, whose
        leading axes are those of the boxes or 1.
      eps: added to the union, in pixels squared, and to the heights, in pixels.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 (equal) to 3 (in opposite corners), before the weight and the
      reduction.
    Raises: ValueError where the shapes differ or do not end in 4, and for no or another
      image_shape.
    Ma & Xu 2023, https://arxiv.org/abs/2307.07662
    """
    height, width = _sides(image_shape, pred[0].ndim)
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou = overlap_term(iou_of(pair), iou_of, pred, target, inner_ratio, focaler)
    dx1, dy1, dx2, dy2 = (a - b for a, b in zip(pred, target, strict=True))
    corners = dx1**2 + dy1**2 + dx2**2 + dy2**2
    return 1 - (iou - divide(corners, height**2 + width**2))


def _sides(image_shape, ndim):
    if image_shape is None:
        raise ValueError("give image_shape=(height, width), to the loss or to its call")
    if isinstance(image_shape, tuple | list):
        if len(image_shape) == 2:
            return image_shape
        shape = (len(image_shape),)
    else:
        shape = image_shape.shape
        if shape[-1:] == (2,) and len(shape) in (1, ndim + 1):
            return image_shape[..., 0], image_shape[..., 1]
    raise ValueError(
        f"image_shape must be (height, width), or an array (..., 2) of each box, got {shape}"
    )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class MPDIoULoss(OverlapLoss):
    """Flax shim of `mpdiou_loss`; a call's own `image_shape` replaces the field."""

    image_shape: tuple[float, ...] | None = None
    eps: float = 1e-7

    def __post_init__(self):
        super().__post_init__()
        if self.image_shape is not None and len(self.image_shape) != 2:
            raise self.value_error(f"image_shape must be (height, width), got {self.image_shape!r}")

    def compute(self, pred, target, weight, *, image_shape=None, **reduce):
        return mpdiou_loss(
            pred,
            target,
            weight,
            image_shape=self.image_shape if image_shape is None else image_shape,
            eps=self.eps,
            **self.term,
            **reduce,
        )
