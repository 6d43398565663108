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

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.jitted import errors_named, jitted
from visdet_jax.detectors.assigners.assigner import Assignment, pick
from visdet_jax.detectors.costs.match_cost import Instances, MatchCost
from visdet_jax.detectors.registry import TASK_UTILS


@jitted
def hungarian(costs: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The one-to-one matching of rows and columns whose total cost is the least.

    There are as many pairs as there can be: every column has a row, or, if the columns are more,
    every row a column. Columns that the mask leaves out, padding, are never taken, whatever they
    hold. Neither is a pair whose cost is not finite: such a pair counts as dearer than all others
    together.

    Compiled once for all batches of one shape; no gradient flows through it.

    Args:
      costs: (..., Q, G), matrix by matrix; of any scale, also negative.
      mask: (..., G), False for padded columns. None pads none.

    Returns: (..., Q) the column of each row, 1 for the first; 0 where it has none.
    Raises: ValueError for other shapes, TypeError for costs that are no floats.
    Source: Kuhn 1955, The Hungarian method for the assignment problem; computed by optax's
      `assignment.hungarian_algorithm`.
    """
    check_array("costs", costs)
    dtype = compute_dtype(pred=costs)
    if costs.ndim < 2:
        raise ValueError(f"costs must have shape (..., Q, G), got {costs.shape}")
    *leading, rows, columns = costs.shape
    if mask is None:
        mask = jnp.ones((*leading, columns), bool)
    check_array("mask", mask)
    if mask.shape != (*leading, columns):
        raise ValueError(f"mask must have shape {(*leading, columns)}, got {mask.shape}")
    if 0 in costs.shape:
        return jnp.zeros((*leading, rows), jnp.int32)
    # A matching needs the whole matrix on one device.
    costs = replicated(jax.lax.stop_gradient(costs)).astype(dtype)
    mask = replicated(mask).astype(bool)
    match = _match
    for _ in leading:
        match = jax.vmap(match)
    return match(costs, mask)


def _match(costs: jax.Array, mask: jax.Array) -> jax.Array:
    """`hungarian` of one matrix (Q, G)."""
    rows, columns = costs.shape
    allowed = jnp.isfinite(costs) & mask[None]
    # Scaled to [0, 1], costs of any size are matched equally well, and the two constants below
    # are larger than whatever they are compared with. Keep the sixteenths: the difference of two
    # of the largest floats would overflow, and the inverse of that range, by which XLA multiplies
    # in place of dividing, would be rounded to 0.
    costs = costs / 16
    low = jnp.where(allowed, costs, jnp.inf).min()
    spread = jnp.where(allowed, costs, -jnp.inf).max() - low
    costs = jnp.where(spread > 0, (costs - low) / jnp.where(spread > 0, spread, 1), 0)
    # optax matches every column with some row. So each column has one spare row beside the real
    # ones, and goes there if no real row is left for it, or if it is padding. The spare row of a
    # column costs more than all pairs of real rows and columns together can save. A pair that is
    # not allowed costs still more, so that a column always prefers its own spare row.
    # Keep `forbidden` for the padded columns too. With equal costs there, 0 say, the search for a
    # padded column's row goes through all that are equal: 50 times slower for 300 x 100.
    spare, forbidden = 1.0 + min(rows, columns), 4.0 + 2 * min(rows, columns)
    spare_rows = jnp.where(jnp.eye(columns, dtype=bool), spare, forbidden)
    costs = jnp.concatenate([jnp.where(allowed, costs, forbidden), spare_rows])
    # In jax's default float type, which is optax's: float64 where x64 is on.
    matched_columns, matched_rows = _optimum(costs.T.astype(jnp.zeros(()).dtype))
    # Every column is matched, so that this puts the rows into the order of the columns.
    row_of = jnp.zeros(columns, jnp.int32).at[matched_columns].set(matched_rows.astype(jnp.int32))
    taken = row_of[None] == jnp.arange(rows, dtype=jnp.int32)[:, None]
    numbers = jnp.arange(1, columns + 1, dtype=jnp.int32)[None]
    return jnp.where(taken & allowed, numbers, 0).sum(1, dtype=jnp.int32)


def _optimum(costs: jax.Array) -> Any:
    """optax's matching (rows, columns) of a matrix, under JAX's usual rules of promotion.

    Keep it traced by itself, as a program that is then called. Inside `shard_map` its loops would
    start from zeros that are the same on all devices and end in what differs between them, which
    is a TypeError.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        shape = jax.ShapeDtypeStruct(costs.shape, costs.dtype)
        program = jax.make_jaxpr(optax.assignment.hungarian_algorithm)(shape)
    return jaxpr_as_fun(program)(costs)


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class HungarianAssigner(FrozenModule):
    """Each ground truth to one prediction, by the matching of the least total cost.

    Args:
      match_costs: One cost or several, which are added up; objects, or their configs.

    Source: Carion et al. 2020, https://arxiv.org/abs/2005.12872; mmdet's `HungarianAssigner`.
    """

    match_costs: MatchCost | tuple[MatchCost, ...]

    def __post_init__(self) -> None:
        if isinstance(self.match_costs, MatchCost):
            object.__setattr__(self, "match_costs", (self.match_costs,))
        super().__post_init__()
        if not self.match_costs:
            raise self.value_error("match_costs must be a cost or several, got none")

    @property
    def costs(self) -> Sequence[MatchCost]:
        """The costs, also where `match_costs` was one alone."""
        return typing.cast(Sequence[MatchCost], self.match_costs)

    def cost(self, pred: Instances, gt: Instances, image_shape: Any = None) -> jax.Array:
        """The sum of the costs (Q, G) of one image; see `MatchCost`."""
        costs = [cost(pred, gt, image_shape) for cost in self.costs]
        return functools.reduce(operator.add, costs)

    def assign(self, pred: Instances, gt: Instances, image_shape: Any = None) -> Assignment:
        """The ground truth of each of the Q predictions of one image; `vmap` for a batch.

        Padded ground truth (a negative label) is not assigned, whatever it holds. Where there are
        more ground truths than predictions, every prediction has one.

        Args:
          pred, gt: What the costs ask for; `gt` has labels in any case.
          image_shape: (height, width) in pixels, where a cost asks for it.

        Raises: ValueError for what is missing, TypeError for labels that are no integers.
        """
        if gt.labels is None:
            raise self.value_error("needs gt labels, which say what is padding, got None")
        with errors_named(type(self).__name__):
            gt_labels = as_labels("gt labels", gt.labels)
        gt_inds = hungarian(self.cost(pred, gt, image_shape), gt_labels >= 0)
        labels = jnp.full_like(gt_inds, -1, gt_labels.dtype)
        if gt_labels.size:
            labels = jnp.where(gt_inds > 0, pick(gt_labels, gt_inds), labels)
        return Assignment(gt_inds, labels)
