"""What may stand for the IoU in the losses of boxes: Inner-IoU and Focaler-IoU."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import clamp, divide
from visdet_jax.losses.boxes._box_loss import BoxLoss


def overlap_term(
    iou: jax.Array,
    iou_of: Callable[[PairGeometry], jax.Array],
    pred: Columns,
    target: Columns,
    inner_ratio: jax.Array | None = None,
    focaler: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """`iou`, or what a loss has in its place.

    inner: the IoU of the boxes, each scaled by `inner_ratio` about its centre. Below 1 it falls
    faster for boxes that nearly match, above 1 it is not yet 0 for those that are apart.
    focaler: clamp((IoU - d) / (u - d), 0, 1) with (d, u) = `focaler`: the slope is steeper
    between d and u, and 0 outside. Both: the latter of the former.

    Args:
      iou: of the boxes.
      iou_of: the loss's own IoU of a `PairGeometry`.
      pred, target: the boxes' columns.
      inner_ratio: a number > 0, 1 for the IoU itself, or None.
      focaler: two numbers (d, u) with d < u, the paper's (0, 0.95), or None.
    Returns: (...), as `iou`.
    Raises: ValueError where `focaler` is no pair.
    Zhang et al. 2023, https://arxiv.org/abs/2311.02877, and 2024,
    https://arxiv.org/abs/2401.10525
    """
    if inner_ratio is not None:
        iou = iou_of(pair_geometry(_scaled(pred, inner_ratio), _scaled(target, inner_ratio)))
    if focaler is None:
        return iou
    if len(focaler) != 2:
        raise ValueError(f"focaler must be a pair (d, u), got {len(focaler)} numbers")
    low, high = focaler
    return clamp(divide(iou - low, high - low), 0, 1)


def _scaled(boxes, ratio):
    """The boxes scaled about their centres, and by 1 bit for bit themselves."""
    x1, y1, x2, y2 = boxes
    margin = (1 - ratio) / 2
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return x1 + dx, y1 + dy, x2 - dx, y2 - dy


@dataclass(frozen=True, kw_only=True)
class OverlapLoss(BoxLoss):
    """Base of the losses of boxes whose IoU can be replaced; see `overlap_term`.

    inner_ratio: of Inner-IoU. focaler: (d, u) of Focaler-IoU.
    """

    inner_ratio: float | None = None
    focaler: tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.inner_ratio is not None:
            self._raise_unless_positive("inner_ratio")
        if self.focaler is not None:
            known = not any(isinstance(number, jax.Array) for number in self.focaler)
            if len(self.focaler) != 2 or (known and not self.focaler[0] < self.focaler[1]):
                raise self.value_error(
                    f"focaler must be a pair (d, u) with d < u, got {self.focaler!r}"
                )

    @property
    def term(self):
        """The two as keywords."""
        return {"inner_ratio": self.inner_ratio, "focaler": self.focaler}
