"""What may replace the IoU in the losses of boxes: Inner-IoU and Focaler-IoU."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.docstrings import parse, with_arguments
from visdet_jax.core.elementary import clamp, divide
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.jitted import errors_named
from visdet_jax.losses.boxes.box_loss import BoxLoss, Formula, P, box_loss
from visdet_jax.reduction import WeightedLoss


def overlap_term(
    iou: jax.Array,
    iou_of: Callable[[PairGeometry], jax.Array],
    pred: Columns,
    target: Columns,
    inner_ratio: Number | None = None,
    focaler: Sequence[Any] | None = None,
) -> jax.Array:
    """The term of a loss that says how far two boxes overlap: their IoU, or what replaces it.

    Args:
      iou: (...), the IoU of the boxes.
      iou_of: The loss's own IoU of a `PairGeometry`.
      pred, target: The columns of the boxes.
      inner_ratio: Replaces the IoU by Inner-IoU, that of both boxes scaled by this factor about
        their centres; above 0. Below 1 it falls faster for boxes that nearly match; above 1 it is
        not yet 0 for boxes that are a little apart; 1 and None leave the IoU as it is.
      focaler: Two numbers (d, u) with d < u, which replace the IoU, or Inner-IoU, by Focaler-IoU:
        clamp((IoU - d) / (u - d), 0, 1). The gradient is larger between d and u, and 0 outside.
        The paper has (0, 0.95); (0, 1) and None leave the IoU as it is.

    Returns: (...).
    Raises: ValueError for a `focaler` that is no such pair.
    Source: Inner-IoU: Zhang et al. 2023, https://arxiv.org/abs/2311.02877; Focaler-IoU: Zhang &
      Zhang 2024, https://arxiv.org/abs/2401.10525
    """
    if inner_ratio is not None:
        iou = iou_of(pair_geometry(_scaled(pred, inner_ratio), _scaled(target, inner_ratio)))
    if focaler is None:
        return iou
    _check_focaler(focaler)
    low, high = focaler
    return clamp(divide(iou - low, high - low), 0, 1)


def overlap_loss(formula: Formula[P]) -> WeightedLoss[P]:
    """`box_loss` for a formula with the hyperparameters `inner_ratio` and `focaler`.

    The docstring of the loss describes them as `overlap_term` does.
    """
    document = inspect.getdoc(formula)
    names = [*parse(document).arguments, "inner_ratio", "focaler"]
    formula.__doc__ = with_arguments(document, names, [inspect.getdoc(overlap_term) or ""])
    return box_loss(formula)


def _check_focaler(focaler: Sequence[Number]) -> None:
    """Raises a ValueError unless these are two numbers of which, if known, the second is larger."""
    if len(focaler) != 2:
        raise ValueError(f"focaler must be a pair (d, u), got {len(focaler)} numbers")
    low, high = focaler
    is_known = not any(isinstance(number, jax.core.Tracer) for number in focaler)
    if is_known and not -math.inf < low < high < math.inf:
        raise ValueError(f"focaler must be a pair (d, u) with d < u, got {focaler!r}")


def _scaled(boxes: Columns, ratio: Number) -> Columns:
    """The boxes scaled about their centres; with ratio 1 they stay the same to the last bit."""
    x1, y1, x2, y2 = boxes
    margin = (1 - ratio) / 2
    dx, dy = margin * (x2 - x1), margin * (y2 - y1)
    return x1 + dx, y1 + dy, x2 - dx, y2 - dy


@dataclass(frozen=True, kw_only=True)
class OverlapLoss(BoxLoss):
    """Base of the losses of boxes whose IoU can be replaced; see `overlap_term`."""

    inner_ratio: float | None = None
    focaler: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focaler is not None:
            with errors_named(type(self).__name__):
                _check_focaler(self.focaler)
