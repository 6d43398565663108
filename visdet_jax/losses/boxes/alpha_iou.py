"""α-IoU: powers of the overlap of pairs of boxes and of the penalties beside it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import pair_geometry
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.power import power
from visdet_jax.losses.boxes._box_loss import BoxLoss, box_loss
from visdet_jax.losses.boxes.diou import aspect_difference
from visdet_jax.registry import LOSSES

ALPHA_IOU_MODES = ("iou", "giou", "diou", "ciou")


@box_loss
def alpha_iou_loss(pred, target, *, mode="iou", alpha=2.0, eps=1e-9):
    """One minus the IoU of each pair of boxes to the power alpha, plus powers of penalties.

    iou: 1 - IoU^alpha.
    giou: plus ((|C| - |A ∪ B|) / |C|)^alpha, C the smallest box around A and B.
    diou: plus (d² / c²)^alpha, d between the centres, c the diagonal of C.
    ciou: plus that and (a v)^alpha, v = 4 / π² (arctan(w / h) of target - of pred)²,
      a = v / (1 - IoU + v), which no gradient flows through.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      mode: "iou", "giou", "diou" or "ciou".
      alpha: the power, > 0: 2 in the authors' code; the paper recommends 3.
      eps: added to the powers' bases, but for d², to what is divided by, and to the heights.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    He et al. 2021, https://arxiv.org/abs/2110.13675
    """
    if mode not in ALPHA_IOU_MODES:
        raise ValueError(f"mode must be one of {', '.join(ALPHA_IOU_MODES)}; got {mode!r}")
    pair = pair_geometry(pred, target)
    area1 = pair.width1 * (pair.height1 + eps)
    area2 = pair.width2 * (pair.height2 + eps)
    union = area1 + area2 - pair.overlap + eps
    iou = divide(pair.overlap, union)
    term = _power(iou + eps, alpha)
    if mode == "giou":
        hull = jnp.maximum(pair.enclosing_width * pair.enclosing_height + eps, union)
        term -= _power(divide(hull - union, hull) + eps, alpha)
    if mode in ("diou", "ciou"):
        term -= _distance(pair, alpha, eps)
    if mode == "ciou":
        v = aspect_difference(pair, eps)
        share = divide(v, clamp_min(1 - iou, 0) + eps + v)
        term -= _power(jax.lax.stop_gradient(share) * v + eps, alpha)
    return 1 - term


def _distance(pair, alpha, eps):
    """(dx² + dy²)^alpha / ((cw² + ch²)^alpha + eps), the hull's longer side being about 1.

    In pixels the power of a square of 2000 overflows float32 from alpha = 6 on.
    """
    cw, ch = pair.enclosing_width, pair.enclosing_height
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(cw, ch), 1))
    dx, dy, cw, ch = (side / unit for side in (pair.dx, pair.dy, cw, ch))
    hull = power(cw**2 + ch**2, alpha) + eps * power(1 / unit, 2 * alpha)
    return divide(power(dx**2 + dy**2, alpha), hull)


def _power(base, exponent):
    """`power`, of inverted boxes too, whose IoU may be negative."""
    return power(clamp_min(base, 0), exponent)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class AlphaIoULoss(BoxLoss):
    """Flax shim of `alpha_iou_loss`."""

    mode: str = "iou"
    alpha: float = 2.0
    eps: float = 1e-9

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("alpha")
        if self.mode not in ALPHA_IOU_MODES:
            raise self.value_error(
                f"mode must be one of {', '.join(ALPHA_IOU_MODES)}; got {self.mode!r}"
            )

    def compute(self, pred, target, weight, **reduce):
        return alpha_iou_loss(
            pred, target, weight, mode=self.mode, alpha=self.alpha, eps=self.eps, **reduce
        )
