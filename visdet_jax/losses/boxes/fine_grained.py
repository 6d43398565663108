"""Losses of boxes as distributions over bins, of D-FINE."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_array, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import divide
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, UNIT, Expected
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses.boxes._bins import bins_of, logits_around
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight, weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES


@jitted
def fine_grained_localization_loss(pred, target, weight=None, *, reduction="mean", avg_factor=None):
    """Cross entropy with the two bins around a distance, by their given shares.

    weight_left CE(pred, k) + weight_right CE(pred, k + 1), k = trunc(bins); a k + 1 beyond the
    last bin counts as the last. `distribution_focal_loss` for bins that are not equally wide.

    Args:
      pred: logits of the bins 0 to n, (..., n + 1).
      target: (bins, weight_right, weight_left), each (...), as `dfine.bbox2distance` gives them.
        Where bins is -1 or below the row is ignored, above n its loss is NaN: no bins are there.
      weight: (...). D-FINE's is the IoU of each box, without gradient, 0 where there is none.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit.
    Peng et al. 2024 (D-FINE), https://arxiv.org/abs/2410.13842
    """
    if not isinstance(target, tuple | list) or len(target) != 3:
        raise TypeError("target must be (bins, weight_right, weight_left)")
    parts = dict(zip(("bins", "weight_right", "weight_left"), target, strict=True))
    dtype = compute_dtype(pred=pred, **parts)
    for name, part in parts.items():
        if part.shape != pred.shape[:-1]:
            raise ValueError(f"{name} must have shape {pred.shape[:-1]}, got {part.shape}")
    pred, (bins, right, left) = pred.astype(dtype), (part.astype(dtype) for part in target)
    weight = weight_without(bins <= -1, weight, bins.shape)
    weight = jnp.where(~(bins < pred.shape[-1]) & (weight != 0), jnp.nan, weight)
    # An index for rows without one too: NaN has none.
    first = jnp.trunc(jnp.where(bins >= 0, bins, 0))
    others = (x[..., None] for x in (first, right, left))
    values = _fine_grained(weight.astype(dtype), pred, *others)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _fine_grained_value(pred, first, right, left, alone=False):
    m, log_sum = log_sum_exp(pred, -1, alone)
    at_left, at_right = (log_sum - (x - m) for x in logits_around(pred, first))
    return (left * at_left + right * at_right).squeeze(-1)


def _fine_grained_derivative(pred, first, right, left):
    bins = jnp.arange(pred.shape[-1], dtype=pred.dtype).reshape((1,) * (pred.ndim - 1) + (-1,))
    # Hats of whole bins: compares of bins take twice the time.
    at_left, at_right = (
        jnp.maximum(1 - jnp.abs(bins - jnp.minimum(first + i, pred.shape[-1] - 1)), 0)
        for i in range(2)
    )
    return (left + right) * softmax(pred, axis=-1) - (left * at_left + right * at_right)


_fine_grained = closed_form(
    _fine_grained_value,
    _fine_grained_derivative,
    axis=-1,
    has_alone=True,
)


@jitted
def decoupled_distillation_focal_loss(
    pred,
    target,
    weight=None,
    *,
    confidence,
    matched,
    T=5.0,
    reduction="mean",
    avg_factor=None,
    axis_name=None,
):
    """Divergence of distributions over bins from those of the last layer, by its confidence.

    T² confidence KL(softmax(target / T) ‖ softmax(pred / T)) for each row, in such shares that
    the mean is (m1 √n1 + m2 √n2) / (√n1 + √n2), with m1 the mean over the n1 matched rows, m2
    that over the n2 others, and 0 for a mean over nothing: many unmatched rows count, but less
    than their number. A matched row's share is N / (√n1 (√n1 + √n2)), N = n1 + n2.

    target and confidence are constants to the gradient.

    Args:
      pred: logits of the bins, (..., n + 1).
      target: the last layer's logits, pred's shape.
      weight: (...). Rows of weight 0 are not counted: `avg_factor` is N then, for that mean.
      confidence: (...), the IoU of a matched box, elsewhere the last layer's largest class
        probability.
      matched: bools (...).
      T: the temperature.
      axis_name: the mesh axis, or axes, over which the rows are spread inside `shard_map`: n1 and
        n2 are those of all devices then.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for `matched` that is not bools.
    Peng et al. 2024 (D-FINE), https://arxiv.org/abs/2410.13842
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
    of_matched, of_others = (divide(n1 + n2, jnp.sqrt(n) * both) for n in (n1, n2))
    factor = T * T * confidence * jnp.where(matched, of_matched, of_others)
    values = _distilled(weight, pred, target, factor[..., None], T)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _distilled_value(pred, target, factor, T):
    log_p = jax.nn.log_softmax(pred / T, axis=-1)
    log_t = jax.nn.log_softmax(target / T, axis=-1)
    return (factor * jnp.exp(log_t) * (log_t - log_p)).sum(-1)


def _distilled_derivative(pred, target, factor, T):
    return factor / T * (softmax(pred / T, axis=-1) - softmax(target / T, axis=-1))


_distilled = closed_form(_distilled_value, _distilled_derivative, axis=-1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class FineGrainedLocalizationLoss(Loss):
    """Flax shim of `fine_grained_localization_loss`."""

    def rules(self, pred, target, **extra):
        rules = {"bins": bins_of(pred), "weight_right": UNIT, "weight_left": UNIT}
        named = zip(rules.items(), target, strict=True)
        shares = [Expected(name, x, rule) for (name, rule), x in named]
        return [Expected("pred", pred, LOGITS), *shares]

    def compute(self, pred, target, weight, **reduce):
        return fine_grained_localization_loss(pred, target, weight, **reduce)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DecoupledDistillationFocalLoss(Loss):
    """Flax shim of `decoupled_distillation_focal_loss`, called with `confidence` and `matched`."""

    T: float = 5.0

    def __post_init__(self):
        super().__post_init__()
        self._raise_unless_positive("T")

    def update(self, state, *args, **kwargs):
        # `axis_name` included, which counts rows here.
        return self(*args, **kwargs), state

    def rules(self, pred, target, *, confidence=None, **extra):
        return [
            Expected("pred", pred, LOGITS),
            Expected("target", target, LOGITS),
            Expected("confidence", confidence, UNIT),
        ]

    def compute(self, pred, target, weight, **options):
        return decoupled_distillation_focal_loss(pred, target, weight, T=self.T, **options)
