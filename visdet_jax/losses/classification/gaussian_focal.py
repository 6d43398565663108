"""Focal loss of heatmaps whose peaks are Gaussians."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import WholeExponent, power, power_and_derivative
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import weight_reduce_loss, weighted_loss
from visdet_jax.registry import LOSSES

LOG_EPS = 1e-12  # the reference's, inside the logs


def _rest(pred):
    # The select keeps XLA from folding (1 - pred) + 1e-12 into (1 + 1e-12) - pred, which is
    # log 0 = -inf at pred = 1 in float32; it also says NaN for what is no probability.
    return jnp.where(pred > 1, jnp.nan, 1 - pred)


def _positive(pred, alpha):
    return -jnp.log(pred + LOG_EPS) * power(1 - pred, alpha)


def _positive_derivative(pred, alpha):
    focal, by_rest = power_and_derivative(1 - pred, alpha)
    inside = pred + LOG_EPS
    return by_rest * jnp.log(inside) - focal / inside


def _negative(pred, target, alpha, gamma):
    return -jnp.log(_rest(pred) + LOG_EPS) * power(pred, alpha) * power(1 - target, gamma)


def _negative_derivative(pred, target, alpha, gamma):
    inside = _rest(pred) + LOG_EPS
    focal, by_pred = power_and_derivative(pred, alpha)
    return (focal / inside - by_pred * jnp.log(inside)) * power(1 - target, gamma)


def _at_peaks(pred, target, alpha, gamma, part):
    """The negatives' `part` where target is 1: 0 but for a gamma of 0."""
    if isinstance(gamma, WholeExponent) and gamma.value:
        return 0
    return jnp.where(target == 1, part(pred, target, alpha, gamma), 0)


def _derivative(pred, target, *, alpha, gamma, pos_weight, neg_weight):
    # One logarithm, of what either part has it of, and its select is spelt otherwise than the
    # loss's: XLA would keep it for both.
    rest = _rest(pred)
    miss = jnp.where(target != 1, pred, rest)
    inside = jnp.where(target != 1, rest, pred) + LOG_EPS
    focal, by_miss = power_and_derivative(miss, alpha)
    slope = focal / inside - by_miss * jnp.log(inside)
    factor = jnp.where(target != 1, neg_weight * power(1 - target, gamma), -pos_weight)
    return factor * slope + neg_weight * _at_peaks(pred, target, alpha, gamma, _negative_derivative)


_positive_values = closed_form(_positive, _positive_derivative)
_negative_values = closed_form(_negative, _negative_derivative)


@weighted_loss(derivative=_derivative)
def gaussian_focal_loss(
    pred, target, *, alpha: Exponent = 2.0, gamma: Exponent = 4.0, pos_weight=1.0, neg_weight=1.0
):
    """Focal loss of a heatmap: peaks are positives, their surroundings mild negatives.

    -pos_weight log(p + 1e-12) (1 - p)^alpha where target is exactly 1, and everywhere
    -neg_weight log(1 - p + 1e-12) p^alpha (1 - target)^gamma.

    Args:
      pred: probabilities in [0, 1], any shape.
      target: heatmap of the same shape in [0, 1].
      alpha: how much less for what is predicted well.
      gamma: how much less for negatives near a peak.
      pos_weight, neg_weight: factors of the two parts.
    Returns: values of pred's shape, before the weight and the reduction.
    Raises: ValueError where the shapes differ.
    Law & Deng 2018 (CornerNet), https://arxiv.org/abs/1808.01244
    """
    check_same_shape(pred, target)
    rest = _rest(pred)
    miss = jnp.where(target == 1, rest, pred)
    inside = jnp.where(target == 1, pred, rest) + LOG_EPS
    factor = jnp.where(target == 1, pos_weight, neg_weight * power(1 - target, gamma))
    values = factor * -jnp.log(inside) * power(miss, alpha)
    return values + neg_weight * _at_peaks(pred, target, alpha, gamma, _negative)


@jitted
def gaussian_focal_loss_with_pos_inds(
    pred,
    target,
    pos_inds,
    pos_labels,
    *,
    alpha: Exponent = 2.0,
    gamma: Exponent = 4.0,
    pos_weight=1.0,
    neg_weight=1.0,
    reduction="mean",
    avg_factor=None,
):
    """`gaussian_focal_loss` with its positives listed, and each part averaged on its own.

    Args:
      pred: probabilities (N, C), a row a pixel.
      target: heatmap (N, C).
      pos_inds: rows of the positives (K,); negative for an empty slot, so that K can be static.
      pos_labels: their classes (K,).
      alpha, gamma, pos_weight, neg_weight: as for `gaussian_focal_loss`.
      reduction: "mean" divides the positives by their own number (0 for none), "sum".
    Returns: a scalar.
    Raises: ValueError where shapes do not fit and for reduction "none": K values and N·C have no
      shape in common.
    CenterNet2's form, as in mmdet.
    """
    dtype = compute_dtype(pred=pred, target=target)
    check_same_shape(pred, target)
    if pred.ndim != 2:
        raise ValueError(f"pred must have shape (N, C) with pos_inds, got {pred.shape}")
    if reduction == "none":
        raise ValueError('reduction="none" has no shape for listed positives and all negatives')
    pos_inds = as_labels("pos_inds", pos_inds, pos_inds.shape[:1])
    pos_labels = as_labels("pos_labels", pos_labels, pos_inds.shape)
    pred, target = pred.astype(dtype), target.astype(dtype)
    alpha, gamma, pos_weight, neg_weight = as_dtype(dtype, alpha, gamma, pos_weight, neg_weight)
    slots = (pos_inds >= 0) & (pos_labels >= 0)
    # A row or class beyond the heatmap is read as NaN: loud, where a clamped one would be wrong.
    flat = jnp.where(pos_labels < pred.shape[1], pos_inds * pred.shape[1] + pos_labels, pred.size)
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
class GaussianFocalLoss(Loss):
    """Flax shim of `gaussian_focal_loss`, or of its form with `pos_inds` where they are given."""

    alpha: float = 2.0
    gamma: float = 4.0
    pos_weight: float = 1.0
    neg_weight: float = 1.0

    def rules(self, pred, target, **extra):
        return [Expected("pred", pred, UNIT), Expected("target", target, UNIT)]

    def compute(self, pred, target, weight, *, pos_inds=None, pos_labels=None, **reduce):
        settings = {
            "alpha": self.alpha,
            "gamma": self.gamma,
            "pos_weight": self.pos_weight,
            "neg_weight": self.neg_weight,
        }
        if pos_inds is None and pos_labels is None:
            return gaussian_focal_loss(pred, target, weight, **settings, **reduce)
        if pos_inds is None or pos_labels is None:
            raise self.value_error("pos_inds and pos_labels must be given together")
        if weight is not None:
            raise self.value_error("weight has no meaning with pos_inds; leave it out")
        return gaussian_focal_loss_with_pos_inds(
            pred, target, pos_inds, pos_labels, **settings, **reduce
        )
