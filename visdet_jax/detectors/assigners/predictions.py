"""What the assigners share that look at predictions: dynamic k, contested priors, scores."""

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.assigners.assigner import (
    DROPPED,
    EPS,
    LEAST_OF_KEPT_IN_A_KERNEL,
    Assignment,
    Best,
    Rules,
    k_least,
    no_box_yet,
    pick,
    prepare_inputs,
    visit_boxes,
)

# Class scores of all priors (N, C), or of each level (n, C).
Scores = jax.Array | Sequence[jax.Array]


class Inputs(NamedTuple):
    """The checked arguments of an assigner on predictions, all without a gradient."""

    points: jax.Array  # (N, 2)
    strides: jax.Array  # (N,)
    pred_boxes: jax.Array  # (N, 4)
    scores: list[jax.Array]  # Of each level (n, C).
    gt_boxes: jax.Array  # (G, 4), 0 for padding
    gt_labels: jax.Array  # (G,)
    valid: jax.Array  # (N,)

    def of_class(self, label: jax.Array) -> jax.Array:
        """The scores (N,) of one class, of any one for a label of padding.

        Keep the levels apart: one array of all scores would be a copy of the largest array.
        """
        label = jnp.maximum(label, 0)
        return jnp.concatenate(
            [jax.lax.dynamic_index_in_dim(x, label, 1, keepdims=False) for x in self.scores]
        ).astype(self.points.dtype)

    def sum_of_classes(self, compute: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Σ over the classes of `compute` of the scores: (N,)."""
        dtype = self.points.dtype
        return jnp.concatenate([compute(x.astype(dtype)).sum(axis=1) for x in self.scores])

    def inside(self, box: jax.Array) -> jax.Array:
        """The least distance (N,) of each point to a side of the box; negative outside."""
        x, y = columns(self.points)
        x1, y1, x2, y2 = columns(box)
        return jnp.minimum(jnp.minimum(x - x1, y - y1), jnp.minimum(x2 - x, y2 - y))

    def any_box(self, fits: Callable[[jax.Array], jax.Array]) -> jax.Array:
        """Which points (N,) are valid and fit one of the ground truths at least."""
        exists = self.gt_labels >= 0
        # Keep `valid` inside the reduction. Behind it, XLA takes another layout for the costs of
        # RTMDet's head on an H200, which then moves 4 times as much (jax 0.12.0.1).
        return (jax.vmap(fits)(self.gt_boxes) & exists[:, None] & self.valid[None]).any(axis=0)

    def all_priors(self) -> list[slice]:
        """The one group of `k_least`."""
        return [slice(0, len(self.points))]


def prepare_predictions(
    points: Any,
    strides: Any,
    pred_boxes: Any,
    scores: Scores,
    gt_boxes: Any,
    gt_labels: Any,
    valid: Any,
) -> Inputs:
    """The arguments of an assigner on predictions, checked, in one type and without padding.

    Raises: ValueError for other shapes, TypeError for what is no array and for labels that are no
      integers.
    """
    boxes, gt_boxes, gt_labels, valid = prepare_inputs(
        pred_boxes, gt_boxes, gt_labels, valid, name="pred_boxes"
    )
    count, dtype = len(boxes), boxes.dtype
    levels: list[Any] = list(scores) if isinstance(scores, list | tuple) else [scores]
    own: tuple[tuple[str, Any, tuple[int, ...]], ...] = (
        ("points", points, (count, 2)),
        ("strides", strides, (count,)),
    )
    for name, x, shape in own:
        check_array(name, x)
        if x.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {x.shape}")
    for level in levels:
        check_array("scores", level)
        if level.ndim != 2:
            raise ValueError(f"scores must have shape (N, C), got {level.shape}")
    if sum(len(level) for level in levels) != count:
        raise ValueError(
            f"scores must be of {count} predictions, got {' + '.join(str(len(x)) for x in levels)}"
        )
    return jax.lax.stop_gradient(
        Inputs(
            jnp.asarray(points).astype(dtype),
            jnp.asarray(strides).astype(dtype),
            boxes,
            [jnp.asarray(level) for level in levels],
            gt_boxes,
            gt_labels,
            valid,
        )
    )


class Members(NamedTuple):
    """The first `size` of some priors, by their indices."""

    indices: jax.Array  # (k,)
    size: jax.Array  # how many of them

    def include(self, index: jax.Array) -> jax.Array:
        """Which of the priors at these indices (N,) are members."""
        # By indices and not by the values that chose them, which need not be the same bits in
        # another kernel. One by one, since a reduction over an axis of k is no vector code.
        members = [(index == self.indices[i]) & (i < self.size) for i in range(len(self.indices))]
        return functools.reduce(operator.or_, members)


def least_members(numbers: Callable[..., Any], inputs: Inputs, k: int) -> tuple[Any, jax.Array]:
    """The k least values (k,) of a box among all priors, and their indices.

    Args:
      numbers: From a slice of the priors, and what has to be there before, to their values (n,).
      inputs: The priors.
      k: How many.
    """

    given = (lambda *which: (numbers(*which), None), inputs.all_priors(), k)
    (least,) = k_least(*given, at_once=LEAST_OF_KEPT_IN_A_KERNEL)
    return least.values, least.others


class Claims(NamedTuple):
    """Which boxes claim each of the priors, while box after box is visited."""

    number: jax.Array  # (N,): of the claiming box, 0 for none, -1 where there are several
    best: Best  # of all boxes, also those that do not claim

    def after(self, number: jax.Array, claims: jax.Array, scores: jax.Array) -> "Claims":
        """With a box that claims some priors, and its scores (N,), the larger the better."""
        several = jnp.where(self.number == 0, number, -1)
        return Claims(
            jnp.where(claims, several, self.number).astype(self.number.dtype),
            self.best.or_box(number, scores),
        )

    def gt_inds(self) -> jax.Array:
        """The claiming box of each prior; of a contested one the best of all; 0 for none."""
        return jnp.where(self.number < 0, self.best.numbers, self.number)


def no_claims(inputs: Inputs) -> Claims:
    """The state before the first box."""
    best = no_box_yet(inputs.valid, inputs.gt_labels, inputs.points.dtype, score=-jnp.inf)
    return Claims(best.numbers, best)


def dynamic_k(
    iou: Callable[..., Any], cost: Callable[..., Any], inputs: Inputs, topk: int
) -> Members:
    """The k priors of least cost of a box, k the sum of its `topk` largest IoUs.

    k is at least 1, and cut to a whole number. Both arguments are as `least_members` takes them;
    the cost is infinite, and the IoU 0, for priors that take no part.
    """
    negated, _ = least_members(lambda *which: -iou(*which), inputs, topk)
    # The order of the sum is not mmdet's: k can differ by 1 where the sum is a whole number but for
    # its last digit.
    k = jnp.maximum((-negated).sum().astype(jnp.int32), 1)
    costs, indices = least_members(cost, inputs, topk)
    return Members(indices, jnp.minimum(k, (costs < jnp.inf).sum(dtype=k.dtype)))


def assign_by_cost(
    inputs: Inputs,
    truth: tuple[jax.Array, ...],
    compute: Callable[[Any, jax.Array, slice], tuple[jax.Array, jax.Array]],
    takes_part: jax.Array,
    topk: int,
    unassigned: float,
) -> Assignment:
    """Each box to its `dynamic_k` priors; a contested one to the box of least cost among all.

    Args:
      inputs: What is assigned by.
      truth: Arrays (G, ...) that `compute` gets of a box.
      compute: The costs and IoUs of a box, as `Rules` has it and `dynamic_k` takes them.
      takes_part: (N,) which priors do.
      topk: See `dynamic_k`.
      unassigned: The overlap of priors without a box.
    """
    index = jnp.arange(len(inputs.points), dtype=jnp.int32)

    def measure(numbers: Any) -> Members:
        return dynamic_k(
            lambda *which: numbers(*which)[1], lambda *which: numbers(*which)[0], inputs, topk
        )

    def visit(claims: Claims, number: jax.Array, numbers: Any, members: Members) -> Claims:
        return claims.after(number, members.include(index), -numbers[0])

    rules = Rules(compute, measure, visit, keeps=True)
    gt_inds = visit_boxes(rules, no_claims(inputs), truth, inputs.gt_labels).gt_inds()
    iou = overlaps(inputs.pred_boxes, pick(inputs.gt_boxes, gt_inds), "iou", EPS)
    return result(inputs, gt_inds, iou, iou, unassigned, takes_part)


def largest_of_boxes(values: jax.Array, gt_inds: jax.Array, count: int) -> jax.Array:
    """Of each of `count` boxes the largest of its priors' values (N,), at least 0."""

    def by_scatter(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
        none_first = jnp.zeros(1 + count, values.dtype)
        return none_first.at[jnp.maximum(gt_inds, 0)].max(values)[1:]

    def by_masks(values: jax.Array, gt_inds: jax.Array) -> jax.Array:
        numbers = 1 + jnp.arange(count, dtype=gt_inds.dtype)
        return jnp.where(gt_inds[None] == numbers[:, None], values[None], 0).max(axis=1, initial=0)

    # A CPU would hold the masks of all boxes in memory, and a TPU would scatter one by one.
    return jax.lax.platform_dependent(values, gt_inds, cpu=by_scatter, default=by_masks)


def result(
    inputs: Inputs,
    gt_inds: jax.Array,
    overlaps: jax.Array,
    metrics: jax.Array,
    unassigned: float,
    takes_part: jax.Array,
) -> Assignment:
    """The assignment.

    Args:
      inputs: What was assigned by.
      gt_inds, overlaps, metrics: (N,) of all priors; anything where there is no box.
      unassigned: The overlap of priors without a box, unless no box or no prior takes part: 0.
      takes_part: (N,) which priors do.
    """
    labels = jnp.where(gt_inds > 0, pick(inputs.gt_labels, gt_inds), -1)
    there = (inputs.gt_labels >= 0).any() & takes_part.any()
    nothing = jnp.where(there, as_dtype(overlaps.dtype, unassigned), 0)
    return Assignment(
        jnp.where(inputs.valid, gt_inds, DROPPED),
        labels,
        jnp.where(gt_inds > 0, overlaps, nothing),
        jnp.where(gt_inds > 0, metrics, 0),
    )


@dataclass(frozen=True, kw_only=True)
class PredictionAssigner(FrozenModule):
    """Base of the assigners that look at predictions: a subclass is its fields and its function."""

    def assign_predictions(
        self,
        points: jax.Array,
        strides: jax.Array,
        pred_boxes: jax.Array,
        scores: Scores,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        valid: jax.Array | None = None,
        *gt_centers: jax.Array | None,
    ) -> Assignment:
        """The ground truth of each prediction of one image; `vmap` for a batch.

        Args:
          points: (N, 2) x, y of the priors, in pixels.
          strides: (N,) of their levels, in pixels.
          pred_boxes: (N, 4) as x1, y1, x2, y2, in pixels.
          scores: (N, C), or one array (n, C) of each level: logits or probabilities, as the
            function says.
          gt_boxes: (G, 4) as the predictions. Rows of padding are not read.
          gt_labels: (G,) Class indices, integers of any width; negative for padding.
          valid: (N,) False for priors to drop. None drops none.
          gt_centers: (G, 2) x, y of the ground truths' masks, for those whose function takes it.
        """
        found: Assignment = self.functions[0](
            points,
            strides,
            pred_boxes,
            scores,
            gt_boxes,
            gt_labels,
            valid,
            *gt_centers,
            **self.settings,
        )
        return found
