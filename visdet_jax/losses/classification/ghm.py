"""The gradient harmonizing mechanism (GHM), for classification and for regression."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.export import exportable
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, Expected, labels_or_scores
from visdet_jax.core.sigmoid import bce_with_logits
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES

# The last edge of the bins of gradient lengths, a little or far above the longest, 1.
_CLASS_TOP = 1 + 1e-6
_BOX_TOP = 1e3


@exportable
class GHMState(NamedTuple):
    """What GHM remembers.

    acc_sum: (bins,) running mean of the number of elements in each bin of gradient lengths. The
      counts themselves are taken as integers: a batch may hold more than float32's 2^24 elements.
    """

    acc_sum: jax.Array


@jitted
def ghmc_statistics(state, pred, target, weight=None, *, momentum=0.0, axis_name=None):
    """The next state of `ghmc_loss`, whose arguments these are.

    acc_sum_b ← momentum acc_sum_b + (1 - momentum) n_b for each bin b with n_b > 0 elements.

    Args:
      momentum: in [0, 1); 0 counts each batch alone.
      axis_name: the mesh axis whose devices hold parts of the batch.
    """
    pred, target, valid = _logits(pred, target, weight)
    return _accumulated(state, _length(pred, target), _CLASS_TOP, valid, momentum, axis_name)


@jitted
def ghmc_loss(pred, target, weight=None, *, state, reduction="mean", axis_name=None):
    """Binary cross entropy in which every bin of gradient lengths has the same say.

    n / (B acc_sum_b) BCE(sigmoid(pred), target), b the bin of |sigmoid(pred) - target| among
    equal ones in [0, 1], n the number of valid elements and B that of the bins they are in; then
    the mean is over n. Densities are constants to the gradient.

    Args:
      pred: logits (..., C).
      target: values in [0, 1] (..., C), or class indices (...); one outside [0, C) is background.
      weight: (...) or (..., C); an element counts where it is > 0, and not at all elsewhere. How
        much above does not matter.
      state: `GHMState` of `ghmc_statistics`, this batch included.
      reduction: "mean" or "none".
      axis_name: the mesh axis whose devices hold parts of the batch.
    Returns: (..., C) before the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Li et al. 2019, https://arxiv.org/abs/1811.05181
    """
    pred, target, valid = _logits(pred, target, weight)
    total = reduce_sum(valid.sum(), axis_name)
    length = _length(pred, target)
    values = bce_with_logits(pred, target)
    return _harmonized(values, state, length, _CLASS_TOP, valid, total, reduction, axis_name)


@jitted
def ghmr_statistics(state, pred, target, weight=None, *, mu=0.02, momentum=0.0, axis_name=None):
    """The next state of `ghmr_loss`, as `ghmc_statistics` is that of `ghmc_loss`."""
    diff, root, _, valid = _distances(pred, target, weight, mu)
    return _accumulated(state, jnp.abs(diff) / root, _BOX_TOP, valid, momentum, axis_name)


@jitted
def ghmr_loss(pred, target, weight=None, *, state, mu=0.02, reduction="mean", axis_name=None):
    """Smooth absolute error in which every bin of gradient lengths has the same say.

    n / (B acc_sum_b) (√(d² + mu²) - mu), d = pred - target, b the bin of |d| / √(d² + mu²) among
    equal ones in [0, 1], n the sum of the weights and B the number of bins with a valid element;
    then the mean is over n. Densities are constants to the gradient.

    Args:
      pred, target: arrays of one shape.
      weight: of that shape or of its leading part; an element counts where it is > 0.
      state: `GHMState` of `ghmr_statistics`, this batch included.
      mu: width of the round tip, in pred's unit; > 0.
      reduction: "mean" or "none".
      axis_name: the mesh axis whose devices hold parts of the batch.
    Returns: values of that shape, before the reduction.
    Raises: ValueError where shapes do not fit.
    Li et al. 2019, https://arxiv.org/abs/1811.05181
    """
    diff, root, weight, valid = _distances(pred, target, weight, mu)
    total = reduce_sum(jax.lax.stop_gradient(weight).sum(), axis_name)
    # Not root - mu, of which float32 has no digits left below d = mu / 4000.
    values = diff * (diff / (root + as_dtype(root.dtype, mu)))
    length = jnp.abs(diff) / root
    return _harmonized(values, state, length, _BOX_TOP, valid, total, reduction, axis_name)


def _logits(pred, target, weight):
    """Logits, dense targets and the mask of the elements that count, all of pred's shape."""
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
    else:
        target = as_labels("target", target, pred.shape[:-1])
        target = jax.nn.one_hot(target, pred.shape[-1], dtype=dtype)
    valid = _spread(weight, pred) > 0
    return jnp.where(valid, pred, 0), jnp.where(valid, target, 0), valid


def _distances(pred, target, weight, mu):
    """d, √(d² + mu²), the weights and the mask of the elements that count, of pred's shape."""
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    weight = _spread(weight, pred).astype(dtype)
    valid = weight > 0
    diff = jnp.where(valid, pred.astype(dtype) - target.astype(dtype), 0)
    mu = as_dtype(dtype, mu)
    # A unit in which neither square overflows. The root does not depend on it, nor its gradient.
    unit = jax.lax.stop_gradient(jnp.maximum(jnp.abs(diff), mu))
    root = unit * jnp.sqrt((diff / unit) ** 2 + (mu / unit) ** 2)
    return diff, root, weight, valid


def _spread(weight, pred):
    if weight is None:
        return jnp.ones_like(pred)
    return jnp.broadcast_to(spread_weight(weight, pred.shape), pred.shape)


def _length(pred, target):
    return jnp.abs(jax.nn.sigmoid(pred) - target)


def _counts(length, top, valid, bins, axis_name):
    """The bin of each gradient length, `bins` above `top`, and the number of elements in each."""
    edges = np.arange(bins + 1, dtype=length.dtype) / bins
    edges[-1] = top
    length = jax.lax.stop_gradient(length)
    index = sum((length >= edge).astype(jnp.int32) for edge in edges[1:])
    members = [(valid & (index == i)).astype(jnp.int32) for i in range(bins)]
    # One pass for all bins: with a sum a bin XLA stores every mask, ten times pred for ten bins.
    zeros = [jnp.zeros((), jnp.int32)] * bins
    counts = jax.lax.reduce(members, zeros, _add, range(length.ndim))
    return index, reduce_sum(jnp.stack(counts), axis_name)


def _add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def _accumulated(state, length, top, valid, momentum, axis_name):
    (acc_sum,) = state
    _, counts = _counts(length, top, valid, len(acc_sum), axis_name)
    momentum = as_dtype(acc_sum.dtype, momentum)
    mixed = momentum * acc_sum + (1 - momentum) * counts.astype(acc_sum.dtype)
    return GHMState(jnp.where(counts > 0, mixed, acc_sum))


def _harmonized(values, state, length, top, valid, total, reduction, axis_name):
    (acc_sum,) = jax.lax.stop_gradient(state)
    index, counts = _counts(length, top, valid, len(acc_sum), axis_name)
    total = jnp.maximum(total.astype(values.dtype), 1)
    filled = jnp.maximum((counts > 0).sum(), 1).astype(values.dtype)
    say = divide(total, acc_sum.astype(values.dtype)) / filled
    # Selects, one a bin, and not say[index], which fails on explicitly sharded elements.
    weight = jnp.zeros_like(values)
    for i in range(len(acc_sum)):
        weight = jnp.where(valid & (index == i), say[i], weight)
    # A device's part of the mean is over its share of n, so that the parts' mean is the whole's.
    share = total / reduce_sum(jnp.ones_like(total), axis_name)
    return weight_reduce_loss(values, weight, reduction, share)


@dataclass(frozen=True, kw_only=True)
class _GHM(StatefulLoss):
    """The fields and the state that both have.

    Without momentum nothing is remembered: `init()` is (), and `loss(pred, target, ...)` works as
    for any other loss.
    """

    bins: int = 10
    momentum: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("bins")
        if not isinstance(self.momentum, jax.Array) and not 0 <= self.momentum < 1:
            raise self.value_error(f"momentum must be in [0, 1), got {self.momentum!r}")

    def init(self):
        stateless = not isinstance(self.momentum, jax.Array) and self.momentum == 0
        return () if stateless else GHMState(jnp.zeros(self.bins))

    def _check_reduction(self, name, reduction):
        super()._check_reduction(name, reduction)
        if reduction == "sum":
            # In the reference every call with sum raises.
            raise self.value_error(
                f"{name} must be mean or none: GHM divides by its own counts, it has no sum"
            )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GHMC(_GHM):
    """Flax shim of `ghmc_loss` and `ghmc_statistics`; stateful where `momentum` > 0.

    The weight may be called `label_weight`, as in the reference. `avg_factor` has no effect, as
    there: the mean is over the valid elements.
    """

    use_sigmoid: bool = True

    def __post_init__(self):
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid)

    def rules(self, pred, target, **extra):
        labels = labels_or_scores(pred, target)._replace(ignored=None)  # -1 is background here
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def step(
        self,
        state,
        pred,
        target,
        weight,
        *,
        label_weight=None,
        avg_factor=None,
        axis_name=None,
        **reduce,
    ):
        batch = pred, target, self.one_of(weight=weight, label_weight=label_weight)
        before = state or GHMState(jnp.zeros(self.bins))
        counted = ghmc_statistics(before, *batch, momentum=self.momentum, axis_name=axis_name)
        value = ghmc_loss(*batch, state=counted, axis_name=axis_name, **reduce)
        return value, counted if state else state


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GHMR(_GHM):
    """Flax shim of `ghmr_loss` and `ghmr_statistics`; see `GHMC`."""

    mu: float = 0.02

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("mu")

    def step(
        self,
        state,
        pred,
        target,
        weight,
        *,
        label_weight=None,
        avg_factor=None,
        axis_name=None,
        **reduce,
    ):
        batch = pred, target, self.one_of(weight=weight, label_weight=label_weight)
        before = state or GHMState(jnp.zeros(self.bins))
        counted = ghmr_statistics(
            before, *batch, mu=self.mu, momentum=self.momentum, axis_name=axis_name
        )
        value = ghmr_loss(*batch, state=counted, mu=self.mu, axis_name=axis_name, **reduce)
        return value, counted if state else state
