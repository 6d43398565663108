"""Extended IoU of pairs of boxes, of libfacedetection."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import divide
from visdet_jax.losses.boxes._box_loss import BoxLoss, box_loss
from visdet_jax.registry import LOSSES


@box_loss
def eiou_loss(pred, target, *, eps=1e-6, smooth_point=0.1):
    """One minus the extended IoU of each pair of boxes, smooth where they nearly match.

    With e = 1 - I / U: e² / (2 s) where e < s, e - s / 2 elsewhere, s = `smooth_point`.
    I is the overlap of boxes that overlap, and below 0, the more the further they are apart, of
    those that do not; U = area + area - I.

    This is Extended IoU, as the reference's loss of this name. It is not the Efficient IoU
    (https://arxiv.org/abs/2101.08158), called EIoU too, that penalizes widths and heights.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to U, in pixels squared.
      smooth_point: where the parabola ends, in units of IoU; > 0.
    Returns: (...), from 0 (equal) to 2 - s / 2 (apart; more if inverted), before the weight and
      the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Peng & Yu 2021, A Systematic IoU-Related Method: Beyond Simplified Regression for Better
    Localization, https://ieeexplore.ieee.org/document/9429909
    """
    pair = pair_geometry(pred, target)
    (x1, y1, x2, y2), (left, top, _, _) = pair.inner, pair.enclosing
    overlap = (
        (x2 - left) * (y2 - top)
        + (jnp.minimum(x1, x2) - left) * (jnp.minimum(y1, y2) - top)
        - (x1 - left) * (jnp.maximum(y1, y2) - top)
        - (jnp.maximum(x1, x2) - left) * (y1 - top)
    )
    error = 1 - divide(overlap, pair.area1 + pair.area2 - overlap + eps)
    # Equal inverted boxes have I / U = 2 area / eps, whose square's gradient overflows float32.
    error = jnp.maximum(error, -1e10)
    # No `where`: its unused side would square errors too large for it, and 0 × inf is NaN.
    inner = jnp.minimum(error, smooth_point)
    return 0.5 * inner * (inner / smooth_point) + (error - inner)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class EIoULoss(BoxLoss):
    """Flax shim of `eiou_loss`: Extended IoU, not Efficient IoU."""

    eps: float = 1e-6
    smooth_point: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("smooth_point")

    def compute(self, pred, target, weight, **reduce):
        return eiou_loss(
            pred, target, weight, eps=self.eps, smooth_point=self.smooth_point, **reduce
        )
