"""Wise-IoU: losses of boxes, focused on pairs that are neither easy nor hopeless."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns, pair_geometry
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp, divide
from visdet_jax.core.export import exportable
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import BOXES, Expected
from visdet_jax.losses.boxes._box_loss import box_loss, check_boxes, weight_of_boxes
from visdet_jax.losses.boxes.diou import ciou_loss, diou_loss
from visdet_jax.losses.boxes.efficient_iou import efficient_iou_loss
from visdet_jax.losses.boxes.iou import giou_loss, iou_loss
from visdet_jax.losses.boxes.siou import siou_loss
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import check_reduction
from visdet_jax.registry import LOSSES

WIOU_VERSIONS = (1, 2, 3)
# What a union is taken for nothing below, in pixels squared: its square underflows float32.
_NOTHING = 1e-15


@exportable
class WIoUState(NamedTuple):
    """What Wise-IoU remembers.

    iou_mean: () running mean of 1 - IoU, 1 at first.
    """

    iou_mean: jax.Array


@jitted
def wiou_statistics(state, pred, target, weight=None, *, momentum=0.01, axis_name=None):
    """The next state of `wiou_loss`, whose arguments these are.

    iou_mean ← (1 - momentum) iou_mean + momentum m, m the mean of 1 - IoU over the pairs
    whose weight and whose union are not 0; as it is where there is none.

    Args:
      momentum: the share of the batch, in (0, 1].
      axis_name: the mesh axis whose devices hold parts of the batch.
    """
    # Pairs of weight 0 are zeros here: they have no union.
    error, exists = _error(*_boxes(pred, target, weight))
    total = reduce_sum(jnp.where(exists, error, 0).sum(), axis_name)
    count = reduce_sum(exists.astype(error.dtype).sum(), axis_name)
    before = state.iou_mean
    momentum = as_dtype(before.dtype, momentum)
    mean = divide(total, count).astype(before.dtype)
    return WIoUState(jnp.where(count > 0, (1 - momentum) * before + momentum * mean, before))


@jitted(static=("version",))
def wiou_loss(
    pred,
    target,
    weight=None,
    *,
    state=(),
    version=3,
    base="wiou",
    alpha=1.7,
    delta=2.7,
    reduction="mean",
    avg_factor=None,
):
    """A loss of each pair of boxes, times how far its IoU is from the usual.

    r base; r = 1 in version 1, √β in 2 and β / (delta alpha^(β - delta)) in 3, with
    β = (1 - IoU) / iou_mean. The last is 1 at β = delta, largest at 1 / log(alpha), and falls
    to 0 for pairs that are as good as any, and for those far worse than the others. The base
    "wiou" is exp(d² / c²) (1 - IoU), d between the centres, c the diagonal of the smallest box
    around both.

    No gradient flows through r and c.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      state: `WIoUState` of `wiou_statistics`, this batch included; () in version 1.
      version: 1, 2 or 3.
      base: "wiou", or a loss of this package: "iou" (1 - IoU), "giou", "diou", "ciou" (not
        gated), "siou" (with neg_gamma) or "eiou" (Efficient IoU).
      alpha, delta: > 0; of version 3.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError for another version or base, a state that is missing, and where the shapes
      differ or do not end in 4.
    Tong et al. 2023, https://arxiv.org/abs/2301.10051
    """
    if version not in WIOU_VERSIONS:
        raise ValueError(f"version must be 1, 2 or 3; got {version!r}")
    if base not in WIOU_BASES:
        raise ValueError(f"base must be one of {', '.join(WIOU_BASES)}; got {base!r}")
    if version > 1 and not jax.tree.leaves(state):
        raise ValueError(f"version {version} needs a state, of wiou_statistics")
    check_reduction(reduction, avg_factor)
    pred_read, target_read = _boxes(pred, target, weight)
    if version > 1:
        error, _ = _error(pred_read, target_read)
        focus = _focus(error, state.iou_mean, version, *as_dtype(error.dtype, alpha, delta))
        focus = jax.lax.stop_gradient(focus)
        if weight is not None:
            focus *= weight_of_boxes(pred_read, weight).astype(focus.dtype)
        weight = focus
    loss = WIOU_BASES[base]
    return loss(pred, target, weight, reduction=reduction, avg_factor=avg_factor)


@box_loss
def _distance_focused_iou_loss(pred, target):
    pair = pair_geometry(pred, target)
    diagonal2 = jax.lax.stop_gradient(pair.enclosing_width**2 + pair.enclosing_height**2)
    exponent = divide(pair.dx**2 + pair.dy**2, diagonal2)
    # At most 1, but for inverted boxes, which have it overflow.
    exponent = jnp.where(exponent > 2, 2, exponent)
    return jnp.exp(exponent) * (1 - _iou_and_union(pair)[0])


WIOU_BASES: dict[str, Callable[..., jax.Array]] = {
    "wiou": _distance_focused_iou_loss,
    "iou": functools.partial(iou_loss, mode="linear", eps=0.0),
    "giou": giou_loss,
    "diou": diou_loss,
    "ciou": functools.partial(ciou_loss, gated=False),
    "siou": functools.partial(siou_loss, neg_gamma=True),
    "eiou": efficient_iou_loss,
}


def _boxes(pred, target, weight):
    """Both as floats of one type, and as zeros where the weight is 0."""
    dtype = compute_dtype(pred=pred, target=target)
    check_boxes(pred, target)
    pred, target = pred.astype(dtype), target.astype(dtype)
    if weight is None:
        return pred, target
    read = weight_of_boxes(pred, weight)[..., None] != 0
    return jnp.where(read, pred, 0), jnp.where(read, target, 0)


def _iou_and_union(pair):
    union = pair.union
    exists = jnp.abs(union) > _NOTHING
    return jnp.where(exists, pair.overlap / jnp.where(exists, union, 1), 0), exists


def _error(pred, target):
    """1 - IoU, in [0, 1] for inverted boxes too, a constant; and where there is a union."""
    boxes = (columns(jax.lax.stop_gradient(x)) for x in (pred, target))
    iou, exists = _iou_and_union(pair_geometry(*boxes))
    return clamp(1 - iou, 0, 1), exists


def _focus(error, iou_mean, version, alpha, delta):
    beta = divide(error, jax.lax.stop_gradient(iou_mean).astype(error.dtype))
    beta = jnp.minimum(beta, jnp.finfo(beta.dtype).max)
    if version == 2:
        return jnp.sqrt(beta)
    # Not β / (delta alpha^(β - delta)), whose power overflows.
    return beta / delta * jnp.exp((delta - beta) * jnp.log(alpha))


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class WIoULoss(StatefulLoss):
    """Flax shim of `wiou_loss` and `wiou_statistics`; version 1 keeps no state."""

    version: int = 3
    base: str = "wiou"
    momentum: float = 0.01
    alpha: float = 1.7
    delta: float = 2.7

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("momentum", "alpha", "delta")
        if not isinstance(self.momentum, jax.Array) and self.momentum > 1:
            raise self.value_error(f"momentum must be in (0, 1], got {self.momentum!r}")
        if self.version not in WIOU_VERSIONS:
            raise self.value_error(f"version must be 1, 2 or 3; got {self.version!r}")
        if self.base not in WIOU_BASES:
            raise self.value_error(
                f"base must be one of {', '.join(WIOU_BASES)}; got {self.base!r}"
            )

    def init(self):
        return () if self.version == 1 else WIoUState(jnp.ones(()))

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, BOXES), Expected("target", target, BOXES)]

    def step(self, state, pred, target, weight, *, axis_name=None, **reduce):
        if self.version > 1:
            state = wiou_statistics(
                state, pred, target, weight, momentum=self.momentum, axis_name=axis_name
            )
        value = wiou_loss(
            pred,
            target,
            weight,
            state=state,
            version=self.version,
            base=self.base,
            alpha=self.alpha,
            delta=self.delta,
            **reduce,
        )
        return value, state
