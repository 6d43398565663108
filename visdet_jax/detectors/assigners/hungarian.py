"""The matching of least cost, one prediction for each ground truth: DETR and its kin."""

import functools
import operator
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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

    Each column first takes its cheapest row, the first of equal ones; where several want the same
    row, the first column has it. Each of the others then costs a search for the cheapest way to
    change rows. So a trained network, whose boxes seldom want the same query, is matched fast.
    Of several matchings of the same total cost one is found, always the same for the same costs;
    beyond what is said above it is not specified which. The total is the least to within rounding
    in JAX's default float type.

    Compiled once for all batches of one shape; no gradient flows through it.

    Args:
      costs: (..., Q, G), matrix by matrix; of any scale, also negative.
      mask: (..., G), False for padded columns. None pads none.

    Returns: (..., Q) the column of each row, 1 for the first; 0 where it has none.
    Raises: ValueError for other shapes, TypeError for costs that are no floats.
    Source: Kuhn 1955, The Hungarian method for the assignment problem; by shortest augmenting
      paths as Jonker and Volgenant 1987, https://doi.org/10.1007/BF02278710.
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
    costs, mask = costs.reshape(-1, rows, columns), mask.reshape(-1, columns)
    return _match(costs, mask).reshape(*leading, rows)


def _match(costs: jax.Array, mask: jax.Array) -> jax.Array:
    """`hungarian` of matrices (N, Q, G)."""
    # Keep the barrier. Without it a TPU's program computes the costs anew in three kernels.
    arrays = jax.lax.optimization_barrier((costs, mask))
    # A CPU takes the matrices one by one. Together, each step would go on for all of them until
    # the slowest has its matching: three times as long where all columns want the same rows.
    return jax.lax.platform_dependent(
        *arrays,
        cpu=lambda *arrays: jax.lax.map(lambda of_one: _match_one(*of_one), arrays),
        default=jax.vmap(_match_one),
    )


def _match_one(costs: jax.Array, mask: jax.Array) -> jax.Array:
    """`hungarian` of one matrix (Q, G)."""
    allowed = jnp.isfinite(costs) & mask[None]
    least = jnp.where(allowed, costs, jnp.inf).min(0)
    most = jnp.where(allowed, costs, -jnp.inf).max(0)
    return _match_from(costs, least, most)


def _match_from(costs: jax.Array, least: jax.Array, most: jax.Array) -> jax.Array:
    """The matching of a matrix (Q, G) with least and largest finite cost (G,) of each column.

    They are inf and -inf for a column without any.
    """
    rows, columns = costs.shape
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    # Keep the two reductions. `argmin` takes a CPU six times as long.
    cheapest = jnp.where(costs == least[None], row, rows).min(0)
    numbers = jnp.arange(1, columns + 1, dtype=jnp.int32)
    before = jnp.tri(columns, k=-1, dtype=bool)
    beaten = ((cheapest[None] == cheapest[:, None]) & before).any(1)
    # A column may find no row that costs the least: where the costs are computed in the same
    # program, XLA may compute them twice, for the least and to compare with it, and round in two
    # ways. The column then searches a path as those do that are beaten. A column that is padding,
    # or has no finite cost, wants no row.
    exists = least < jnp.inf
    free = exists & (beaten | (cheapest == rows))
    matched = jnp.zeros_like(cheapest, shape=rows)
    matched = matched.at[jnp.where(exists & ~free, cheapest, rows)].set(numbers, mode="drop")
    return jax.lax.cond(
        free.any(),
        lambda: _augment(_normalized(costs, least.min(), most.max()).T, matched, free),
        lambda: matched,
    )


def _normalized(costs: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Finite costs scaled to [0, 1], the others inf, in JAX's default float type.

    Costs of any size are then matched equally well. Keep the sixteenths: the difference of two of
    the largest floats would overflow, and the inverse of that range, by which XLA multiplies in
    place of dividing, would be rounded to 0.
    """
    spread = high / 16 - low / 16
    scaled = (costs / 16 - low / 16) / jnp.where(spread > 0, spread, 1)
    return jnp.where(jnp.isfinite(costs), scaled, jnp.inf).astype(jnp.zeros(()).dtype)


_Matching = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _augment(costs: jax.Array, matched: jax.Array, free: jax.Array) -> jax.Array:
    """The optimum (Q,), of costs (G, Q) and a matching that is the optimum without `free` (G,).

    A path for each free column: it takes a row, whose column takes another row, and so on to a row
    that had none. The path that costs least is found as by Dijkstra, with costs less the potentials
    of both ends, which are not negative.
    """
    columns, rows = costs.shape
    numbers = jnp.arange(1, columns + 1, dtype=jnp.int32)
    # Instead of a row a column may take none, at more than all rows can save.
    dropping = 1.0 + min(rows, columns)

    def next_free(free: jax.Array) -> jax.Array:
        """The number of the first free column; 0 without any."""
        return jnp.where(free, numbers, columns + 1).min() % (columns + 1)

    def add_path(state: _Matching) -> _Matching:
        potentials, matched, free, column = state
        path = _shortest_path(costs, potentials, matched, column, dropping)
        # Only rows that were visited are nearer than the end of the path.
        potentials -= jnp.maximum(path.length - path.distances, 0)

        def walk(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            matched, row = state
            before = path.before[row]
            taker = jnp.where(before < 0, column, matched[jnp.maximum(before, 0)])
            return matched.at[row].set(taker), before

        matched, _ = jax.lax.while_loop(lambda state: state[1] >= 0, walk, (matched, path.end))
        free &= numbers != column
        return potentials, matched, free, next_free(free)

    start = (jnp.zeros_like(costs[0]), matched, free, next_free(free))
    _, matched, *_ = jax.lax.while_loop(lambda state: state[3] > 0, add_path, start)
    return matched


class _Path(NamedTuple):
    """The way from a free column to a row without one, and what its search has found."""

    column: jax.Array  # The next column that gives up its row; 0 at the end.
    row: jax.Array  # The row that it gives up; -1 for the free column, which has none.
    length: jax.Array
    end: jax.Array  # The last row; -1 where the free column itself takes none.
    distances: jax.Array  # (Q,) of the rows
    before: jax.Array  # (Q,) the row that is given up for each row; -1 at the start.
    visited: jax.Array  # (Q,)
    dropped: jax.Array  # The length of the best path that ends with a column taking no row,
    dropped_at: jax.Array  # and its last row.


def _shortest_path(
    costs: jax.Array,
    potentials: jax.Array,
    matched: jax.Array,
    column: jax.Array,
    dropping: float,
) -> _Path:
    """The path from a column, by its number, see `_augment`."""
    rows = costs.shape[1]
    row = jnp.arange(rows, dtype=jnp.int32)

    def visit(path: _Path) -> _Path:
        costs_of_column = costs[path.column - 1]
        at = jnp.maximum(path.row, 0)
        # The column's own potential: what its row costs. The free column has none yet.
        own = jnp.where(path.row < 0, 0, costs_of_column[at] - potentials[at])
        # Rounding must not make it negative: a visited row would come nearer.
        lengths = path.length + jnp.maximum(costs_of_column - potentials - own, 0)
        nearer = lengths < path.distances
        distances = jnp.where(nearer, lengths, path.distances)
        before = jnp.where(nearer, path.row, path.before)
        ending = path.length + dropping - own
        dropped_at = jnp.where(ending < path.dropped, path.row, path.dropped_at)
        dropped = jnp.minimum(ending, path.dropped)
        candidates = jnp.where(path.visited, jnp.inf, distances)
        length = candidates.min()
        # Of equal rows one without a column, where the path ends.
        rank = jnp.where(matched > 0, row + rows, row)
        end = jnp.where(candidates == length, rank, 2 * rows).min()
        end = jnp.where(end >= rows, end - rows, end)
        drops = dropped < length
        return _Path(
            column=jnp.where(drops, 0, matched[end]),
            row=end,
            length=jnp.minimum(length, dropped),
            end=jnp.where(drops, dropped_at, end),
            distances=distances,
            before=before,
            visited=path.visited | (row == end),
            dropped=dropped,
            dropped_at=dropped_at,
        )

    # `zeros_like` and `full_like` also say over which axes of a `shard_map` they differ.
    none, infinite = jnp.full_like(column, -1), jnp.full_like(costs[0], jnp.inf)
    start = _Path(
        column=column,
        row=none,
        length=jnp.zeros_like(infinite[0]),
        end=none,
        distances=infinite,
        before=jnp.full_like(matched, -1),
        visited=jnp.zeros_like(matched, bool),
        dropped=infinite[0],
        dropped_at=none,
    )
    return jax.lax.while_loop(lambda path: path.column > 0, visit, start)


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
