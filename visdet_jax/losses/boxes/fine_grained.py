"""Losses of boxes as distributions over bins, of D-FINE."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_array, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import Number, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, UNIT, Expected
from visdet_jax.losses.boxes._bins import bin_rule, two_bins_cross_entropy
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def fine_grained_localization_loss(
    pred: jax.Array,
    target: tuple[jax.Array, jax.Array, jax.Array],
    weight: jax.Array | None = None,
    *,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy with the two bins around a distance, with a given weight for each.

    weight_left CE(pred, k) + weight_right CE(pred, k + 1), k = trunc(bins). A k + 1 beyond the
    last bin counts as the last. It is `distribution_focal_loss` for bins of unequal widths.

    Args:
      pred: Logits (..., n + 1) of the bins 0 to n.
      target: (bins, weight_right, weight_left), each (...), as `dfine.bbox2distance` gives them.
        Where bins is -1 or below the row is ignored. At n + 1 and above its loss is NaN: there is
        no bin.
      weight: (...). D-FINE's is the IoU of each box, without gradient, and 0 where there is none.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for a target that is not three arrays.
    Source: Peng et al. 2024 (D-FINE), https://arxiv.org/abs/2410.13842
    """
    if not isinstance(target, tuple | list) or len(target) != 3:
        raise TypeError("target must be (bins, weight_right, weight_left)")
    parts = dict(zip(("bins", "weight_right", "weight_left"), target, strict=True))
    dtype = compute_dtype(pred=pred, **parts)
    for name, part in parts.items():
        if part.shape != pred.shape[:-1]:
            raise ValueError(f"{name} must have shape {pred.shape[:-1]}, got {part.shape}")
    pred, (bins, right, left) = pred.astype(dtype), (part.astype(dtype) for part in target)
    missing = ~(bins < pred.shape[-1])
    values = two_bins_cross_entropy(pred, bins, right, left, missing, weight)
    return weight_reduce_loss(values, None, reduction, avg_factor)


@jitted
def decoupled_distillation_focal_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    confidence: jax.Array,
    matched: jax.Array,
    T: Positive = 5.0,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """Divergence of distributions over bins from those of the last layer, by its confidence.

    T² confidence KL(softmax(target / T) ‖ softmax(pred / T)) of each row, times a factor by which
    the mean over all rows is (m1 √n1 + m2 √n2) / (√n1 + √n2). m1 is the mean over the n1 matched
    rows, m2 that over the n2 others, and the mean of nothing is 0: the many unmatched rows count,
    but less than by their number. The factor of a matched row is N / (√n1 (√n1 + √n2)), where
    N = n1 + n2.

    No gradient flows into target and confidence.

    Args:
      pred: Logits (..., n + 1) of the bins 0 to n.
      target: The last layer's logits, of pred's shape.
      weight: (...). Rows of weight 0 are not counted in n1 and n2: give N as `avg_factor` for the
        mean above.
      confidence: (...). Of a matched row the IoU of its box; elsewhere the last layer's largest
        class probability.
      matched: (...), bools: whether a row is matched with an object.
      T: Temperature, above 0. Larger values make both distributions softer, so that unlikely bins
        count more.
      axis_name: The mesh axis, or axes, over which the rows are spread inside `shard_map`: n1 and
        n2 are then those of all devices.

    Returns: (...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for `matched` that is not bools.
    Source: Peng et al. 2024 (D-FINE), https://arxiv.org/abs/2410.13842
    """
    dtype = compute_dtype(pred=pred, target=target, confidence=confidence)
    check_same_shape(pred, target)
    check_array("matched", matched)
    for name, part in (("confidence", confidence), ("matched", matched)):
        if part.shape != pred.shape[:-1]:
            raise ValueError(f"{name} must have shape {pred.shape[:-1]}, got {part.shape}")
    if matched.dtype != bool:
        raise TypeError(f"matched must be bools, got {matched.dtype}")
    pred, T = pred.astype(dtype), as_dtype(dtype, T)
    target, confidence = (jax.lax.stop_gradient(x.astype(dtype)) for x in (target, confidence))
    counted = jnp.ones_like(matched)
    if weight is not None:
        weight = spread_weight(weight, matched.shape).astype(dtype)
        weight = jnp.broadcast_to(weight, matched.shape)
        counted = weight != 0
    n1, n2 = (
        reduce_sum((counted & rows).sum(dtype=dtype), axis_name) for rows in (matched, ~matched)
    )
    both = jnp.sqrt(n1) + jnp.sqrt(n2)
    factor1, factor2 = (divide(n1 + n2, jnp.sqrt(n) * both) for n in (n1, n2))
    factor = T * T * confidence * jnp.where(matched, factor1, factor2)
    values = _distillation(weight, pred, target, factor[..., None], T)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _log_distributions(pred: jax.Array, target: jax.Array, T: Any) -> list[jax.Array]:
    # Use this in the value and in the derivative. Where the derivative has `softmax` instead, XLA
    # stores seven arrays of pred's size in place of three, and takes 1.7 times as long or more on
    # a CPU (jax 0.10.2).
    return [jax.nn.log_softmax(x / T, axis=-1) for x in (pred, target)]


def _value(pred: jax.Array, target: jax.Array, factor: jax.Array, T: Any) -> jax.Array:
    log_pred, log_target = _log_distributions(pred, target, T)
    return (factor * jnp.exp(log_target) * (log_target - log_pred)).sum(-1)


def _derivative(pred: jax.Array, target: jax.Array, factor: jax.Array, T: Any) -> jax.Array:
    log_pred, log_target = _log_distributions(pred, target, T)
    return factor / T * (jnp.exp(log_pred) - jnp.exp(log_target))


_distillation = closed_form(_value, _derivative, axis=-1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FineGrainedLocalizationLoss(Loss, function=fine_grained_localization_loss):
    """Cross entropy with the two bins around a distance: `fine_grained_localization_loss`."""

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        rules = {"bins": bin_rule(pred), "weight_right": UNIT, "weight_left": UNIT}
        named = zip(rules.items(), target, strict=True)
        parts = [Expected(name, x, rule) for (name, rule), x in named]
        return [Expected("pred", pred, LOGITS), *parts]


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DecoupledDistillationFocalLoss(Loss, function=decoupled_distillation_focal_loss):
    """Divergence of distributions over bins from those of the last layer.

    It is `decoupled_distillation_focal_loss`; call it with `confidence` and `matched`.
    """

    T: float = 5.0

    def update(self, state: Any, pred: jax.Array, target: Any, *args: Any, **kwargs: Any) -> Any:
        """(loss, state). `axis_name` has an effect here: it counts the rows of all devices."""
        return self(pred, target, *args, **kwargs), state

    def rules(
        self, pred: jax.Array, target: Any, *, confidence: Any = None, **extra: Any
    ) -> list[Expected]:
        return [
            Expected("pred", pred, LOGITS),
            Expected("target", target, LOGITS),
            Expected("confidence", confidence, UNIT),
        ]
