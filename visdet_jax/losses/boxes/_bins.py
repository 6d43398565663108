"""What the losses of distributions over bins share: cross entropy with two neighbouring bins."""

import jax
import jax.numpy as jnp

from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.one_hot import entry_at, places_along
from visdet_jax.core.rules import Rule
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.reduction import weight_without


def two_bins_cross_entropy(
    pred: jax.Array,
    bins: jax.Array,
    right: jax.Array,
    left: jax.Array,
    missing: jax.Array,
    weight: jax.Array | None,
) -> jax.Array:
    """left CE(pred, k) + right CE(pred, k + 1) with k = trunc(bins), times the weight.

    Args:
      pred: Logits (..., n + 1).
      bins: (...), places among the bins 0 to n. A row whose place is -1 or below is ignored; a
        k + 1 beyond the last bin counts as the last.
      right, left: (...), the weights of the two bins, which may have a gradient.
      missing: (...), the rows whose place is beyond the bins. They become NaN.
      weight: (...), or None.

    Returns: (...).
    """
    weight = weight_without(bins <= -1, weight, bins.shape)
    weight = jnp.where(missing & (weight != 0), jnp.nan, weight).astype(pred.dtype)
    of_rows = (x[..., None] for x in (jnp.trunc(bins), right, left))
    values: jax.Array = _two_bins(weight, pred, *of_rows)
    return values


def _value(
    pred: jax.Array, first: jax.Array, right: jax.Array, left: jax.Array, alone: bool = False
) -> jax.Array:
    m, log_sum = log_sum_exp(pred, -1, alone)
    last = pred.shape[-1] - 1
    of_left, of_right = (
        log_sum - entry_at(pred, jnp.minimum(first + i, last).astype(jnp.int32), -1, minus=m)
        for i in range(2)
    )
    return (left * of_left + right * of_right).squeeze(-1)


def _derivative(pred: jax.Array, first: jax.Array, right: jax.Array, left: jax.Array) -> jax.Array:
    last = pred.shape[-1] - 1
    places = places_along(pred.shape[-1], pred.ndim, -1, pred.dtype)
    # Keep these hats, which are 1 at a bin and 0 at the others. With compares of the bins it takes
    # 1.3 times as long for 16 bins on a CPU (jax 0.10.2).
    at_left, at_right = (
        jnp.maximum(1 - jnp.abs(places - (1 + jnp.minimum(first + i, last))), 0) for i in range(2)
    )
    return (left + right) * softmax(pred, axis=-1) - (left * at_left + right * at_right)


_two_bins = closed_form(_value, _derivative, axis=-1, has_alone=True)


def bin_rule(pred: jax.Array) -> Rule:
    """What a place among the bins of `pred` must be."""
    last = pred.shape[-1] - 1
    return Rule(
        lambda x: ~((x >= 0) & (x <= last) | (x <= -1)),
        f"must be from 0 to {last}, the last bin, or -1 to be ignored",
        ignored=lambda x: x <= -1,
    )
