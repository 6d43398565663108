"""How a head calls its losses: over levels, with their states, over several devices."""

import functools
import operator
from typing import Any

import jax
import numpy as np

from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.elementary import clamp_min
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import AVG_FACTOR_EPS


class Criterion:
    """Calls a head's losses by name; keeps their values and their states."""

    def __init__(
        self, head: Any, state: dict[str, Any], level_sizes: tuple[int, ...], axis_name: Any
    ) -> None:
        self.head, self.state, self.axis_name = head, dict(state), axis_name
        self.sizes, self.ends = level_sizes, np.cumsum(level_sizes)
        self.losses: dict[str, jax.Array] = {}

    def add(
        self, name: str, pred: Any, target: Any, weight: jax.Array, avg_factor: jax.Array | float
    ) -> None:
        """Calls the loss of that name on arrays (B, N, ...), as arrays (B · N, ...).

        One call for all levels; where `pred` is a list of levels, or where the loss keeps
        statistics (of a call, as in mmdet), the sum of a call for each. `avg_factor` is the whole
        batch's: of several devices each divides by its share of it, so that the mean of their
        losses is the loss of the whole batch.
        """
        loss, values = getattr(self.head, name), []
        if self.axis_name is not None:
            avg_factor = (avg_factor + AVG_FACTOR_EPS) / jax.lax.psum(1, self.axis_name)
            avg_factor -= AVG_FACTOR_EPS  # which the loss adds
        levels = [slice(end - size, end) for size, end in zip(self.sizes, self.ends, strict=True)]
        if isinstance(pred, list):
            preds = pred
        elif isinstance(loss, StatefulLoss):
            preds = [pred[:, level] for level in levels]
        else:
            preds, levels = [pred], [slice(None)]
        for pred, level in zip(preds, levels, strict=True):
            rows = jax.tree.map(
                lambda x, level=level: x[:, level].reshape(-1, *x.shape[2:]), (target, weight)
            )
            value, self.state[name] = loss.update(
                self.state[name],
                pred.reshape(-1, *pred.shape[2:]),
                *rows,
                avg_factor,
                axis_name=self.axis_name,
            )
            values.append(value)
        self.losses[name] = functools.reduce(operator.add, values)

    def total(self, count: jax.Array, least: float = 1) -> jax.Array:
        """max(count, least), counted over all devices.

        A device's own count would be wrong: some have many positives, and some none.
        """
        return clamp_min(reduce_sum(count, self.axis_name), least)
