"""The matching of least cost, one prediction for each ground truth: DETR and its kin."""

import functools
import operator
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxpr_as_fun

from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import Assignment, pick
from visdet_jax.detectors.costs.match_cost import Instances, MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def hungarian(costs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The one-to-one matching of rows and columns whose total cost is the least.

    As many pairs as there can be: every column has a row, or, if the columns are more, every row a
    column. Columns that the mask leaves out, padding, are never taken, whatever they hold, and
    neither is a pair whose cost is not finite: it counts as dearer than all others together.

    Compiled once for all batches of one shape; no gradient flows through it.

    Args:
      costs: (..., Q, G), matrix by matrix; of any scale, also negative.
      mask: (..., G), False for padded columns; None for none.
    Returns: (..., Q) the column of each row, 1 for the first; 0 where it has none.
    Raises: ValueError for other shapes, TypeError for what are no floats.
    Kuhn 1955, The Hungarian method for the assignment problem; by optax's
    `assignment.hungarian_algorithm`.
    """
    check_array("costs", costs)
    dtype = compute_dtype(pred=costs)
    if costs.ndim < 2:
        raise ValueError(f"costs must have shape (..., Q, G), got {costs.shape}")
    *leading, rows, columns = costs.shape
    if mask is None:
        mask = jnp.ones((*leading, columns), bool)
    if mask.shape != (*leading, columns):
        raise ValueError(f"mask must have shape {(*leading, columns)}, got {mask.shape}")
    if 0 in costs.shape:
        return jnp.zeros((*leading, rows), jnp.int32)
    # A matching needs the whole matrix.
    costs = replicated(jax.lax.stop_gradient(costs)).astype(dtype)
    mask = replicated(mask).astype(bool)
    match = _match
    for _ in leading:
        match = jax.vmap(match)
    return match(costs, mask)


def _match(costs, mask):
    """`hungarian` of one matrix (Q, G)."""
    rows, columns = costs.shape
    allowed = jnp.isfinite(costs) & mask[None]
    low = jnp.where(allowed, costs, jnp.inf).min()
    high = jnp.where(allowed, costs, -jnp.inf).max()
    # From 0 to 1, so that what follows is as exact for costs of any size. Halves, since the
    # difference of two finite numbers may not be finite.
    span = high / 2 - low / 2
    costs = jnp.where(span > 0, (costs / 2 - low / 2) / jnp.where(span > 0, span, 1), 0)
    # Every column has a place of its own to go to where no row is left for it, dearer than all
    # that it might save the others; and where it is padding at once, for nothing. (A padded column
    # of equal costs takes the search through all that are equal: 100 times slower.)
    apart, never = 1.0 + min(rows, columns), 4.0 + 2 * min(rows, columns)
    own = jnp.eye(columns, dtype=bool)
    places = jnp.where(own, jnp.where(mask[None], apart, 0), never)
    costs = jnp.concatenate([jnp.where(allowed, costs, never), places]).T
    columns_at, to = _optimum(costs.astype(jnp.zeros(()).dtype))  # optax's type is jax's default
    # Every column is in the matching, so that its rows are sorted into the columns' order.
    row_of = jnp.zeros(columns, jnp.int32).at[columns_at].set(to.astype(jnp.int32))
    taken = row_of[None] == jnp.arange(rows, dtype=jnp.int32)[:, None]
    numbers = jnp.arange(1, columns + 1, dtype=jnp.int32)[None]
    return jnp.where(taken & allowed, numbers, 0).sum(1, dtype=jnp.int32)


def _optimum(costs):
    """optax's matching (rows, columns), traced by itself.

    Its loops start from zeros, which `shard_map` takes for the same on all devices, and refuses
    where they become what the devices' own costs make of them. A program is not looked into.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shape = jax.ShapeDtypeStruct(costs.shape, costs.dtype)
        program = jax.make_jaxpr(optax.assignment.hungarian_algorithm)(shape)
    return jaxpr_as_fun(program)(costs)


@dataclass(frozen=True)
class _Costs(Sequence):
    """One static value to Flax, which takes the modules in a tuple for data."""

    costs: tuple[MatchCost, ...]

    def __getitem__(self, index):
        return self.costs[index]

    def __len__(self):
        return len(self.costs)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class HungarianAssigner(FrozenModule):
    """Each ground truth to the prediction that the sum of the costs matches it with.

    Args:
      match_costs: one cost or several, or their configs.
    Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `HungarianAssigner`.
    """

    match_costs: MatchCost | tuple[MatchCost, ...]

    def __post_init__(self):
        if isinstance(self.match_costs, MatchCost):
            object.__setattr__(self, "match_costs", (self.match_costs,))
        super().__post_init__()
        if not self.match_costs:
            raise self.value_error("match_costs must be a cost or several, got none")
        object.__setattr__(self, "match_costs", _Costs(tuple(self.costs)))

    def cost(self, pred: Instances, gt: Instances, image_shape: Any = None) -> jax.Array:
        """The sum of the costs (Q, G) of one image; see `MatchCost`."""
        costs = [cost(pred, gt, image_shape) for cost in self.costs]
        return functools.reduce(operator.add, costs)

    def assign(self, pred: Instances, gt: Instances, image_shape: Any = None) -> Assignment:
        """The ground truth of each of the Q predictions of one image; `vmap` for a batch.

        Of padded ground truth (a negative label) nothing counts. Where there are more ground
        truths than predictions every prediction has one.
        """
        if gt.labels is None:
            raise self.value_error("needs gt labels, which say what is padding, got None")
        gt_inds = hungarian(self.cost(pred, gt, image_shape), gt.labels >= 0)
        labels = jnp.full_like(gt_inds, -1)
        if gt.labels.size:
            labels = jnp.where(gt_inds > 0, pick(gt.labels, gt_inds), labels)
        return Assignment(gt_inds, labels)

    @property
    def costs(self) -> Sequence[MatchCost]:
        """The costs, also where `match_costs` was one alone."""
        return typing.cast(Sequence[MatchCost], self.match_costs)
