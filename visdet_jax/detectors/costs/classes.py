"""Match costs of classes: by probability and by focal loss, of tokens and masks too."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Exponent
from visdet_jax.core.jitted import jitted
from visdet_jax.core.power import power
from visdet_jax.core.sigmoid import sigmoid_parts
from visdet_jax.detectors.costs.masks import flat_masks, of_both
from visdet_jax.detectors.costs.match_cost import MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def classification_cost(pred, target):
    """Minus the probability of the ground truth's class: -softmax(pred)[:, target].

    Args:
      pred: logits (Q, C), background's included.
      target: class indices (G,). A negative one costs 0, one of C or more NaN.
    Returns: (Q, G).
    Raises: ValueError, TypeError for other shapes and types.
    Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `ClassificationCost`.
    """
    dtype = compute_dtype(pred=pred)
    return -_of_class(jax.nn.softmax(pred.astype(dtype), axis=-1), target)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class ClassificationCost(MatchCost):
    """Flax shim of `classification_cost`."""

    def compute(self, pred, gt, image_shape):
        return classification_cost(*self.parts(pred_scores=pred.scores, gt_labels=gt.labels))


@jitted
def focal_loss_cost(pred, target, *, alpha=0.25, gamma: Exponent = 2.0, eps=1e-12):
    """What focal loss would save if the ground truth's class were this prediction's.

    -alpha (1 - p)^gamma log(p + eps) + (1 - alpha) p^gamma log(1 - p + eps), p = sigmoid(pred) of
    the ground truth's class.

    Args:
      pred: logits (Q, C).
      target: class indices (G,). A negative one costs 0, one of C or more NaN.
      alpha, gamma: as in `sigmoid_focal_loss`.
      eps: bounds the logarithms.
    Returns: (Q, G).
    Raises: ValueError, TypeError for other shapes and types.
    Zhu et al. 2021, https://arxiv.org/abs/2010.04159; mmdet's `FocalLossCost`.
    """
    positive, negative = _focal_sides(pred, alpha, gamma, eps)
    return _of_class(positive - negative, target)


@jitted
def mask_focal_loss_cost(pred, target, *, alpha=0.25, gamma: Exponent = 2.0, eps=1e-12):
    """Focal loss of each predicted mask against each ground truth's, the mean over the pixels.

    Args:
      pred: logits (Q, ...); target: masks (G, ...), 0 and 1.
      alpha, gamma, eps: as in `focal_loss_cost`.
    Returns: (Q, G).
    Raises: ValueError where the masks have different sizes.
    Cheng et al. 2021 (MaskFormer), https://arxiv.org/abs/2107.06278; mmdet's `FocalLossCost` with
    `binary_input`.
    """
    pred, target = flat_masks(pred, target)
    positive, negative = _focal_sides(pred, alpha, gamma, eps)
    return of_both(positive, negative, target) / max(pred.shape[1], 1)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class FocalLossCost(MatchCost):
    """Flax shim of `focal_loss_cost`, with `binary_input` of `mask_focal_loss_cost`."""

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12
    binary_input: bool = False

    def compute(self, pred, gt, image_shape):
        options = {"alpha": self.alpha, "gamma": self.gamma, "eps": self.eps}
        if self.binary_input:
            parts = self.parts(pred_masks=pred.masks, gt_masks=gt.masks)
            return mask_focal_loss_cost(*parts, **options)
        parts = self.parts(pred_scores=pred.scores, gt_labels=gt.labels)
        return focal_loss_cost(*parts, **options)


@jitted
def binary_focal_loss_cost(
    pred, target, text_token_mask, *, alpha=0.25, gamma: Exponent = 2.0, eps=1e-12
):
    """Focal loss of each prediction's tokens against those that name each ground truth, summed.

    Args:
      pred: logits (Q, T) of the tokens.
      target: (G, T), which tokens name the ground truth, in [0, 1].
      text_token_mask: (T,), which tokens there are; the others' logits are not read.
      alpha, gamma, eps: as in `focal_loss_cost`.
    Returns: (Q, G).
    Raises: ValueError for shapes that do not fit.
    Liu et al. 2023 (Grounding DINO), https://arxiv.org/abs/2303.05499; mmdet's
    `BinaryFocalLossCost`.
    """
    pred, target = flat_masks(pred, target)
    if text_token_mask.shape != pred.shape[1:]:
        raise ValueError(
            f"text_token_mask must have shape {pred.shape[1:]}, got {text_token_mask.shape}"
        )
    there = text_token_mask[None] != 0
    positive, negative = _focal_sides(jnp.where(there, pred, 0), alpha, gamma, eps)
    return of_both(jnp.where(there, positive, 0), jnp.where(there, negative, 0), target)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BinaryFocalLossCost(MatchCost):
    """Flax shim of `binary_focal_loss_cost`."""

    alpha: float = 0.25
    gamma: float = 2.0
    eps: float = 1e-12

    def compute(self, pred, gt, image_shape):
        parts = self.parts(
            pred_scores=pred.scores,
            gt_positive_maps=gt.positive_maps,
            gt_text_token_mask=gt.text_token_mask,
        )
        return binary_focal_loss_cost(*parts, alpha=self.alpha, gamma=self.gamma, eps=self.eps)


def _focal_sides(pred, alpha, gamma, eps):
    """What each entry costs as a positive and as a negative."""
    dtype = compute_dtype(pred=pred)
    alpha, gamma, eps = as_dtype(dtype, alpha, gamma, eps)
    _, p, not_p, _ = sigmoid_parts(pred.astype(dtype))
    positive = -alpha * power(not_p, gamma) * jnp.log(p + eps)
    return positive, -(1 - alpha) * power(p, gamma) * jnp.log(not_p + eps)


def _of_class(values, target):
    """Values (Q, C) at the classes (G,), as (Q, G)."""
    if values.ndim != 2:
        raise ValueError(f"pred must have shape (Q, C), got {values.shape}")
    check_array("target", target)
    target = as_labels("target", target, target.shape[:1])
    index = jnp.clip(target, 0, values.shape[1] - 1)[None]
    index = jnp.broadcast_to(index, (len(values), len(target)))
    own = jnp.take_along_axis(values, index, axis=1)
    own = jnp.where(target[None] >= values.shape[1], jnp.nan, own)
    return jnp.where(target[None] < 0, 0, own)
