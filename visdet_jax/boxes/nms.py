"""Non-maximum suppression into a fixed number of slots."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import replicated
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Count, Finite, Fraction, Number
from visdet_jax.core.jitted import jitted

# How many boxes are looked at together. 8 819 boxes into 1 000 slots take 4 to 5 ms on one CPU core
# with 64 to 512, and one row at a time 60 to 200 ms. Larger blocks are fewer kernels on an
# accelerator; those above 512 are slower on a CPU (1 024: 6 ms; jax 0.10.2).
BLOCK = 512

# The boxes (K, 4) and the groups (K,) of K indices.
Fetch = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


@exportable
class Kept(NamedTuple):
    """Which boxes non-maximum suppression keeps, best score first."""

    indices: jax.Array  # (S,) int32; 0 in slots that hold no box.
    exists: jax.Array  # (S,) bool: whether the slot holds a box. Those that do come first.


@exportable
class KeptDetections(NamedTuple):
    """The detections that non-maximum suppression keeps, best score first."""

    boxes: jax.Array  # (S, 4) as x1, y1, x2, y2, in pixels; 0 in slots that hold none.
    scores: jax.Array  # (S,); 0 in slots that hold none.
    labels: jax.Array  # (S,) int32: the class; -1 in slots that hold none.
    indices: jax.Array  # (S,) int32: the row of `boxes` and `scores`; 0 in slots that hold none.
    exists: jax.Array  # (S,) bool: whether the slot holds a detection. Those that do come first.


@jitted(static=("max_out",))
def nms(
    boxes: jax.Array,
    scores: jax.Array,
    iou_threshold: Fraction | None,
    valid: jax.Array | None = None,
    *,
    max_out: Count,
) -> Kept:
    """Non-maximum suppression: the best boxes, without those that overlap a better one.

    In order of descending score (the first of equal ones first) a box is kept if its IoU with no
    box kept before is above `iou_threshold`, until `max_out` are kept. The IoU of two boxes
    without area is 0 / 0, and they do not suppress each other.

    Boxes are looked at in blocks: a block against the boxes kept so far, then against itself. So
    memory is a few times (512, max_out), whatever N is, and the work ends with the last valid box
    or when all slots hold a box. Compiled once for all boxes of one shape; `vmap` for a batch, in
    which the image that needs most blocks decides. No gradient flows through it.

    Args:
      boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: (N,) of any scale. A box whose score is NaN is not kept.
      iou_threshold: IoU above which the worse of two boxes is left out, in [0, 1]. Larger values
        keep more boxes. None leaves out none: the best scores alone, without a loop.
      valid: (N,) False for padding, of which nothing is read. None pads none.
      max_out: The number S of slots, at least 1; it may be larger than N.

    Returns: the indices of the kept boxes in their slots, and which slots hold one.
    Raises: ValueError for shapes that do not fit.
    Source: mmcv's and torchvision's `nms`, cut after the first `max_out`.
    """
    boxes, scores, valid = _prepare(boxes, scores, valid)
    groups = jnp.zeros(scores.shape, jnp.int32)
    return _keep_boxes(boxes, scores, groups, iou_threshold, valid, max_out)


@jitted(static=("max_out",))
def batched_nms(
    boxes: jax.Array,
    scores: jax.Array,
    groups: jax.Array,
    iou_threshold: Fraction | None,
    valid: jax.Array | None = None,
    *,
    max_out: Count,
    class_agnostic: bool = False,
) -> Kept:
    """Non-maximum suppression of several groups at once: of classes, or of levels.

    As `nms`, but only boxes of one group suppress each other. The slots are of all groups
    together, best score first.

    mmcv and torchvision move the groups apart by adding a multiple of the largest coordinate to
    the boxes. Here groups are compared: coordinates lose no precision, and boxes with negative
    coordinates do not reach into another group.

    Args:
      boxes: (N, 4) as x1, y1, x2, y2, in pixels.
      scores: (N,) of any scale. A box whose score is NaN is not kept.
      groups: (N,) the class or level of each box, integers of any width.
      iou_threshold: IoU above which the worse of two boxes of a group is left out, in [0, 1].
        Larger values keep more boxes. None leaves out none: the best scores alone, without a loop.
      valid: (N,) False for padding, of which nothing is read. None pads none.
      max_out: The number S of slots, at least 1; it may be larger than N.
      class_agnostic: Whether boxes of different groups suppress each other too.

    Returns: the indices of the kept boxes in their slots, and which slots hold one.
    Raises: ValueError for shapes that do not fit, TypeError for groups that are no integers.
    Source: mmcv's `batched_nms`, cut after the first `max_out`.
    """
    boxes, scores, valid = _prepare(boxes, scores, valid)
    groups = as_labels("groups", groups, scores.shape)
    groups = jnp.zeros_like(groups) if class_agnostic else replicated(groups)
    return _keep_boxes(boxes, scores, groups, iou_threshold, valid, max_out)


@jitted(static=("max_per_img", "max_candidates"))
def multiclass_nms(
    boxes: jax.Array,
    scores: jax.Array,
    score_thr: Finite,
    iou_threshold: Fraction | None,
    valid: jax.Array | None = None,
    score_factors: jax.Array | None = None,
    *,
    max_per_img: Count,
    max_candidates: Count | None = None,
    class_agnostic: bool = False,
) -> KeptDetections:
    """The detections of an image: each box and class above a score, without duplicates.

    Each of the N · C pairs of a box and a class whose score is above `score_thr` is a candidate;
    then comes `batched_nms` with the classes as groups. The pairs are sorted, and beside that
    memory is as in `nms`: no array (N, C, 4) is made for boxes (N, 4).

    Args:
      boxes: (N, 4) as x1, y1, x2, y2, in pixels, or (N, C, 4) with a box for each class.
      scores: (N, C) of each class, without the background.
      score_thr: Score above which a pair is a candidate. Larger values leave fewer detections.
      iou_threshold: IoU above which the worse of two detections of a class is left out, in [0, 1].
        Larger values keep more. None leaves out none: the best scores alone, without a loop.
      valid: (N,) False for padding, of which nothing is read. None pads none.
      score_factors: (N,) what the scores are multiplied by after the comparison with `score_thr`,
        such as a centerness. None multiplies by nothing.
      max_per_img: The number S of slots, at least 1.
      max_candidates: The number of best pairs that take part, at least 1. It bounds the time for
        many classes, and what comes after is lost. None takes all, as mmdet.
      class_agnostic: Whether detections of different classes suppress each other too.

    Returns: the detections in their slots, and which slots hold one.
    Raises: ValueError for shapes that do not fit.
    Source: mmdet's `multiclass_nms`, whose scores have a background in the last column.
    """
    check_array("boxes", boxes)
    check_array("scores", scores)
    if scores.ndim != 2:
        raise ValueError(f"scores must have shape (N, C), got {scores.shape}")
    rows, classes = scores.shape
    if boxes.shape not in ((rows, 4), (rows, classes, 4)):
        raise ValueError(
            f"boxes must have shape {(rows, 4)}, or {(rows, classes, 4)} with a box for each "
            f"class, got {boxes.shape}"
        )
    if boxes.ndim == 2:
        boxes = boxes[:, None]
    per_box = boxes.shape[1]
    dtype = compute_dtype(boxes=boxes, scores=scores)
    valid = _valid(valid, rows)
    boxes, scores = replicated(boxes).astype(dtype), replicated(scores).astype(dtype)
    candidate = (scores > as_dtype(dtype, score_thr)) & valid[:, None]
    if score_factors is not None:
        check_array("score_factors", score_factors)
        if score_factors.shape != (rows,):
            raise ValueError(f"score_factors must have shape {(rows,)}, got {score_factors.shape}")
        scores *= replicated(score_factors).astype(dtype)[:, None]

    flat = jax.lax.stop_gradient(scores.reshape(-1))
    most = max_candidates
    if iou_threshold is None:
        most = max_per_img if most is None else min(most, max_per_img)
    order, total = _sorted(flat, candidate.reshape(-1), most)
    flat_boxes = jax.lax.stop_gradient(boxes.reshape(rows * per_box, 4))

    def fetch(pair: jax.Array) -> tuple[jax.Array, jax.Array]:
        label = pair % classes
        index = pair if per_box == classes else pair // classes
        return flat_boxes[index], jnp.zeros_like(label) if class_agnostic else label

    kept = _keep(fetch, order, total, iou_threshold, max_per_img)
    if not rows * classes:  # There is nothing to read.
        nothing = jnp.zeros(max_per_img, dtype)
        no_boxes = jnp.zeros((max_per_img, 4), dtype)
        return KeptDetections(no_boxes, nothing, kept.indices - 1, *kept)
    index, label = kept.indices // classes, kept.indices % classes
    found = boxes[index, label if per_box > 1 else jnp.zeros_like(label)]
    return in_slots(kept.exists, found, scores[index, label], label, index)


def in_slots(
    exists: jax.Array, boxes: jax.Array, scores: jax.Array, labels: jax.Array, indices: jax.Array
) -> KeptDetections:
    """The detections of S slots, with what slots that hold none should hold."""
    return KeptDetections(
        boxes=jnp.where(exists[:, None], boxes, 0),
        scores=jnp.where(exists, scores, 0),
        labels=jnp.where(exists, labels, -1),
        indices=jnp.where(exists, indices, 0),
        exists=exists,
    )


def _prepare(boxes: Any, scores: Any, valid: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Boxes and scores in the type that is computed in, whole on each device, and `valid`."""
    dtype = compute_dtype(boxes=boxes, scores=scores)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {boxes.shape}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores must have shape {boxes.shape[:1]}, got {scores.shape}")
    boxes, scores = (jax.lax.stop_gradient(replicated(x)).astype(dtype) for x in (boxes, scores))
    return boxes, scores, _valid(valid, len(boxes))


def _valid(valid: Any, rows: int) -> jax.Array:
    """Which rows are no padding."""
    if valid is None:
        return jnp.ones(rows, bool)
    check_array("valid", valid)
    if valid.shape != (rows,):
        raise ValueError(f"valid must have shape {(rows,)}, got {valid.shape}")
    return replicated(valid).astype(bool)


def _sorted(
    scores: jax.Array, valid: jax.Array, most: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """The indices of the scores, best first and padding last, and how many are valid.

    Where `most` is given, only so many of the best.
    """
    valid &= ~jnp.isnan(scores)
    total = valid.sum(dtype=jnp.int32)
    if most is not None and most < scores.size:
        # A valid -inf must not stand behind padding.
        lowest = jnp.maximum(scores, jnp.finfo(scores.dtype).min)
        _, order = jax.lax.top_k(jnp.where(valid, lowest, -jnp.inf), most)
        return order.astype(jnp.int32), jnp.minimum(total, most)
    # NaN is sorted behind everything else, infinities too. Equal ones stay in their order.
    key = jnp.where(valid, -scores, jnp.nan)
    numbers = jnp.arange(scores.size, dtype=jnp.int32)
    return jax.lax.sort((key, numbers), num_keys=1, is_stable=True)[1], total


class _Slots(NamedTuple):
    """What is kept so far."""

    start: jax.Array  # Of the next block.
    filled: jax.Array  # How many of the slots.
    indices: jax.Array  # (S,)
    boxes: jax.Array  # (S, 4)
    groups: jax.Array  # (S,)


def _keep_boxes(
    boxes: jax.Array,
    scores: jax.Array,
    groups: jax.Array,
    iou_threshold: Number | None,
    valid: jax.Array,
    slots: int,
) -> Kept:
    """Greedy suppression of boxes (N, 4) by others of their group."""

    def fetch(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        return boxes[index], groups[index]

    order, total = _sorted(scores, valid, slots if iou_threshold is None else None)
    return _keep(fetch, order, total, iou_threshold, slots)


def _keep(
    fetch: Fetch, order: jax.Array, total: jax.Array, iou_threshold: Number | None, slots: int
) -> Kept:
    """Greedy suppression of the first `total` of the sorted indices `order` (N,)."""
    if not order.size:
        return Kept(jnp.zeros(slots, jnp.int32), jnp.zeros(slots, bool))
    if iou_threshold is None:
        exists = jnp.arange(slots, dtype=jnp.int32) < total
        best = jnp.concatenate([order[:slots], jnp.zeros(max(slots - order.size, 0), order.dtype)])
        return Kept(jnp.where(exists, best, 0), exists)
    size = min(BLOCK, order.size)
    # All blocks have one size; what the last one has too much is beyond `total`.
    order = jnp.concatenate([order, jnp.zeros(-order.size % size, order.dtype)])
    numbers = jnp.arange(size, dtype=jnp.int32)
    earlier = numbers[None] < numbers[:, None]
    slot_numbers = jnp.arange(slots, dtype=jnp.int32)

    def overlapping(
        boxes: jax.Array, groups: jax.Array, others: jax.Array, other_groups: jax.Array
    ) -> jax.Array:
        """Which boxes (K,) are too near to which others (L,), as (K, L)."""
        least, threshold = as_dtype(boxes.dtype, 0, iou_threshold)
        iou = overlaps(boxes[:, None], others[None], "iou", least)
        return (iou > threshold) & (groups[:, None] == other_groups[None])

    def look_at_block(kept: _Slots) -> _Slots:
        indices = jax.lax.dynamic_slice(order, (kept.start,), (size,))
        boxes, groups = fetch(indices)
        near_kept = overlapping(boxes, groups, kept.boxes, kept.groups)
        near_kept &= (slot_numbers < kept.filled)[None]
        left = (kept.start + numbers < total) & ~near_kept.any(1)
        near_earlier = overlapping(boxes, groups, boxes, groups) & earlier
        new = _first_of_each(left, near_earlier)
        # The slots of those that are not kept are beyond the last one, each its own, and dropped.
        rank = jnp.cumsum(new, dtype=jnp.int32)
        place = jnp.where(new, kept.filled + rank - 1, slots + numbers)

        def put(old: jax.Array, rows: jax.Array) -> jax.Array:
            return old.at[place].set(rows, mode="drop", unique_indices=True)

        return _Slots(
            kept.start + size,
            kept.filled + rank[-1],
            put(kept.indices, indices),
            put(kept.boxes, boxes),
            put(kept.groups, groups),
        )

    def goes_on(kept: _Slots) -> jax.Array:
        return (kept.start < total) & (kept.filled < slots)

    # Keep these `where` whose sides are equal; see `unassigned` of the assigners. Inside
    # `shard_map` the state of a loop has to vary over the devices from its start on.
    boxes, groups = fetch(order[:1])
    varies = (total > 0) | (boxes[0, 0] > 0) | (groups[0] > 0)
    kept = jax.lax.while_loop(
        goes_on,
        look_at_block,
        _Slots(
            start=jnp.where(varies, jnp.int32(0), 0),
            filled=jnp.where(varies, jnp.int32(0), 0),
            indices=jnp.where(varies, jnp.zeros(slots, order.dtype), 0),
            boxes=jnp.where(varies, jnp.zeros((slots, 4), boxes.dtype), 0),
            groups=jnp.where(varies, jnp.zeros(slots, groups.dtype), 0),
        ),
    )
    return Kept(kept.indices, slot_numbers < kept.filled)


def _first_of_each(left: jax.Array, near_earlier: jax.Array) -> jax.Array:
    """Which of the boxes that are left (K,) are near no earlier one that is kept, itself.

    All are decided at once, and again, until nothing changes: the first boxes are right after one
    round, and one more link of every chain of suppressions after each other round. A few rounds
    do, where one box after the other would be K steps.
    """

    def decide(kept: jax.Array) -> jax.Array:
        return left & ~(near_earlier & kept[None]).any(1)

    def decide_again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        kept = decide(state[0])
        return kept, (kept != state[0]).any()

    first = decide(left)
    start = first, (first != left).any()
    kept, _ = jax.lax.while_loop(lambda state: state[1], decide_again, start)
    return kept
