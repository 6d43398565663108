"""Losses of pairs of boxes by their overlap."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, pair_geometry
from visdet_jax.core.elementary import clamp_min, divide_once
from visdet_jax.core.hyperparameters import NonNegative, Number, Positive
from visdet_jax.core.warn import warn
from visdet_jax.losses.boxes._iou_term import OverlapLoss, overlap_loss, overlap_term
from visdet_jax.reduction import Reduce
from visdet_jax.registry import LOSSES


@overlap_loss
def iou_loss(
    pred: Columns,
    target: Columns,
    *,
    linear: bool = False,
    mode: Literal["linear", "square", "log"] = "log",
    eps: NonNegative = 1e-6,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """A decreasing function of the IoU of each pair of boxes.

    1 - IoU (mode "linear"), 1 - IoU² ("square") or -log IoU ("log"), with IoU at least eps.

    The union is at least 1e-6, whatever eps is. Boxes that do not overlap cost -log eps (13.8 by
    default) in log mode, with gradient 0.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      linear: Deprecated spelling of mode="linear".
      mode: "linear", "square" or "log".
      eps: Least IoU, at least 0. With 0 boxes that do not overlap cost inf in log mode.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError for another mode, where the shapes differ or do not end in 4.
    Source: Yu et al. 2016, https://arxiv.org/abs/1608.01471
    """
    if linear:
        _warn_linear()
        mode = "linear"
    iou_of = functools.partial(PairGeometry.iou, least=1e-6)
    iou = iou_of(pair_geometry(pred, target), by=divide_once)
    iou = clamp_min(overlap_term(iou, iou_of, pred, target, inner_ratio, focaler), eps)
    if mode == "linear":
        return 1 - iou
    return 1 - iou * iou if mode == "square" else -jnp.log(iou)


@overlap_loss
def giou_loss(
    pred: Columns,
    target: Columns,
    *,
    eps: NonNegative = 1e-6,
    inner_ratio: Positive | None = None,
    focaler: Sequence[Number] | None = None,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """One minus the generalized IoU of each pair of boxes.

    1 - (IoU - (|C| - |A ∪ B|) / |C|), with C the smallest box around A and B.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      eps: Least area that is divided by, in pixels squared, at least 0.

    Returns: (...), from 0 (equal) to 2 (far apart), reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630
    """
    pair = pair_geometry(pred, target)
    iou_of = functools.partial(PairGeometry.iou, least=eps)
    union = jnp.maximum(pair.union, eps)
    enclosing = jnp.maximum(pair.enclosing_width * pair.enclosing_height, eps)
    # Keep the one union in both. With `iou_of(pair)` the gradient stores 2.75 arrays of pred's size
    # in place of 2 (jax 0.10.2).
    iou = divide_once(pair.overlap, union)
    iou = overlap_term(iou, iou_of, pred, target, inner_ratio, focaler)
    return 1 - (iou - divide_once(enclosing - union, enclosing))


def _warn_linear() -> None:
    warn('linear=True is deprecated, write mode="linear"', DeprecationWarning)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class IoULoss(OverlapLoss, function=iou_loss):
    """IoU loss: `iou_loss` with its hyperparameters as fields.

    Args:
      linear: Deprecated; it becomes mode="linear".
    """

    linear: bool = False
    eps: float = 1e-6
    mode: str = "log"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.linear:
            _warn_linear()
            object.__setattr__(self, "mode", "linear")
            object.__setattr__(self, "linear", False)

    @property
    def settings(self) -> dict[str, Any]:
        """The fields for a call of `iou_loss`, but `linear`, which a call may give itself."""
        return {name: value for name, value in super().settings.items() if name != "linear"}


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GIoULoss(OverlapLoss, function=giou_loss):
    """Generalized IoU loss: `giou_loss` with its hyperparameters as fields."""

    eps: float = 1e-6
