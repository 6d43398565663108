"""The base classes of the losses, with and without running statistics."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.rules import AVG_FACTOR, FINITE, WEIGHT, Expected, rows_that_are_read
from visdet_jax.reduction import REDUCTIONS


@dataclass(frozen=True, kw_only=True)
class Loss(FrozenModule):
    """Base of the losses without statistics: a subclass is its fields and its function.

      @LOSSES.register_module()
      @dataclass(frozen=True, kw_only=True)
      class SmoothL1Loss(Loss, function=smooth_l1_loss):
          beta: float = 1.0

    A subclass that does more than call its function with its fields defines `compute` instead.

    Args:
      reduction: "mean", "sum" or "none"; see `weight_reduce_loss`.
      loss_weight: Factor of the reduced loss.
    """

    reduction: str = "mean"
    loss_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_reduction("reduction", self.reduction)

    def __call__(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: Number | None = None,
        reduction_override: str | None = None,
        **extra: Any,
    ) -> jax.Array:
        """The weighted, reduced loss of `pred` against `target`, times `loss_weight`.

        `reduction_override` replaces `reduction` for this call; see `weight_reduce_loss` for
        `weight` and `avg_factor`. Other keywords are the loss's own.
        """
        reduction = self._reduction(reduction_override)
        value = self.compute(
            pred, target, weight, reduction=reduction, avg_factor=avg_factor, **extra
        )
        return self._times_loss_weight(value)

    def compute(
        self, pred: jax.Array, target: Any, weight: jax.Array | None, **options: Any
    ) -> jax.Array:
        """The loss before `loss_weight`: the class's function, called with the fields.

        `options` hold `reduction`, `avg_factor` and the keywords of the call that are the loss's
        own.
        """
        if len(self.functions) != 1:
            raise NotImplementedError(f"{type(self).__name__} must define compute")
        value: jax.Array = self.functions[0](pred, target, weight, **self.settings, **options)
        return value

    def expects(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: Number | None = None,
        reduction_override: str | None = None,
        **extra: Any,
    ) -> list[Expected]:
        """What `checked` looks at in a call: its arguments, and what their values must be."""
        for name in ("label_weight", "label_weights"):  # mmdet's names for the weight
            weight = extra.pop(name, None) if weight is None else weight
        arguments = self.rules(pred, target, **extra)
        rows = rows_that_are_read([*arguments, Expected("weight", weight, WEIGHT)], weight)
        return [*rows, Expected("avg_factor", avg_factor, AVG_FACTOR)]

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        """What `pred`, `target` and the loss's own keywords must be: finite, unless redefined."""
        return [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]

    def init(self) -> Any:
        """The state before the first `update`: () for a loss that keeps none."""
        return ()

    def update(self, state: Any, pred: jax.Array, target: Any, *args: Any, **kwargs: Any) -> Any:
        """(loss, next state) of a call, for losses with and without state alike.

        `axis_name` is for the statistics of a `StatefulLoss`; without any it has no effect.
        """
        kwargs.pop("axis_name", None)
        return self(pred, target, *args, **kwargs), state

    def _times_loss_weight(self, value: jax.Array) -> jax.Array:
        # Outside jit a product is a program of its own, a third of the time of a small loss.
        if isinstance(self.loss_weight, int | float) and self.loss_weight == 1:
            return value
        return self.loss_weight * value

    def _reduction(self, override: str | None) -> str:
        if override is None:
            return self.reduction
        self._check_reduction("reduction_override", override)
        return override

    def _check_reduction(self, name: str, reduction: str) -> None:
        if reduction not in REDUCTIONS:
            raise self.value_error(
                f"{name} must be one of {', '.join(REDUCTIONS)}; got {reduction!r}"
            )


@dataclass(frozen=True, kw_only=True)
class StatefulLoss(Loss):
    """Base of the losses that keep running statistics: a subclass has `init` and `step`.

    The state is explicit, a NamedTuple of arrays that goes through jit, scan,
    `value_and_grad(has_aux=True)`, an nnx Variable, a linen collection and a checkpoint as any
    pytree does:

      state = loss.init()
      value, state = loss.update(state, pred, target, weight)

    No gradient flows through it. A batch without a valid element costs 0 and leaves it as it is.

    Over several devices the statistics are those of the whole batch. Under `jit` with sharded
    arrays nothing has to be done. Inside `shard_map`, `pmap` or `vmap(axis_name=...)` call
    `update(..., axis_name="data")`: the state is then the same on every device, and the mean of
    the devices' losses (`reduce_mean(value, "data")`) is the loss of the whole batch.
    """

    def __call__(self, pred: jax.Array, target: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss, where the config keeps no statistics (GHM without momentum)."""
        state = self.init()
        if jax.tree.leaves(state):
            raise TypeError(
                f"{type(self).__name__} keeps running statistics: write `state = loss.init()` "
                "once and `value, state = loss.update(state, pred, target, ...)` at each step"
            )
        return self.update(state, pred, target, *args, **kwargs)[0]

    def init(self) -> Any:
        """The state before the first `update`."""
        raise NotImplementedError(f"{type(self).__name__} must define init")

    def update(
        self,
        state: Any,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        avg_factor: Number | None = None,
        reduction_override: str | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
        **extra: Any,
    ) -> Any:
        """(loss, next state); arguments as those of `Loss.__call__`.

        `axis_name` names the mesh axis, or axes, over which the batch is spread.
        """
        given, expected = (jax.tree.map(np.shape, tree) for tree in (state, self.init()))
        if jax.tree.flatten(given) != jax.tree.flatten(expected):
            raise self.value_error(
                f"state must come from init() or update(), {expected}; got {given}"
            )
        if axis_name is not None:
            extra["axis_name"] = axis_name
        reduction = self._reduction(reduction_override)
        value, state = self.step(
            state, pred, target, weight, reduction=reduction, avg_factor=avg_factor, **extra
        )
        return jax.tree.map(self._times_loss_weight, value), state

    def step(
        self, state: Any, pred: jax.Array, target: Any, weight: jax.Array | None, **options: Any
    ) -> Any:
        """(loss before `loss_weight`, next state).

        `options` hold `reduction`, `avg_factor` and, where it is given, `axis_name`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def one_of(self, **named: Any) -> Any:
        """The one of two arguments that is not None: mmdet's name and ours for the same thing."""
        given = [value for value in named.values() if value is not None]
        if len(given) > 1:
            raise self.value_error(f"{' and '.join(named)} are the same; give one of them")
        return given[0] if given else None
