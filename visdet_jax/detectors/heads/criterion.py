"""How a head calls its losses: over levels, with their states, over several devices."""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Number
from visdet_jax.detectors.structures import AxisName, Losses, States
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import AVG_FACTOR_EPS


class Criterion:
    """Calls the losses of a head by their names, and collects their values and their states.

    Args:
      head: A head whose fields are the losses.
      state: The losses' states by name.
      level_sizes: How many rows each level has.
      axis_name: The mesh axis, or axes, over which the batch is spread.
      options: What a head's `compute` needs to know of the call besides, by name.
    """

    def __init__(
        self,
        head: Any,
        state: States,
        level_sizes: tuple[int, ...],
        axis_name: AxisName,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.head, self.state, self.axis_name = head, dict(state), axis_name
        ends = np.cumsum(level_sizes)
        self.levels = [slice(e - n, e) for n, e in zip(level_sizes, ends, strict=True)]
        self.losses: Losses = {}
        self.options = options or {}

    def add(
        self,
        name: str,
        pred: Any,
        target: Any,
        weight: jax.Array | None,
        avg_factor: Number,
        levels: Sequence[slice] | None = None,
        of_maps: bool = False,
        **extra: jax.Array,
    ) -> None:
        """Calls the loss of that name on arrays (B, N, ...), made arrays (B · N, ...).

        A loss that gives several values by name (`SeesawLoss`) adds them by their own names.

        It is one call for all levels. Where `pred` is a list of levels, or the loss keeps
        statistics, it is the sum of one call for each level, as in mmdet, whose statistics are of a
        call.

        Args:
          name: The field of the head that holds the loss.
          pred: (B, N, ...), or a list of (B, n, ...), one for each level.
          target: An array (B, N, ...), or a tuple of them; or as `pred` a list of levels.
          weight: (B, N) or (B, N, ...). None counts all rows alike.
          avg_factor: What the sum over the whole batch is divided by.
          levels: Which rows each level has, where the rows are not those of all priors.
          of_maps: Whether `pred` is a list of maps (B, H, W, ...), which the loss gets with these
            axes, and all else in the same form.
          extra: What the loss takes besides, by name: arrays (B, N, ...).
        """
        loss = getattr(self.head, name)
        values: list[Any] = []
        levels = self.levels if levels is None else levels
        options: dict[str, Any] = {"axis_name": self.axis_name}
        if self.head.sums_losses:
            options["reduction_override"] = "mean"
            avg_factor -= AVG_FACTOR_EPS  # The loss adds it again.
        avg_factor = avg_factor_of_device(avg_factor, self.axis_name)
        if isinstance(pred, list):
            preds = pred
        elif isinstance(loss, StatefulLoss):
            preds = [pred[:, level] for level in levels]
        else:
            preds, levels = [pred], [slice(None)]
        for part, level in zip(preds, levels, strict=True):
            axes = part.shape[:3] if of_maps else (part.shape[0] * part.shape[1],)
            part = part if of_maps else _flat(part)
            of_level = jax.tree.map(
                lambda x, level=level: x[:, level],
                (None if isinstance(target, list) else target, weight, extra),
            )
            if isinstance(target, list):
                of_level = target[len(values)], *of_level[1:]
            *rows, own = jax.tree.map(lambda x, axes=axes: x.reshape(*axes, *x.shape[2:]), of_level)
            value, self.state[name] = loss.update(
                self.state[name], part, *rows, avg_factor, **options, **own
            )
            values.append(value)
        total = jax.tree.map(lambda *parts: functools.reduce(operator.add, parts), *values)
        self.losses |= total if isinstance(total, dict) else {name: total}

    def total(self, count: jax.Array, least: float = 1) -> jax.Array:
        """max(count, least), with the count summed over all devices.

        The maximum has to be of the sum: some devices have many positives, and some none.
        """
        return clamp_min(reduce_sum(count, self.axis_name), least)


def avg_factor_of_device(avg_factor: Number, axis_name: AxisName) -> Number:
    """The part of a whole batch's `avg_factor` that each of several devices divides by.

    The mean of the devices' losses is then the loss of the whole batch.
    """
    if axis_name is None:
        return avg_factor
    avg_factor = (avg_factor + AVG_FACTOR_EPS) / jax.lax.psum(1, axis_name)
    return avg_factor - AVG_FACTOR_EPS  # The loss adds it again.


def _flat(x: jax.Array) -> jax.Array:
    """(B, N, ...) as (B · N, ...)."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
