"""What the assigners on priors share: which ground truth each prior of one image learns."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.assigners.iou_calculator import BboxOverlaps2D
from visdet_jax.detectors.priors import split_small

IGNORED, DROPPED = -1, -2
# One slice of the priors, or several, whose rows then stand one after another; see `rows_among`.
Among = slice | tuple[slice, ...]
EPS = 1e-6  # the least area that an IoU is divided by, in pixels squared
# On accelerators. More are fewer kernels, and take longer to compile: FCOS's head has 62 kernels
# with 10 and 52 with 20 (H200, jax 0.12.0.1).
BOXES_IN_A_KERNEL = 20
# On accelerators. Of numbers that are not kept, with 3 XLA no longer computes them inside the
# kernel: ATSS's head moves 1.7 times as much on an H200, and its scratch memory is 12 times as
# large (jax 0.12.0.1). Of numbers that are kept, each kernel reads all again: with 5 YOLOX's,
# RTMDet's, TOOD's and YOLOv8's heads move 0.8 to 0.9 of what they move with 3.
LEAST_IN_A_KERNEL, LEAST_OF_KEPT_IN_A_KERNEL = 2, 5


_NOWHERE = np.iinfo(np.int32).max  # Behind the index of every prior.


class Assignment(NamedTuple):
    """The ground truth of each of N priors, or of N predictions."""

    gt_inds: jax.Array  # (N,) 1 for the first box; 0 background, -1 ignored, -2 dropped prior
    labels: jax.Array  # (N,) of that box; -1 where there is none
    max_overlaps: jax.Array | None = None  # (N,) the IoU by which it was assigned, if any was
    metrics: jax.Array | None = None  # (N,) what the class learns in place of 1; 0 without a box


def pick(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
    """The rows of `values`, (G,) or (G, columns), that `gt_inds` (N,) point to.

    Where an index points to no box (0 or negative) the row is the first one, whose values mean
    nothing there.
    """
    if values.ndim > 1:
        # Keep it column by column. Rows of 4 numbers that are picked as rows take 32 times their
        # size on a TPU, 1.6 GB for 16 images of 200 000 anchors (jax 0.12).
        return jnp.stack([pick(column, gt_inds) for column in columns(values)], axis=-1)
    return jnp.take_along_axis(values, jnp.maximum(gt_inds - 1, 0), axis=0)


def without_padding(gt_boxes: Any, gt_labels: Any, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Boxes (..., G, 4) with zeros in place of padding, and labels (..., G) as int32 or int64.

    Where G is 0 both get one row of padding, so that a row can be read.
    """
    gt_labels = as_labels("gt_labels", gt_labels)
    if not gt_labels.shape[-1]:
        gt_labels = jnp.full((*gt_labels.shape[:-1], 1), -1, gt_labels.dtype)
        gt_boxes = jnp.zeros((*gt_labels.shape, 4), dtype)
    return jnp.where(gt_labels[..., None] >= 0, jnp.asarray(gt_boxes), 0).astype(dtype), gt_labels


def prepare_inputs(
    priors: Any, gt_boxes: Any, gt_labels: Any, valid: Any = None, *, name: str = "priors"
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The arguments of an assigner for one image, checked, in one type and without padding.

    Args:
      priors: (N, 4), or (N, 2) where `name` is "points".
      gt_boxes, gt_labels, valid: See `max_iou_assign`.
      name: What the assigner calls its priors.

    Returns: the priors and the boxes in the type that is computed in, the boxes with zeros in
      place of padding, the labels as int32 or int64, and which priors are valid.
    Raises: ValueError for other shapes, TypeError for what is no array and for labels that are no
      integers.
    """
    dtype = compute_dtype(**{name: priors, "gt_boxes": gt_boxes})
    size = 2 if name == "points" else 4
    if priors.ndim != 2 or priors.shape[1] != size:
        raise ValueError(f"{name} must have shape (N, {size}), got {priors.shape}")
    if gt_boxes.ndim != 2 or gt_boxes.shape[1] != 4:
        raise ValueError(f"gt_boxes must have shape (G, 4), got {gt_boxes.shape}")
    gt_labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:1])
    if valid is None:
        valid = jnp.ones_like(priors[:, 0], bool)
    check_array("valid", valid)
    if valid.shape != priors.shape[:1]:
        raise ValueError(f"valid must have shape {priors.shape[:1]}, got {valid.shape}")
    gt_boxes, gt_labels = without_padding(gt_boxes, gt_labels, dtype)
    # What is assigned has no gradient, and not all of what it is made of can have one.
    priors, gt_boxes = jax.lax.stop_gradient((jnp.asarray(priors).astype(dtype), gt_boxes))
    return priors, gt_boxes, gt_labels, jnp.asarray(valid).astype(bool)


@dataclass(frozen=True)
class Rules:
    """How an assigner on priors goes about a box, in three functions of one box and all N priors.

    The numbers (G, N) of all boxes would be the largest array of a detector's loss: 80 MB an image
    for 100 boxes and 200 000 anchors. Written like this they are never in memory at once.

    Args:
      compute: From a box (4,), whether it exists or is padding, and `Among` of the priors, to
        numbers of each of those priors, such as the IoU. It is several slices only where `measure`
        asks for them, as `k_least` does for small groups.
      measure: What has to be known of a box from all priors, such as its largest IoU. It is given
        `numbers(among, after)`, which is `compute` for that box and those priors. On accelerators
        each call computes them anew, and not before `after`, if any, is there.
      visit: From the state, the number of the box (1 for the first), what `compute` and `measure`
        found, to the next state, by operations on each prior alone.
      keeps: Whether accelerators hold the numbers of all boxes in memory after all. For numbers
        that are dear to compute, or that cannot be the same bits in every kernel; of few priors.
      in_a_kernel: How many boxes accelerators visit in a kernel.
    """

    compute: Callable[[Any, jax.Array, Any], Any]
    measure: Callable[[Callable[..., Any]], Any]
    visit: Callable[[Any, jax.Array, Any, Any], Any]
    keeps: bool = False
    in_a_kernel: int = BOXES_IN_A_KERNEL


def visit_boxes(rules: Rules, state: Any, gt_boxes: Any, gt_labels: jax.Array) -> Any:
    """The state, arrays (N,), after all boxes (G, 4) have been visited in their order.

    `gt_boxes` may also be a tuple of arrays (G, ...), when `compute` gets a tuple for a box.

    On a CPU the boxes are visited one by one, and the numbers of a box are computed once, into the
    cache. On accelerators the reductions of `measure` are done for all boxes in one kernel, and
    `in_a_kernel` visits are one kernel. Each of them computes the numbers on its way, so that
    numbers that are compared need the same bits in every kernel: see `product`, and `Rules.keeps`.
    """
    if not jax.tree.leaves(state)[0].size:
        return state  # Without priors there is nothing to assign, nor a largest IoU.
    numbers = 1 + jnp.arange(len(gt_labels), dtype=jnp.int32)
    boxes = (numbers, gt_boxes, gt_labels >= 0)
    every = slice(None)

    def one_by_one(state: Any, boxes: Any) -> Any:
        def step(state: Any, each: Any) -> tuple[Any, None]:
            number, box, exists = each
            computed = rules.compute(box, exists, every)
            found = rules.measure(
                lambda among, _=None: jax.tree.map(lambda x: rows_among(x, among), computed)
            )
            return rules.visit(state, number, computed, found), None

        return jax.lax.scan(step, state, boxes)[0]

    def together(state: Any, boxes: Any) -> Any:
        def measure(box: jax.Array, exists: jax.Array) -> Any:
            def anew(among: Among, after: Any = None) -> Any:
                # Keep the barrier. Without it XLA computes the numbers once, and keeps them.
                again = jax.lax.optimization_barrier((box, exists, after))
                return rules.compute(again[0], again[1], among)

            return rules.measure(anew)

        def step(state: Any, each: Any) -> tuple[Any, None]:
            number, box, exists, found = each
            return rules.visit(state, number, rules.compute(box, exists, every), found), None

        if rules.keeps:
            kept = jax.vmap(lambda box, exists: rules.compute(box, exists, every))(*boxes[1:])
            kept = _in_memory(kept)
            found = jax.vmap(
                lambda x: rules.measure(
                    lambda among, _=None: jax.tree.map(lambda a: rows_among(a, among), x)
                )
            )(kept)

            def step_with_kept(state: Any, each: Any) -> tuple[Any, None]:
                number, own, found = each
                return rules.visit(state, number, own, found), None

            rows = (numbers, kept, found)
            return jax.lax.scan(step_with_kept, state, rows, unroll=rules.in_a_kernel)[0]
        found = jax.vmap(measure)(*boxes[1:])
        return jax.lax.scan(step, state, (*boxes, found), unroll=rules.in_a_kernel)[0]

    return jax.lax.platform_dependent(state, boxes, cpu=one_by_one, default=together)


@jax.custom_batching.custom_vmap
def _in_memory(numbers: Any) -> Any:
    """Arrays (G, N) that XLA computes once, and keeps.

    Keep them (G, B, N) for a batch, as `scan` reads them. As (B, G, N) a box's row is one line of
    a tile for every image on a TPU, and XLA copies all that is kept before each kernel that reads
    such rows: TOOD's head moves 1.7 times as much on a v5e, YOLOv8's 2.1 times (jax 0.12.0.1).
    """
    return jax.lax.optimization_barrier(numbers)


@_in_memory.def_vmap
def _in_memory_of_batch(size: int, are_batched: Any, numbers: Any) -> Any:
    (is_batched,) = are_batched

    def swapped(x: jax.Array, is_batched: bool) -> jax.Array:
        return jnp.swapaxes(x, 0, 1) if is_batched else x

    kept = _in_memory(jax.tree.map(swapped, numbers, is_batched))
    return jax.tree.map(swapped, kept, is_batched), is_batched


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a · b, rounded before anything is added to it: the same bits in every kernel.

    Keep the `where`, which changes no finite number. Without it compilers make a · b + c one
    instruction that rounds once, in one kernel and not in another, and what is computed in two
    kernels is not equal to itself. With it the IoU of boxes is also mmdet's to the last bit.
    """
    unrounded, largest = a * b, jnp.finfo(a.dtype).max
    return jnp.where(unrounded > largest, largest, unrounded)


def iou_with_all(box: jax.Array, priors: jax.Array) -> jax.Array:
    """The IoU of a box (4,) with each of the priors (N, 4): the same bits in every kernel."""
    x1, y1, x2, y2 = (side[None] for side in columns(box))
    px1, py1, px2, py2 = columns(priors)
    width = clamp_min(jnp.minimum(x2, px2) - jnp.maximum(x1, px1), 0)
    height = clamp_min(jnp.minimum(y2, py2) - jnp.maximum(y1, py1), 0)
    overlap = product(width, height)
    union = product(x2 - x1, y2 - y1) + product(px2 - px1, py2 - py1) - overlap
    return overlap / jnp.maximum(union, EPS)


class Best(NamedTuple):
    """The best box of each prior among those visited, the first of equal ones."""

    scores: jax.Array  # (N,)
    numbers: jax.Array  # (N,): 1 for the first box, 0 for none.

    def or_box(self, number: jax.Array, scores: jax.Array) -> "Best":
        """With that box where its score (N,) is larger."""
        larger = scores > self.scores
        return Best(jnp.where(larger, scores, self.scores), jnp.where(larger, number, self.numbers))


def no_box_yet(valid: jax.Array, gt_labels: jax.Array, dtype: Any, *, score: float = -1) -> Best:
    """The state before the first box, by the score that a box has to exceed.

    Keep these two `where` whose sides are equal; they cost nothing. Inside `shard_map` the state
    of a loop has to vary over the devices from its start on if it does so in its end, and only
    arrays that are computed from the devices' own data vary. Constants would be a TypeError.
    """
    data = valid & (gt_labels >= 0).any()
    scores, numbers = jnp.full(valid.shape, score, dtype), jnp.zeros(valid.shape, jnp.int32)
    return Best(jnp.where(data, scores, score), jnp.where(data, numbers, 0))


class Last(NamedTuple):
    """The last of the k least of some values, by which the others are told."""

    value: jax.Array
    at: jax.Array  # its index

    def includes(self, values: jax.Array, indices: jax.Array) -> jax.Array:
        """Which of the values, at these indices, are among the k least, of equal ones the first."""
        return (values < self.value) | ((values == self.value) & (indices <= self.at))


class Least(NamedTuple):
    """The k least of some values (n,) in their order, the first of equal ones first."""

    values: jax.Array  # (k,), infinite where there are less than k finite ones.
    others: jax.Array  # (k,): what another array (n,) has there; anything for infinite values
    last: Last


def k_least(
    numbers: Callable[..., Any], groups: Sequence[slice], k: int, at_once: int = LEAST_IN_A_KERNEL
) -> list[Least]:
    """The k least values of a box in each of several groups of priors, such as levels.

    On a CPU `top_k` finds them. Elsewhere a reduction finds the first ones and computes the values
    on the way, and so on with those that are left: `top_k` would need the values of all boxes and
    priors in memory, and sort.

    Args:
      numbers: See `Rules`; here the values (n,) and others (n,) that go with them. None for others
        stands for the indices.
      groups: Slices of the priors, each from where the last one ends.
      k: How many; a group of n has min(k, n).
      at_once: How many a reduction finds.
    """
    sizes = [group.stop - group.start for group in groups]

    def by_top_k() -> list[Least]:
        found = []
        for group, size in zip(groups, sizes, strict=True):
            values, others = numbers(group)
            negated, indices = jax.lax.top_k(-values, min(k, size))
            # Keep this minimum. The last of top_k's results is the least of them too, but where it
            # is sliced off, XLA:CPU sorts all n values in place of searching for the largest: 100
            # times slower for 17 000, and the assigner 14 times (jax 0.10.2).
            value = -negated.min()
            # Of equal values top_k takes those of the lowest index.
            index = group.start + jnp.where(negated == -value, indices, -1).max()
            if others is None:
                # Keep the detour. With top_k's own indices XLA:CPU sorts here too. Keep the
                # `where`: on an explicit mesh what is picked from has to be spread as the values.
                others = jnp.where(jnp.isnan(values), -1, _indices_of(group))
            found.append(Least(-negated, others[indices], Last(value, index)))
        return found

    def in_steps() -> list[Least]:
        large, small = split_small(sizes)

        def least_after(last: Last | None, values: Any, indices: Any, others: Any) -> Any:
            if last is not None:
                values = jnp.where(last.includes(values, indices), jnp.inf, values)
            return _first_least(values, indices, others, at_once)

        def step(before: Any, _: None = None) -> tuple[Last, Any]:
            found = []
            for i, group in enumerate(groups[large]):
                values, others = numbers(group, before)
                last = None if before is None else Last(before.value[i], before.at[i])
                least = least_after(last, values, _indices_of(group), others)
                found.append([[x[None] for x in firsts] for firsts in least])
            if groups[small]:
                # Keep the small groups in one reduction. One for each, with what XLA computes
                # before it, is 12 kernels more for the five levels of ATSS on an H200.
                among, at = _windows(groups[small])
                values, others = jax.tree.map(lambda x: x.reshape(at.shape), numbers(among, before))
                values = jnp.where(at < _NOWHERE, values, jnp.inf)
                lasts = jax.tree.map(lambda x: x[small], before)
                found.append(jax.vmap(least_after)(lasts, values, at, others))
            of_all = [
                [jnp.concatenate(x) for x in zip(*parts, strict=True)]
                for parts in zip(*found, strict=True)
            ]
            # (groups,), and (at_once, groups)
            return Last(of_all[0][-1], of_all[1][-1]), [jnp.stack(x) for x in of_all]

        largest = min(k, max(sizes))
        last, found = step(None)
        # No scan of no step: on an explicit mesh its results cannot be reshaped (jax 0.10.2).
        if steps := (largest - 1) // at_once:
            _, after = jax.lax.scan(step, last, length=steps, unroll=2)
            found = [
                jnp.concatenate([x, jax.lax.collapse(y, 0, 2)])
                for x, y in zip(found, after, strict=True)
            ]
        values, at, *others = found
        goes_with = others[0] if others else at
        return [
            Least(
                values[: min(k, size), i],
                goes_with[: min(k, size), i],
                Last(values[min(largest, size) - 1, i], at[min(largest, size) - 1, i]),
            )
            for i, size in enumerate(sizes)
        ]

    return jax.lax.platform_dependent(cpu=by_top_k, default=in_steps)


def rows_among(x: jax.Array, among: Among) -> jax.Array:
    """The rows of x in a slice, or in one slice after another."""
    if isinstance(among, slice):
        return x[among]
    return jnp.concatenate([x[part] for part in among])


def _windows(groups: Sequence[slice]) -> tuple[tuple[slice, ...], np.ndarray]:
    """Slices of one length, each of which holds one of the groups, and the indices in them.

    The indices are (groups, length), `_NOWHERE` for priors of other groups.
    """
    length = max(group.stop - group.start for group in groups)
    starts = [min(group.start, groups[-1].stop - length) for group in groups]
    among = tuple(slice(start, start + length) for start in starts)
    indices = np.stack([_indices_of(part) for part in among])
    first, end = np.asarray([(group.start, group.stop) for group in groups]).T[..., None]
    return among, np.where((first <= indices) & (indices < end), indices, _NOWHERE)


def _indices_of(group: slice) -> np.ndarray:
    # Keep it a literal. Of an iota each step on a GPU makes an array first, in a kernel of its own.
    return np.arange(group.start, group.stop, dtype=np.int32)


def _first_least(
    values: jax.Array, indices: jax.Array, others: jax.Array | None, at_once: int
) -> list[Any]:
    """The `at_once` least of some values (n,), the first of equal ones first.

    Returns: lists of these values, of their indices, and of what goes with them unless that is
      None. They are no arrays (at_once,), of which a GPU would slice the last in a kernel.
    """

    def spread(x: Any) -> jax.Array:
        # Keep this sum, which changes nothing. On an explicit mesh all that is reduced together has
        # to be spread over the devices as the values are, and a `where` of literals is not.
        zero = np.zeros((), x.dtype)
        return jnp.where(jnp.isnan(values), zero, zero) + x

    arrays = [values, spread(indices)] + ([] if others is None else [others])
    count = len(arrays)
    nothing = (np.inf, _NOWHERE, 0)
    none = [np.asarray(n, x.dtype) for n, x in zip(nothing, arrays, strict=False)]

    def either(is_first: jax.Array, a: Any, b: Any) -> Any:
        return [jnp.where(is_first, x, y) for x, y in zip(a, b, strict=True)]

    def merge(a: Any, b: Any) -> Any:
        """The least of two sorted lists, which stand one element after another."""
        a, b = ([x[i : i + count] for i in range(0, len(x), count)] for x in (a, b))
        merged: list[jax.Array] = []
        while a:
            is_first = (a[0][0] < b[0][0]) | ((a[0][0] == b[0][0]) & (a[0][1] < b[0][1]))
            merged += either(is_first, a[0], b[0])
            # The list whose head was taken moves on, and of both the last is not needed.
            a, b = (
                [either(is_first, x, y) for x, y in itertools.pairwise(a[::-1])][::-1],
                [either(is_first, y, x) for x, y in itertools.pairwise(b[::-1])][::-1],
            )
        return tuple(merged)

    padding = [spread(n) for n in none] * (at_once - 1)
    found = jax.lax.reduce((*arrays, *padding), (*none,) * at_once, merge, (0,))
    return [found[i::count] for i in range(count)]


def assignment(
    gt_inds: jax.Array, max_overlaps: jax.Array, gt_labels: jax.Array, valid: jax.Array
) -> Assignment:
    """The result, with dropped priors marked and the labels of the boxes."""
    gt_inds = jnp.where(valid, gt_inds, DROPPED)
    labels = jnp.where(gt_inds > 0, pick(gt_labels, gt_inds), -1)
    return Assignment(gt_inds, labels, max_overlaps)


@dataclass(frozen=True, kw_only=True)
class Assigner(FrozenModule):
    """Base of the assigners on priors: a subclass is its fields and `assign`."""

    def assign(
        self,
        priors: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *,
        level_sizes: tuple[int, ...],
    ) -> Assignment:
        """The ground truth of each prior of one image; `vmap` for a batch.

        Args:
          priors: (N, 4) as x1, y1, x2, y2, in pixels, level after level.
          gt_boxes: (G, 4) as the priors. Rows of padding are not read.
          gt_labels: (G,) Class indices, integers of any width; negative for padding.
          valid: (N,) False for priors to drop. None drops none.
          level_sizes: How many of the priors each level has.
        """
        raise NotImplementedError(f"{type(self).__name__} must define assign")


@dataclass(frozen=True, kw_only=True)
class IoUAssigner(Assigner):
    """Base of the assigners that go by the IoU: what mmdet's configs of all of them may hold.

    Args:
      ignore_iof_thr: Must be at most 0, which switches it off: the heads take no regions to
        ignore.
      iou_calculator: Which overlap is computed. There is one, the IoU.
    """

    ignore_iof_thr: float = -1
    iou_calculator: BboxOverlaps2D = BboxOverlaps2D()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ignore_iof_thr > 0:
            raise self.value_error(
                f"ignore_iof_thr must be at most 0, got {self.ignore_iof_thr!r}: the heads take no "
                "regions to ignore"
            )
