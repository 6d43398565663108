"""What the losses of distributions over bins share."""

import jax.numpy as jnp

from visdet_jax.core.rules import Rule


def logits_around(pred, left):
    """The logits (..., 1) of the bins `left` (..., 1) and `left` + 1, or of the last there is."""
    bins = (jnp.clip(left + i, 0, pred.shape[-1] - 1).astype(jnp.int32) for i in range(2))
    return [jnp.take_along_axis(pred, i, axis=-1, mode="promise_in_bounds") for i in bins]


def bins_of(pred):
    """What a place among the bins of `pred` must be."""
    last = pred.shape[-1] - 1
    return Rule(
        lambda x: ~((x >= 0) & (x <= last) | (x <= -1)),
        f"must be from 0 to {last}, the last bin, or -1 to be ignored",
        ignored=lambda x: x <= -1,
    )
