"""Match costs of classes: by probability and by focal loss, of text tokens too."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Exponent, Fraction, NonNegative
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.costs._focal import focal_costs
from visdet_jax.detectors.costs._pairwise import flatten_entries, pairwise_sum
from visdet_jax.detectors.costs.masks import mask_focal_loss_cost
from visdet_jax.detectors.costs.match_cost import Instances, MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def classification_cost(pred: jax.Array, target: jax.Array) -> jax.Array:
    """Minus the probability of the ground truth's class: -softmax(pred)[:, target].

    Args:
      pred: Logits (Q, C), background's included.
      target: Class indices (G,), integers of any width. A negative one costs 0, one of C or more
        NaN.

    Returns: (Q, G), from -1 (certain) to 0.
    Raises: ValueError for shapes that do not fit, TypeError for class indices that are floats.
    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `ClassificationCost`.
    """
    dtype = compute_dtype(pred=pred)
    return -_at_class(jax.nn.softmax(pred.astype(dtype), axis=-1), target)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class ClassificationCost(MatchCost, function=classification_cost):
    """Minus the probability of the ground truth's class: `classification_cost`."""

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        return classification_cost(*self.parts(pred_scores=pred.scores, gt_labels=gt.labels))


@jitted
def focal_loss_cost(
    pred: jax.Array,
    target: jax.Array,
    *,
    alpha: Fraction = 0.25,
    gamma: Exponent = 2.0,
    eps: NonNegative = 1e-12,
) -> jax.Array:
    """Focal loss of each prediction as a positive of the ground truth's class, less as a negative.

    -alpha (1 - p)^gamma log(p + eps) + (1 - alpha) p^gamma log(1 - p + eps), with p = sigmoid(pred)
    of the ground truth's class: by how much the loss would grow if the prediction were matched.

    Args:
      pred: Logits (Q, C).
      target: Class indices (G,), integers of any width. A negative one costs 0, one of C or more
        NaN.
      alpha: Weight of the positive side, in [0, 1]; the negative side has 1 - alpha.
      gamma: Focusing exponent, at least 0. Larger values weight down what is predicted well
        already.
      eps: Added to the probabilities before the logarithm, at least 0. Larger values bound the
        costs of logits that are certain and wrong lower. With 0, as rf-detr has it, the costs are
        finite too.

    Returns: (Q, G), negative where the class is predicted well.
    Raises: ValueError for shapes that do not fit, TypeError for class indices that are floats.
    Source: Zhu et al. 2021, https://arxiv.org/abs/2010.04159; mmdet's `FocalLossCost`.
    """
    positive, negative = focal_costs(pred, alpha, gamma, eps)
    return _at_class(positive - negative, target)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalLossCost(MatchCost, function=(focal_loss_cost, mask_focal_loss_cost)):
    """Match cost by focal loss: `focal_loss_cost`, or `mask_focal_loss_cost` of masks.

    Args:
      binary_input: Compares masks in place of classes.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12
    binary_input: bool = False

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        if self.binary_input:
            parts = self.parts(pred_masks=pred.masks, gt_masks=gt.masks)
            return mask_focal_loss_cost(*parts, **self.settings)
        parts = self.parts(pred_scores=pred.scores, gt_labels=gt.labels)
        return focal_loss_cost(*parts, **self.settings)


@jitted
def binary_focal_loss_cost(
    pred: jax.Array,
    target: jax.Array,
    text_token_mask: jax.Array,
    *,
    alpha: Fraction = 0.25,
    gamma: Exponent = 2.0,
    eps: NonNegative = 1e-12,
) -> jax.Array:
    """Focal loss of each prediction's tokens against those that name each ground truth, summed.

    Args:
      pred: Logits (Q, T) of the tokens.
      target: (G, T) Which tokens name the ground truth, in [0, 1].
      text_token_mask: (T,) Which tokens there are; 0 or False for those whose logits are not read.
      alpha: Weight of the tokens that name the ground truth, in [0, 1]; others have 1 - alpha.
      gamma: Focusing exponent, at least 0; see `focal_loss_cost`.
      eps: Added to the probabilities before the logarithm, at least 0; see `focal_loss_cost`.

    Returns: (Q, G), at least 0 but for eps.
    Raises: ValueError for shapes that do not fit.
    Source: Liu et al. 2023 (Grounding DINO), https://arxiv.org/abs/2303.05499; mmdet's
      `BinaryFocalLossCost`.
    """
    pred, target = flatten_entries(pred, target)
    check_array("text_token_mask", text_token_mask)
    if text_token_mask.shape != pred.shape[1:]:
        raise ValueError(
            f"text_token_mask must have shape {pred.shape[1:]}, got {text_token_mask.shape}"
        )
    exists = jnp.asarray(text_token_mask).astype(bool)[None]
    positive, negative = focal_costs(jnp.where(exists, pred, 0), alpha, gamma, eps)
    return pairwise_sum(jnp.where(exists, positive, 0), jnp.where(exists, negative, 0), target)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BinaryFocalLossCost(MatchCost, function=binary_focal_loss_cost):
    """Match cost of text tokens: `binary_focal_loss_cost` with its hyperparameters as fields."""

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        parts = self.parts(
            pred_scores=pred.scores,
            gt_positive_maps=gt.positive_maps,
            gt_text_token_mask=gt.text_token_mask,
        )
        return binary_focal_loss_cost(*parts, **self.settings)


def _at_class(values: jax.Array, target: jax.Array) -> jax.Array:
    """Values (Q, C) at the classes (G,), as (Q, G); 0 for negative classes, NaN for C and more."""
    if values.ndim != 2:
        raise ValueError(f"pred must have shape (Q, C), got {values.shape}")
    check_array("target", target)
    target = as_labels("target", target, target.shape[:1])
    # Whole columns: picked one by one the entries are a loop of Q · G steps on a TPU.
    at_class = jnp.take(values, jnp.clip(target, 0, values.shape[1] - 1), axis=1, mode="clip")
    at_class = jnp.where(target[None] >= values.shape[1], jnp.nan, at_class)
    return jnp.where(target[None] < 0, 0, at_class)
