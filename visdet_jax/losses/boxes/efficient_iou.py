"""Efficient IoU and its focal form: overlap, distance, width and height of pairs of boxes."""

import functools
from dataclasses import dataclass

import jax

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.power import power
from visdet_jax.losses.boxes._box_loss import box_loss
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_term
from visdet_jax.registry import LOSSES


def _iou(pair, eps):
    return divide(pair.overlap, pair.union + 2 * eps)


@box_loss
def efficient_iou_loss(pred, target, *, eps=1e-7, focal_gamma=None, inner_ratio=None, focaler=None):
    """One minus the IoU of each pair of boxes, plus distance, width and height costs.

    1 - IoU + d² / c² + (Δw)² / cw² + (Δh)² / ch², d between the centres, cw and ch the sides of
    the smallest box around both and c its diagonal. Focal-EIoU multiplies that by IoU^focal_gamma.

    No gradient flows through the focal weight, which is of the full IoU. With it boxes that do
    not overlap cost 0.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to c², cw² and ch², and twice to the union, in pixels squared.
      focal_gamma: the power of the focal weight, 0.5 in the paper; None for no weight.
      inner_ratio, focaler: what replaces the IoU; see `overlap_term`.
    Returns: (...), from 0 (equal) to 4, before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zhang et al. 2021, https://arxiv.org/abs/2101.08158; the eps are those of its form in the
    YOLO family.
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(_iou, eps=eps)
    iou = iou_of(pair)
    x1, y1, x2, y2 = pair.enclosing
    width2, height2 = (x2 - x1) ** 2, (y2 - y1) ** 2
    penalty = (
        divide(pair.dx**2 + pair.dy**2, width2 + height2 + eps)
        + divide((pair.width2 - pair.width1) ** 2, width2 + eps)
        + divide((pair.height2 - pair.height1) ** 2, height2 + eps)
    )
    loss = 1 - (overlap_term(iou, iou_of, pred, target, inner_ratio, focaler) - penalty)
    if focal_gamma is None:
        return loss
    # Inverted boxes have negative areas.
    return loss * power(clamp_min(jax.lax.stop_gradient(iou), 0), focal_gamma)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EfficientIoULoss(OverlapLoss):
    """Flax shim of `efficient_iou_loss`; Focal-EIoU with `focal_gamma`."""

    eps: float = 1e-7
    focal_gamma: float | None = None

    def __post_init__(self):
        super().__post_init__()
        gamma = self.focal_gamma
        if gamma is not None and not isinstance(gamma, jax.Array) and gamma < 0:
            raise self.value_error(f"focal_gamma must be ≥ 0, got {gamma!r}")

    def compute(self, pred, target, weight, **reduce):
        return efficient_iou_loss(
            pred,
            target,
            weight,
            eps=self.eps,
            focal_gamma=self.focal_gamma,
            **self.term,
            **reduce,
        )
