"""Wise-IoU: losses of boxes, focused on pairs that are neither easy nor hopeless."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import Columns, PairGeometry, columns, pair_geometry
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Number, Positive, Range
from visdet_jax.core.jitted import jitted
from visdet_jax.losses.boxes.box_loss import BoxLoss, box_loss, check_boxes, weight_of_boxes
from visdet_jax.losses.boxes.diou import ciou_loss, diou_loss
from visdet_jax.losses.boxes.efficient_iou import efficient_iou_loss
from visdet_jax.losses.boxes.iou import giou_loss, iou_loss
from visdet_jax.losses.boxes.siou import siou_loss
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import Reduce, Reduction, check_reduction
from visdet_jax.registry import LOSSES

Base = Literal["wiou", "iou", "giou", "diou", "ciou", "siou", "eiou"]


@exportable
class WIoUState(NamedTuple):
    """The running statistics of Wise-IoU.

    Args:
      iou_mean: (), the running mean of 1 - IoU; 1 at first.
    """

    iou_mean: jax.Array


@jitted
def wiou_statistics(
    state: WIoUState,
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    momentum: Annotated[Number, Range(0, 1, without_low=True)] = 0.01,
    axis_name: str | tuple[str, ...] | None = None,
) -> WIoUState:
    """The next state of `wiou_loss`, of this batch and the state before it.

    iou_mean ← (1 - momentum) iou_mean + momentum m, m the mean of 1 - IoU over the pairs
    whose weight and whose union are not 0. Where there is no such pair, it stays as it is.

    Args:
      state: The state before.
      pred, target, weight: The batch, as `wiou_loss` takes it.
      momentum: Weight of the batch in the running mean, in (0, 1]. Larger values forget earlier
        batches sooner.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: the next state.
    Raises: ValueError where the shapes differ or do not end in 4.
    Source: Tong et al. 2023, https://arxiv.org/abs/2301.10051
    """
    # Pairs of weight 0 are zeros here: they have no union.
    error, has_union = _error(*_boxes(pred, target, weight))
    total = reduce_sum(jnp.where(has_union, error, 0).sum(), axis_name)
    count = reduce_sum(has_union.astype(error.dtype).sum(), axis_name)
    before = state.iou_mean
    momentum = as_dtype(before.dtype, momentum)
    mean = divide(total, count).astype(before.dtype)
    return WIoUState(jnp.where(count > 0, (1 - momentum) * before + momentum * mean, before))


@jitted(static=("version",))
def wiou_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    state: WIoUState | tuple[()] = (),
    version: Literal[1, 2, 3] = 3,
    base: Base = "wiou",
    alpha: Positive = 1.7,
    delta: Positive = 2.7,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """A loss of each pair of boxes, weighted by how its IoU compares with the running mean.

    r times `base`, with r = 1 in version 1, √β in 2 and β / (delta alpha^(β - delta)) in 3,
    β = (1 - IoU) / iou_mean. The last is 1 at β = delta and largest at 1 / log(alpha). It falls to
    0 for pairs that match, and for pairs that are far worse than the others.

    The base "wiou" is exp(d² / c²) (1 - IoU), d between the centres, c the diagonal of the smallest
    box around both.

    No gradient flows through r and c.

    Args:
      pred, target: Boxes (..., 4) as x1, y1, x2, y2 in pixels.
      weight: (...), or (..., 4), of which the mean of the four counts.
      state: `WIoUState` of `wiou_statistics`, this batch included; () in version 1.
      version: 1, 2 or 3.
      base: "wiou", or a loss of this package: "iou" (1 - IoU), "giou", "diou", "ciou" (not
        gated), "siou" (with neg_gamma) or "eiou" (Efficient IoU).
      alpha: Of version 3, above 0. Larger values down-weight pairs that are far worse than the
        others more; at 1 and below r grows with β without end.
      delta: Of version 3, above 0: the β at which r is 1. It multiplies every r by
        alpha^delta / delta.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError for another version or base, a state that is missing, and where the shapes
      differ or do not end in 4.
    Source: Tong et al. 2023, https://arxiv.org/abs/2301.10051
    """
    check_reduction(reduction, avg_factor)
    pred_read, target_read = _boxes(pred, target, weight)
    if version > 1:
        if not isinstance(state, WIoUState):
            raise ValueError(f"version {version} needs a state, of wiou_statistics")
        error, _ = _error(pred_read, target_read)
        focus = _focus(error, state.iou_mean, version, *as_dtype(error.dtype, alpha, delta))
        focus = jax.lax.stop_gradient(focus)
        if weight is not None:
            focus *= weight_of_boxes(pred_read, weight).astype(focus.dtype)
        weight = focus
    loss = _BASES[base]
    return loss(pred, target, weight, reduction=reduction, avg_factor=avg_factor)


@box_loss
def _distance_focused_iou_loss(
    pred: Columns, target: Columns, **reduce: Unpack[Reduce]
) -> jax.Array:
    pair = pair_geometry(pred, target)
    # At most 1, but for inverted boxes, whose exp would overflow.
    exponent = divide(pair.squared_distance, jax.lax.stop_gradient(pair.squared_diagonal))
    exponent = jnp.where(exponent > 2, 2, exponent)
    iou, _ = _iou_and_has_union(pair)
    return jnp.exp(exponent) * (1 - iou)


_BASES: dict[Base, Callable[..., jax.Array]] = {
    "wiou": _distance_focused_iou_loss,
    "iou": functools.partial(iou_loss, mode="linear", eps=0.0),
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": functools.partial(ciou_loss, gated=False),
    "siou": functools.partial(siou_loss, neg_gamma=True),
    "eiou": efficient_iou_loss,
}


def _boxes(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Both as floats of one type, and as zeros where the weight is 0."""
    dtype = compute_dtype(pred=pred, target=target)
    check_boxes(pred, target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if weight is None:
        return pred, target
    read = weight_of_boxes(pred, weight)[..., None] != 0
    return jnp.where(read, pred, 0), jnp.where(read, target, 0)


def _iou_and_has_union(pair: PairGeometry) -> tuple[jax.Array, jax.Array]:
    """The IoU, 0 where there is no union, and where there is one.

    Below 1e-15 a union counts as none: its square, which the gradient divides by, underflows
    float32.
    """
    has_union = jnp.abs(pair.union) > 1e-15
    return jnp.where(has_union, pair.overlap / jnp.where(has_union, pair.union, 1), 0), has_union


def _error(pred: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """1 - IoU without gradient, and where there is a union."""
    boxes = (columns(jax.lax.stop_gradient(x)) for x in (pred, target))
    iou, has_union = _iou_and_has_union(pair_geometry(*boxes))
    return clamp_min(1 - iou, 0), has_union  # The IoU may be above 1, see `PairGeometry`.


def _focus(
    error: jax.Array, iou_mean: jax.Array, version: int, alpha: Any, delta: Any
) -> jax.Array:
    """r of version 2 or 3."""
    beta = divide(error, jax.lax.stop_gradient(iou_mean).astype(error.dtype))
    if version == 2:
        return jnp.sqrt(beta)
    # β / (delta alpha^(β - delta)). Keep the exp: a power takes five times as long on a CPU
    # (jax 0.10.2).
    return beta / delta * jnp.exp((delta - beta) * jnp.log(alpha))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class WIoULoss(BoxLoss, StatefulLoss, function=(wiou_loss, wiou_statistics)):
    """Wise-IoU: `wiou_loss` of a running mean, `wiou_statistics`; version 1 keeps no state."""

    version: int = 3
    base: str = "wiou"
    momentum: float = 0.01
    alpha: float = 1.7
    delta: float = 2.7

    def init(self) -> WIoUState | tuple[()]:
        return () if self.version == 1 else WIoUState(jnp.ones(()))

    def step(
        self,
        state: WIoUState | tuple[()],
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
        **options: Any,
    ) -> tuple[jax.Array, WIoUState | tuple[()]]:
        if isinstance(state, WIoUState):
            state = wiou_statistics(
                state, pred, target, weight, momentum=self.momentum, axis_name=axis_name
            )
        for name in ("version", "base", "alpha", "delta"):
            options[name] = getattr(self, name)
        return wiou_loss(pred, target, weight, state=state, **options), state
