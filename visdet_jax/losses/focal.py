"""Focal loss."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import LOGITS, UNIT, Expected, labels_or_scores
from visdet_jax.closed_form import closed_form
from visdet_jax.function import as_dtype, compute_dtype, jitted
from visdet_jax.losses.class_targets import dense, of_each_class
from visdet_jax.losses.classifier import OwnClassifier
from visdet_jax.module import Loss
from visdet_jax.numerics import (
    WholeExponent,
    bce_with_probs,
    bce_with_probs_slope,
    logistic,
    logistic_of_slope,
    power,
    power_and_slope,
)
from visdet_jax.reduction import weight_reduce_loss
from visdet_jax.registry import LOSSES


@functools.partial(jitted, exponents=("gamma",))
def sigmoid_focal_loss(
    pred,
    target,
    weight=None,
    *,
    gamma=2.0,
    alpha=0.25,
    activated=False,
    poly_epsilon=None,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of each class on its own, less of it for what is classified well.

    -alpha (1 - p)^gamma log p for the class of a row, -(1 - alpha) p^gamma log(1 - p) for the
    others, p = sigmoid(pred). For a dense target t in [0, 1] both are mixed:
    (alpha t + (1 - alpha)(1 - t)) ((1 - p) t + p (1 - t))^gamma BCE(p, t).
    With `poly_epsilon` plus poly_epsilon ((1 - p) t + p (1 - t))^(gamma + 1), which alpha does not
    weigh: the first term of PolyLoss.

    Gradients are finite for every gamma ≥ 0 (the reference's are NaN for gamma in (0, 1) at
    logits of 17 and more).

    Args:
      pred: logits (..., C); probabilities where `activated`.
      target: class indices (...), C for background, negative to ignore the row; or floats or
        0 and 1 (..., C). An index above C makes the row's loss NaN: nothing it could mean.
      weight: (...), (..., C), or flat (N·C,) for pred (N, C).
      gamma: how much less; 0 is cross entropy weighed by alpha.
      alpha: share of the positives, in [0, 1]; None weighs both sides by 1 (fvcore's -1).
      poly_epsilon: None adds nothing.
    Returns: (..., C) before the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Lin et al. 2017, https://arxiv.org/abs/1708.02002
    Leng et al. 2022 (PolyLoss), https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    gamma = as_dtype(dtype, gamma)
    alpha, poly_epsilon = (None if x is None else as_dtype(dtype, x) for x in (alpha, poly_epsilon))
    target, weight = of_each_class(pred, target, weight)
    focal = _focal_of_probabilities if activated else _focal_of_logits
    values = focal(weight, pred, target, gamma, alpha, poly_epsilon)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _weighed(t, alpha, x):
    return x if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * x


def _raised(gamma):
    return WholeExponent(gamma.value + 1) if isinstance(gamma, WholeExponent) else gamma + 1


def _value(pred, target, gamma, alpha, poly_epsilon):
    t = dense(pred, target)
    p, not_p, tail = logistic(pred)
    miss = not_p * t + p * (1 - t)
    # max(x, 0) - t x is an exact 0 for a hard target on its own side: small losses keep their
    # digits.
    bce = (jnp.maximum(pred, 0) - t * pred) + tail
    value = _weighed(t, alpha, power(miss, gamma)) * bce
    return value if poly_epsilon is None else value + poly_epsilon * power(miss, _raised(gamma))


def _slope(pred, target, gamma, alpha, poly_epsilon):
    t = dense(pred, target)
    p, not_p, tail = logistic_of_slope(pred)
    miss = not_p * t + p * (1 - t)
    bce = (jnp.maximum(pred, 0) - t * pred) + tail
    of_bce = p * (1 - t) - not_p * t
    of_miss = (1 - 2 * t) * p * not_p
    focal, by_miss = power_and_slope(miss, gamma)
    slope = _weighed(t, alpha, focal * of_bce + by_miss * of_miss * bce)
    if poly_epsilon is None:
        return slope
    return slope + poly_epsilon * power_and_slope(miss, _raised(gamma))[1] * of_miss


def _value_of_probabilities(pred, target, gamma, alpha, poly_epsilon):
    t = dense(pred, target)
    miss = (1 - pred) * t + pred * (1 - t)
    value = _weighed(t, alpha, power(miss, gamma)) * bce_with_probs(pred, t)
    return value if poly_epsilon is None else value + poly_epsilon * power(miss, _raised(gamma))


def _slope_of_probabilities(pred, target, gamma, alpha, poly_epsilon):
    t = dense(pred, target)
    miss = (1 - pred) * t + pred * (1 - t)
    focal, by_miss = power_and_slope(miss, gamma)
    of_miss = 1 - 2 * t
    slope = focal * bce_with_probs_slope(pred, t) + by_miss * of_miss * bce_with_probs(pred, t)
    slope = _weighed(t, alpha, slope)
    if poly_epsilon is None:
        return slope
    return slope + poly_epsilon * power_and_slope(miss, _raised(gamma))[1] * of_miss


_focal_of_logits = closed_form(_value, _slope)
_focal_of_probabilities = closed_form(_value_of_probabilities, _slope_of_probabilities)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalLoss(Loss):
    """Flax shim of `sigmoid_focal_loss`."""

    use_sigmoid: bool = True
    gamma: float = 2.0
    alpha: float | None = 0.25
    activated: bool = False
    poly_epsilon: float | None = None

    def __post_init__(self):
        super().__post_init__()
        self.refuse_softmax(self.use_sigmoid)

    def rules(self, pred, target, **extra):
        of_pred = UNIT if self.activated else LOGITS
        labels = labels_or_scores(pred, target)
        return [Expected("pred", pred, of_pred), Expected("target", target, labels)]

    def compute(self, pred, target, weight, **reduce):
        return sigmoid_focal_loss(
            pred,
            target,
            weight,
            gamma=self.gamma,
            alpha=self.alpha,
            activated=self.activated,
            poly_epsilon=self.poly_epsilon,
            **reduce,
        )


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalCustomLoss(OwnClassifier, FocalLoss):
    """`FocalLoss` of logits that also says how its classifier's outputs are read (V3Det).

    Args:
      num_classes: of the foreground, as many as there are channels.
      activated: must be False; the reference takes True and reads logits all the same.
    """

    num_classes: int

    def __post_init__(self):
        super().__post_init__()
        self.refuse_unless_positive("num_classes")
        if self.activated:
            self.refuse("activated must be False: pred holds logits; FocalLoss takes probabilities")

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores (N, num_classes) of outputs (N, channels): their sigmoids."""
        return jax.nn.sigmoid(cls_score[:, : self.num_classes])
