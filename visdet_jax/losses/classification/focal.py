"""Focal loss."""

from dataclasses import dataclass
from typing import Any

import jax

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, as_dtype_or_none, compute_dtype
from visdet_jax.core.hyperparameters import Count, Exponent, Finite, Fraction, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power, power_and_derivative
from visdet_jax.core.rules import LOGITS, UNIT, Expected, labels_or_scores
from visdet_jax.core.sigmoid import (
    bce_with_probs,
    d_bce_with_probs,
    sigmoid_parts,
    sigmoid_parts_in_derivative,
)
from visdet_jax.losses._class_targets import classwise_target_and_weight, dense_target
from visdet_jax.losses.classification._classifier import OwnClassifier
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def sigmoid_focal_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    gamma: Exponent = 2.0,
    alpha: Fraction | None = 0.25,
    activated: bool = False,
    poly_epsilon: Finite | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Binary cross entropy of each class, weighted down where it is classified well already.

    With p = sigmoid(pred): -alpha (1 - p)^gamma log p for the class of a row, and
    -(1 - alpha) p^gamma log(1 - p) for the others. For a dense target t in [0, 1] both are mixed:
    (alpha t + (1 - alpha)(1 - t)) m^gamma BCE(p, t), m = (1 - p) t + p (1 - t).

    Gradients are finite for every gamma ≥ 0 (mmdet's are NaN for gamma in (0, 1) at logits of 17
    and more).

    Args:
      pred: Logits (..., C), or probabilities where `activated`.
      target: Class indices (...), or values in [0, 1] of pred's shape. Index C is background, a
        negative index leaves its row out, and an index above C makes the row's loss NaN.
      weight: (...), (..., C), or flat (N·C,) for pred (N, C).
      gamma: Focusing exponent, at least 0. Larger values down-weight easy examples more; 0 is
        binary cross entropy weighted by alpha.
      alpha: Weight of positives, in [0, 1]; negatives have 1 - alpha. None gives both sides
        weight 1, as fvcore's and torchvision's alpha=-1 does.
      activated: `pred` holds probabilities.
      poly_epsilon: Adds the first term of PolyLoss, poly_epsilon m^(gamma + 1), which alpha does
        not weight. None adds nothing.

    Returns: values of pred's shape, reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002; PolyLoss: Leng et al. 2022,
      https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    target, weight = classwise_target_and_weight(pred, target, weight)
    focal = _focal_of_probabilities if activated else _focal_of_logits
    values = focal(
        weight,
        pred,
        target,
        as_dtype(dtype, gamma),
        as_dtype_or_none(dtype, alpha),
        as_dtype_or_none(dtype, poly_epsilon),
    )
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _alpha_weighted(t: jax.Array, alpha: Any, x: jax.Array) -> jax.Array:
    return x if alpha is None else (alpha * t + (1 - alpha) * (1 - t)) * x


def _value(
    pred: jax.Array, target: jax.Array, gamma: Any, alpha: Any, poly_epsilon: Any
) -> jax.Array:
    t, sigmoid = dense_target(pred, target), sigmoid_parts(pred)
    miss = sigmoid.not_p * t + sigmoid.p * (1 - t)
    value = _alpha_weighted(t, alpha, power(miss, gamma)) * sigmoid.bce(t)
    return value if poly_epsilon is None else value + poly_epsilon * power(miss, gamma + 1)


def _derivative(
    pred: jax.Array, target: jax.Array, gamma: Any, alpha: Any, poly_epsilon: Any
) -> jax.Array:
    t, sigmoid = dense_target(pred, target), sigmoid_parts_in_derivative(pred)
    miss = sigmoid.not_p * t + sigmoid.p * (1 - t)
    d_miss = (1 - 2 * t) * sigmoid.d_p
    focal, d_focal = power_and_derivative(miss, gamma)
    d_value = focal * sigmoid.d_bce(t) + d_focal * d_miss * sigmoid.bce(t)
    d_value = _alpha_weighted(t, alpha, d_value)
    if poly_epsilon is None:
        return d_value
    return d_value + poly_epsilon * power_and_derivative(miss, gamma + 1)[1] * d_miss


def _value_of_probabilities(
    pred: jax.Array, target: jax.Array, gamma: Any, alpha: Any, poly_epsilon: Any
) -> jax.Array:
    t = dense_target(pred, target)
    miss = (1 - pred) * t + pred * (1 - t)
    value = _alpha_weighted(t, alpha, power(miss, gamma)) * bce_with_probs(pred, t)
    return value if poly_epsilon is None else value + poly_epsilon * power(miss, gamma + 1)


def _derivative_of_probabilities(
    pred: jax.Array, target: jax.Array, gamma: Any, alpha: Any, poly_epsilon: Any
) -> jax.Array:
    t = dense_target(pred, target)
    miss, d_miss = (1 - pred) * t + pred * (1 - t), 1 - 2 * t
    focal, d_focal = power_and_derivative(miss, gamma)
    d_value = focal * d_bce_with_probs(pred, t) + d_focal * d_miss * bce_with_probs(pred, t)
    d_value = _alpha_weighted(t, alpha, d_value)
    if poly_epsilon is None:
        return d_value
    return d_value + poly_epsilon * power_and_derivative(miss, gamma + 1)[1] * d_miss


_focal_of_logits = closed_form(_value, _derivative)
_focal_of_probabilities = closed_form(_value_of_probabilities, _derivative_of_probabilities)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalLoss(Loss, function=sigmoid_focal_loss):
    """Focal loss of sigmoids: `sigmoid_focal_loss` with its hyperparameters as fields.

    Args:
      use_sigmoid: Must be True.
    """

    use_sigmoid: bool = True
    gamma: float = 2.0
    alpha: float | None = 0.25
    activated: bool = False
    poly_epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._raise_without_sigmoid(self.use_sigmoid, instead="SoftmaxFocalLoss")

    def rules(self, pred: jax.Array, target: jax.Array, **extra: Any) -> list[Expected]:
        pred_rule = UNIT if self.activated else LOGITS
        target_rule = labels_or_scores(pred, target)
        return [Expected("pred", pred, pred_rule), Expected("target", target, target_rule)]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalCustomLoss(OwnClassifier, FocalLoss):
    """`FocalLoss` of logits that also says how its classifier's outputs are read (V3Det).

    Args:
      num_classes: Number of foreground classes, as many as there are channels.
      activated: Must be False. (mmdet takes True and reads logits all the same.)
    """

    num_classes: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activated:
            raise self.value_error(
                "activated must be False: pred holds logits; FocalLoss takes probabilities"
            )

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores (N, num_classes) of outputs (N, channels): their sigmoids."""
        return jax.nn.sigmoid(cls_score[:, : self.num_classes])
