"""Focal loss of heatmaps whose peaks are Gaussians."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import WholeExponent, power, power_and_derivative
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduce, Reduction, weight_reduce_loss, weighted_loss
from visdet_jax.registry import LOSSES

LOG_EPS = 1e-12  # mmdet's, inside the logarithms.


def _one_minus(pred: jax.Array) -> jax.Array:
    """1 - pred, and NaN above 1."""
    # Keep this `where`. Without it XLA:CPU folds (1 - pred) + 1e-12 into (1 + 1e-12) - pred, which
    # is 0 at pred = 1 in float32, so that the loss is inf and its gradient NaN (jax 0.10.2).
    return jnp.where(pred > 1, jnp.nan, 1 - pred)


def _positive(pred: jax.Array, alpha: Any) -> jax.Array:
    return -jnp.log(pred + LOG_EPS) * power(1 - pred, alpha)


def _d_positive(pred: jax.Array, alpha: Any) -> jax.Array:
    focus, d_focus = power_and_derivative(1 - pred, alpha)
    return d_focus * jnp.log(pred + LOG_EPS) - focus / (pred + LOG_EPS)


def _negative(pred: jax.Array, target: jax.Array, alpha: Any, gamma: Any) -> jax.Array:
    cost = -jnp.log(_one_minus(pred) + LOG_EPS)
    return cost * power(pred, alpha) * power(1 - target, gamma)


def _d_negative(pred: jax.Array, target: jax.Array, alpha: Any, gamma: Any) -> jax.Array:
    likelihood = _one_minus(pred) + LOG_EPS
    focus, d_focus = power_and_derivative(pred, alpha)
    return (focus / likelihood - d_focus * jnp.log(likelihood)) * power(1 - target, gamma)


def _at_peaks(
    negative: Callable[..., jax.Array], pred: jax.Array, target: jax.Array, alpha: Any, gamma: Any
) -> jax.Array | float:
    """What a peak adds as a negative too, by its factor (1 - target)^gamma: 0 unless gamma is 0."""
    if _is_known_above_0(gamma):
        # Keep this shortcut. It saves a second logarithm: without it the value takes 1.6 times as
        # long, and with its gradient 1.4 times (XLA:CPU, jax 0.10.2).
        return 0.0
    return jnp.where(target == 1, negative(pred, target, alpha, gamma), 0)


def _is_known_above_0(exponent: Any) -> bool:
    """Whether an exponent is known when the program is compiled, and is not 0."""
    return isinstance(exponent, WholeExponent) and exponent.value > 0


def _derivative(
    pred: jax.Array,
    target: jax.Array,
    *,
    alpha: Any,
    gamma: Any,
    pos_weight: jax.Array,
    neg_weight: jax.Array,
) -> jax.Array:
    # Keep `target != 1` here and `target == 1` in the value. If both spell the condition in the
    # same way, XLA computes what they have in common once and stores it between them, which is one
    # more array of pred's size where gamma is traced.
    rest = _one_minus(pred)
    miss = jnp.where(target != 1, pred, rest)
    likelihood = jnp.where(target != 1, rest, pred) + LOG_EPS
    focus, d_focus = power_and_derivative(miss, alpha)
    factor = jnp.where(target != 1, neg_weight * power(1 - target, gamma), -pos_weight)
    d_value = factor * (focus / likelihood - d_focus * jnp.log(likelihood))
    return d_value + neg_weight * _at_peaks(_d_negative, pred, target, alpha, gamma)


@weighted_loss(derivative=_derivative)
def gaussian_focal_loss(
    pred: jax.Array,
    target: jax.Array,
    *,
    alpha: Exponent = 2.0,
    gamma: Exponent = 4.0,
    pos_weight: NonNegative = 1.0,
    neg_weight: NonNegative = 1.0,
    **reduce: Unpack[Reduce],
) -> jax.Array:
    """Focal loss of a heatmap: peaks are positives, their surroundings mild negatives.

    -pos_weight log(p + 1e-12) (1 - p)^alpha where target is exactly 1, and everywhere
    -neg_weight log(1 - p + 1e-12) p^alpha (1 - target)^gamma.

    Args:
      pred: Probabilities in [0, 1], any shape.
      target: Heatmap of the same shape in [0, 1].
      alpha: Focusing exponent, at least 0. Larger values down-weight what is predicted well more.
      gamma: Exponent of 1 - target, at least 0. Larger values down-weight negatives near a peak
        more; 0 makes all pixels full negatives, the peaks too.
      pos_weight: Factor of the positives, at least 0.
      neg_weight: Factor of the negatives, at least 0.

    Returns: values of pred's shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where the shapes differ.
    Source: Law & Deng 2018 (CornerNet), https://arxiv.org/abs/1808.01244
    """
    check_same_shape(pred, target)
    # One logarithm and one power of alpha serve both parts of the formula. A pixel is a positive or
    # a negative, so their arguments are selected first; computing both parts for every pixel and
    # selecting the result would need two of each.
    is_peak = target == 1
    rest = _one_minus(pred)
    miss = jnp.where(is_peak, rest, pred)
    likelihood = jnp.where(is_peak, pred, rest) + LOG_EPS
    factor = jnp.where(is_peak, pos_weight, neg_weight * power(1 - target, gamma))
    values = factor * -jnp.log(likelihood) * power(miss, alpha)
    return values + neg_weight * _at_peaks(_negative, pred, target, alpha, gamma)


_positive_values = closed_form(_positive, _d_positive)
_negative_values = closed_form(_negative, _d_negative)


@jitted
def gaussian_focal_loss_with_pos_inds(
    pred: jax.Array,
    target: jax.Array,
    pos_inds: jax.Array,
    pos_labels: jax.Array,
    *,
    alpha: Exponent = 2.0,
    gamma: Exponent = 4.0,
    pos_weight: NonNegative = 1.0,
    neg_weight: NonNegative = 1.0,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """`gaussian_focal_loss` with its positives listed, and each part averaged on its own.

    The mean divides the positives by their own number (0 for none) and the negatives by the number
    of values, or both by `avg_factor`. The sum divides neither.

    Args:
      pred: Probabilities (N, C), a row a pixel.
      target: Heatmap (N, C) in [0, 1].
      pos_inds: Rows of the positives (K,); negative for an empty slot, so that K can be static. A
        row or a class beyond the heatmap makes the loss NaN.
      pos_labels: Their classes (K,); negative for an empty slot too.
      alpha, gamma, pos_weight, neg_weight: As for `gaussian_focal_loss`.

    Returns: a scalar.
    Raises: ValueError where shapes do not fit and for reduction "none": K values and N·C have no
      shape in common. TypeError for rows or classes that are floats.
    Source: CenterNet2's form, as in mmdet.
    """
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, C) with pos_inds, got {pred.shape}")
    if reduction == "none":
        raise ValueError('reduction="none" has no shape for listed positives and all negatives')
    check_array("pos_inds", pos_inds)
    pos_inds = as_labels("pos_inds", pos_inds, pos_inds.shape[:1])
    pos_labels = as_labels("pos_labels", pos_labels, pos_inds.shape)
    pred, target = pred.astype(dtype), target.astype(dtype)
    alpha, gamma, pos_weight, neg_weight = as_dtype(dtype, alpha, gamma, pos_weight, neg_weight)
    rows, channels = pred.shape
    slots = (pos_inds >= 0) & (pos_labels >= 0)
    # A row or class beyond the heatmap is read as NaN: loud, where a clamped one would be wrong.
    inside = (pos_inds < rows) & (pos_labels < channels)
    flat = jnp.where(inside, pos_inds * channels + pos_labels, pred.size)
    peaks = jnp.take_along_axis(pred.reshape(-1), jnp.where(slots, flat, 0), axis=0, mode="fill")
    positive = _positive_values(slots.astype(dtype), peaks, alpha).sum()
    if reduction == "mean" and avg_factor is None:
        positive = positive / jnp.maximum(slots.sum().astype(dtype), 1)
    elif reduction == "mean":
        positive = weight_reduce_loss(positive, None, "mean", avg_factor)
    values = _negative_values(None, pred, target, alpha, gamma)
    negative = weight_reduce_loss(values, None, reduction, avg_factor)
    return pos_weight * positive + neg_weight * negative


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class GaussianFocalLoss(Loss, function=(gaussian_focal_loss, gaussian_focal_loss_with_pos_inds)):
    """Focal loss of heatmaps: `gaussian_focal_loss` with its hyperparameters as fields.

    A call with `pos_inds=` and `pos_labels=` is `gaussian_focal_loss_with_pos_inds`.
    """

    alpha: float = 2.0
    gamma: float = 4.0
    pos_weight: float = 1.0
    neg_weight: float = 1.0

    def rules(self, pred: jax.Array, target: jax.Array, **extra: Any) -> list[Expected]:
        return [Expected("pred", pred, UNIT), Expected("target", target, UNIT)]

    def compute(
        self,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        pos_inds: jax.Array | None = None,
        pos_labels: jax.Array | None = None,
        **reduce: Any,
    ) -> jax.Array:
        if pos_inds is None and pos_labels is None:
            return gaussian_focal_loss(pred, target, weight, **self.settings, **reduce)
        if pos_inds is None or pos_labels is None:
            raise self.value_error("pos_inds and pos_labels must be given together")
        if weight is not None:
            raise self.value_error("weight has no meaning with pos_inds; leave it out")
        return gaussian_focal_loss_with_pos_inds(
            pred, target, pos_inds, pos_labels, **self.settings, **reduce
        )
