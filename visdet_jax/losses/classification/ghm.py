"""The gradient harmonizing mechanism (GHM), for classification and for regression."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Count, FractionBelowOne, Number, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.rules import LOGITS, Expected, labels_or_scores
from visdet_jax.core.sigmoid import bce_with_logits
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES

Axes = str | tuple[str, ...] | None

# The last edge of the bins of gradient lengths, above the longest, 1: as far as mmdet's.
_LAST_EDGE_OF_CLASSES = 1 + 1e-6
_LAST_EDGE_OF_BOXES = 1e3


@exportable
class GHMState(NamedTuple):
    """What GHM remembers.

    acc_sum: (bins,) running mean of the number of elements in each bin of gradient lengths. The
      counts themselves are taken as integers: a batch may hold more than float32's 2^24 elements.
    """

    acc_sum: jax.Array


@jitted
def ghmc_statistics(
    state: GHMState,
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    momentum: FractionBelowOne = 0.0,
    axis_name: Axes = None,
) -> GHMState:
    """The next state of `ghmc_loss`.

    acc_sum_b ← momentum acc_sum_b + (1 - momentum) n_b for each bin b with n_b > 0 elements.

    Args:
      state: The state before this batch.
      pred, target, weight: As in `ghmc_loss`.
      momentum: Part of the old counts in the new ones, in [0, 1). With larger values the counts
        change more slowly; 0 counts each batch alone.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: the next state.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    """
    pred, target, valid = _logits_and_scores(pred, target, weight)
    length = _gradient_length(pred, target)
    return _next_state(state, length, _LAST_EDGE_OF_CLASSES, valid, momentum, axis_name)


@jitted
def ghmc_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    state: GHMState,
    reduction: Literal["mean", "none"] = "mean",
    axis_name: Axes = None,
) -> jax.Array:
    """Binary cross entropy in which every bin of gradient lengths has the same total weight.

    n / (B acc_sum_b) BCE(sigmoid(pred), target), with b the bin of |sigmoid(pred) - target| among
    equal bins in [0, 1], n the number of valid elements and B the number of bins that they are in.
    Then the mean is over n. The weights are constants to the gradient.

    Args:
      pred: Logits (..., C).
      target: Values in [0, 1] (..., C), or class indices (...). An index outside [0, C) is
        background.
      weight: (...) or (..., C). An element counts where it is above 0, and not at all elsewhere.
        How much above does not matter.
      state: `GHMState` of `ghmc_statistics`, this batch included.
      reduction: "mean" or "none".
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: (..., C), or their mean over the valid elements.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Li et al. 2019, https://arxiv.org/abs/1811.05181
    """
    pred, target, valid = _logits_and_scores(pred, target, weight)
    total = reduce_sum(valid.sum(), axis_name)
    length = _gradient_length(pred, target)
    values = bce_with_logits(pred, target)
    last_edge = _LAST_EDGE_OF_CLASSES
    return _density_weighted(values, state, length, last_edge, valid, total, reduction, axis_name)


@jitted
def ghmr_statistics(
    state: GHMState,
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    mu: Positive = 0.02,
    momentum: FractionBelowOne = 0.0,
    axis_name: Axes = None,
) -> GHMState:
    """The next state of `ghmr_loss`, as `ghmc_statistics` is that of `ghmc_loss`.

    Args:
      state: The state before this batch.
      pred, target, weight, mu: As in `ghmr_loss`.
      momentum: Part of the old counts in the new ones, in [0, 1). With larger values the counts
        change more slowly; 0 counts each batch alone.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: the next state.
    Raises: ValueError where shapes do not fit.
    """
    diff, root, _, valid = _distances(pred, target, weight, mu)
    length = jnp.abs(diff) / root
    return _next_state(state, length, _LAST_EDGE_OF_BOXES, valid, momentum, axis_name)


@jitted
def ghmr_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    state: GHMState,
    mu: Positive = 0.02,
    reduction: Literal["mean", "none"] = "mean",
    axis_name: Axes = None,
) -> jax.Array:
    """Smooth absolute error in which every bin of gradient lengths has the same total weight.

    n / (B acc_sum_b) (√(d² + mu²) - mu), with d = pred - target, b the bin of |d| / √(d² + mu²)
    among equal bins in [0, 1], n the sum of the weights and B the number of bins with a valid
    element. Then the mean is over n. The weights are constants to the gradient.

    Args:
      pred, target: Arrays of one shape.
      weight: Of that shape or of its leading part. An element counts where it is above 0.
      state: `GHMState` of `ghmr_statistics`, this batch included.
      mu: Width of the round tip, in pred's unit, above 0. Smaller values come closer to the
        absolute error.
      reduction: "mean" or "none".
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: values of that shape, or their mean over n.
    Raises: ValueError where shapes do not fit.
    Source: Li et al. 2019, https://arxiv.org/abs/1811.05181
    """
    diff, root, weight, valid = _distances(pred, target, weight, mu)
    total = reduce_sum(jax.lax.stop_gradient(weight).sum(), axis_name)
    # Not root - mu, of which float32 has no digits left below d = mu / 4000.
    values = diff * (diff / (root + as_dtype(root.dtype, mu)))
    length, last_edge = jnp.abs(diff) / root, _LAST_EDGE_OF_BOXES
    return _density_weighted(values, state, length, last_edge, valid, total, reduction, axis_name)


def _logits_and_scores(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Logits, dense targets and the mask of the elements that count, all of pred's shape."""
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])
        target = is_at(target[..., None], pred, -1).astype(dtype)
    valid = _weight_of_elements(weight, pred) > 0
    return jnp.where(valid, pred, 0), jnp.where(valid, target, 0), valid


def _distances(
    pred: jax.Array, target: jax.Array, weight: jax.Array | None, mu: Number
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """d, √(d² + mu²), the weights and the mask of the elements that count, of pred's shape."""
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    weight = _weight_of_elements(weight, pred).astype(dtype)
    valid = weight > 0
    diff = jnp.where(valid, pred.astype(dtype) - target.astype(dtype), 0)
    mu = as_dtype(dtype, mu)
    # In this unit neither square overflows. The root does not depend on it, nor its gradient.
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(diff), mu))
    root = unit * jnp.sqrt((diff / unit) ** 2 + (mu / unit) ** 2)
    return diff, root, weight, valid


def _weight_of_elements(weight: jax.Array | None, pred: jax.Array) -> jax.Array:
    """The weights in pred's shape; ones where none are given."""
    if weight is None:
        return jnp.ones_like(pred)
    return jnp.broadcast_to(spread_weight(weight, pred.shape), pred.shape)


def _gradient_length(pred: jax.Array, target: jax.Array) -> jax.Array:
    """The absolute derivative of the binary cross entropy by each logit."""
    return jnp.abs(jax.nn.sigmoid(pred) - target)


def _bins_and_counts(
    length: jax.Array, last_edge: float, valid: jax.Array, bins: int, axis_name: Axes
) -> tuple[jax.Array, jax.Array]:
    """The bin of each gradient length, `bins` above the last edge, and the elements in each."""
    edges = np.arange(bins + 1, dtype=length.dtype) / bins
    edges[-1] = last_edge
    length = jax.lax.stop_gradient(length)
    # A small type: the index is stored between the counts and the loss.
    dtype = jnp.uint8 if bins < 256 else jnp.int32
    index = sum((length >= edge).astype(dtype) for edge in edges[1:])
    members = [(valid & (index == i)).astype(jnp.int32) for i in range(bins)]
    # One reduction for all bins. With a sum for each bin XLA stores every mask, ten arrays of
    # pred's size for ten bins.
    zeros = [jnp.zeros((), jnp.int32)] * bins
    counts = jax.lax.reduce(members, zeros, _add_each, range(length.ndim))
    return index, reduce_sum(jnp.stack(counts), axis_name)


def _add_each(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def _next_state(
    state: GHMState,
    length: jax.Array,
    last_edge: float,
    valid: jax.Array,
    momentum: Number,
    axis_name: Axes,
) -> GHMState:
    """The running counts of the bins, mixed with those of this batch."""
    (acc_sum,) = state
    _, counts = _bins_and_counts(length, last_edge, valid, len(acc_sum), axis_name)
    momentum = as_dtype(acc_sum.dtype, momentum)
    mixed = momentum * acc_sum + (1 - momentum) * counts.astype(acc_sum.dtype)
    return GHMState(jnp.where(counts > 0, mixed, acc_sum))


def _density_weighted(
    values: jax.Array,
    state: GHMState,
    length: jax.Array,
    last_edge: float,
    valid: jax.Array,
    total: jax.Array,
    reduction: str,
    axis_name: Axes,
) -> jax.Array:
    """The values times n / (B acc_sum_b) of their bins, reduced; `total` is n."""
    (acc_sum,) = jax.lax.stop_gradient(state)
    index, counts = _bins_and_counts(length, last_edge, valid, len(acc_sum), axis_name)
    total = jnp.maximum(total.astype(values.dtype), 1)
    filled = jnp.maximum((counts > 0).sum(), 1).astype(values.dtype)
    weight_of_bin = divide(total, acc_sum.astype(values.dtype)) / filled
    # Keep a select for each bin. weight_of_bin[index] fails on explicitly sharded elements.
    weight = jnp.zeros_like(values)
    for i in range(len(acc_sum)):
        weight = jnp.where(valid & (index == i), weight_of_bin[i], weight)
    # Over several devices each divides by its part of n, so that the mean of their losses is the
    # loss of the whole batch.
    total_of_device = total / reduce_sum(jnp.ones_like(total), axis_name)
    return weight_reduce_loss(values, weight, reduction, total_of_device)


@dataclass(frozen=True, kw_only=True)
class _GHM(StatefulLoss):
    """What both have: `functions` are the loss and its statistics, which are taken first.

    Without momentum nothing is remembered: `init()` is (), and `loss(pred, target, ...)` works as
    for any other loss.

    Args:
      bins: Number of bins of gradient lengths, at least 1. With 1 it is a plain mean.
    """

    bins: Count = 10
    momentum: float = 0.0

    def init(self) -> Any:
        is_stateless = not isinstance(self.momentum, jax.Array) and self.momentum == 0
        return () if is_stateless else GHMState(jnp.zeros(self.bins))

    def step(
        self,
        state: Any,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        label_weight: jax.Array | None = None,
        avg_factor: Number | None = None,
        axis_name: Axes = None,
        **reduce: Any,
    ) -> Any:
        loss, statistics = self.functions
        batch = pred, target, self.one_of(weight=weight, label_weight=label_weight)
        options = self.settings | {"axis_name": axis_name}
        before = state or GHMState(jnp.zeros(self.bins))
        counted = statistics(before, *batch, momentum=self.momentum, **options)
        value = loss(*batch, state=counted, **options, **reduce)
        return value, counted if state else state

    def _check_reduction(self, name: str, reduction: str) -> None:
        super()._check_reduction(name, reduction)
        if reduction == "sum":
            # In mmdet every call with sum raises.
            raise self.value_error(
                f"{name} must be mean or none: GHM divides by its own counts, it has no sum"
            )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GHMC(_GHM, function=(ghmc_loss, ghmc_statistics)):
    """GHM for classification: `ghmc_loss`, after `ghmc_statistics`; stateful where momentum > 0.

    The weight may be called `label_weight`, as in mmdet. `avg_factor` has no effect, as there:
    the mean is over the valid elements.

    Args:
      use_sigmoid: Must be True.
    """

    use_sigmoid: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid)

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        labels = labels_or_scores(pred, target, minus_1="for background")
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GHMR(_GHM, function=(ghmr_loss, ghmr_statistics)):
    """GHM for regression: `ghmr_loss`, after `ghmr_statistics`; see `GHMC`."""

    mu: float = 0.02
