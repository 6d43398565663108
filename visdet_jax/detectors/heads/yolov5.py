"""YOLOv5's head as mmyolo has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import clip_to_image, convert_boxes
from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.checks import check_array
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Number, Range
from visdet_jax.detectors.assigners.assigner import EPS, IGNORED, pick
from visdet_jax.detectors.heads._mmyolo import from_mmyolo
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.postprocessing import NMS, TestConfig
from visdet_jax.detectors.priors import Grid, Sizes, YOLOAnchorGenerator
from visdet_jax.detectors.registry import HEADS, TASK_UTILS
from visdet_jax.detectors.structures import (
    AxisName,
    Candidates,
    HeadOutputs,
    HeadTargets,
    Image,
    Losses,
    Rows,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.yolo_iou import YOLOIoULoss
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import AVG_FACTOR_EPS
from visdet_jax.registry import as_dict, is_config

# Where a box may be learnt: its own cell, one beside it, and one above or below it.
CELLS = 3
ONE = 1 - AVG_FACTOR_EPS  # The losses add it again.


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class YOLOv5Head(DenseHead):
    """YOLOv5 as mmyolo has it: anchors of like shape, in the box's cell and in those near it.

    A box of width w and height h is learnt by every anchor (a, b) of every level with
    max(w/a, a/w, h/b, b/h) < `prior_match_thr`, in the cell of its centre and in the neighbours,
    of the four, whose border is nearer to the centre than `near_neighbor_thr` cells. So a prior may
    learn several boxes, and a box may be learnt by many. With B images, all losses are B · the sum
    over the levels: `loss_bbox` and `loss_cls` of the mean over what is learnt on the level, 0
    where nothing is; and `loss_obj` of the level's weight times the mean over all its priors, each
    of which learns the overlap of its own box (by `loss_bbox`, without a gradient, at least 0).
    `image_shapes` and `pad_shapes` have no effect on the losses. With one class `loss_cls` is 0.

    Of several boxes at one prior the objectness learns the largest overlap; torch leaves it open
    which one. `targets` says of each prior the box of that overlap (of equal ones the last), the
    overlap as its `metrics`, and in `candidates` everything that is learnt. The slots of an image
    are those of each level with cells, box, anchor and one of three places: the box's cell, one
    beside it, and one above or below it. A box whose centre lies exactly between two cells counts
    once more in its own, as in mmyolo. Its cells outside of the image learn nothing; mmyolo wraps
    them around, or raises. A box without width or height is not learnt.

    `bbox_preds` are x, y, w, h of each anchor: the centre is 2 sigmoid(x) - 0.5 cells from the
    cell's corner, and the width is 4 sigmoid(w)² times the anchor's.

    On several devices mmyolo takes each device's own means; here the mean of the devices' losses
    is the loss of the whole batch.

    Args:
      prior_generator: Makes the anchors, and knows the strides.
      loss_cls: Loss of the class logits of what is learnt, with a sigmoid. It gets their labels.
      loss_bbox: Loss of boxes x, y, w, h in cells, and the overlap that the objectness learns.
      loss_obj: Loss of the objectness logits, whose targets are in [0, 1].
      prior_match_thr: How many times larger or smaller than an anchor a side may be, above 1.
        Larger values make more anchors learn a box.
      near_neighbor_thr: How near to a neighbour a centre has to be, in cells, from 0 to 0.5. Larger
        values make more cells learn a box.
      ignore_iof_thr: A prior learns nothing where a region to ignore covers more than this part
        of its anchor, in [0, 1]. Larger values ignore fewer priors. -1 takes no such regions.
      obj_level_weights: Factor of each level's `loss_obj`, at least 0.

    Source: Jocher 2020, https://github.com/ultralytics/yolov5; mmyolo's `YOLOv5Head`. Where a batch
      has regions to ignore, mmyolo ignores a prior in one image alone, the one whose region covers
      it most, and divides `loss_cls` by the number of targets alone, without that of the classes.
    """

    detects_by_joint_scores: ClassVar[bool] = True
    ranks_levels_together: ClassVar[bool] = True
    bbox_format: ClassVar[str] = "xywh"

    prior_generator: YOLOAnchorGenerator = YOLOAnchorGenerator(
        base_sizes=(
            ((10, 13), (16, 30), (33, 23)),
            ((30, 61), (62, 45), (59, 119)),
            ((116, 90), (156, 198), (373, 326)),
        ),
        strides=(8, 16, 32),
    )
    loss_cls: Loss = CrossEntropyLoss(use_sigmoid=True, loss_weight=0.5)
    loss_bbox: Loss = YOLOIoULoss(loss_weight=0.05)
    loss_obj: Loss = CrossEntropyLoss(use_sigmoid=True)
    prior_match_thr: Annotated[Number, Range(1, without_low=True)] = 4.0
    near_neighbor_thr: Annotated[Number, Range(0, 0.5)] = 0.5
    ignore_iof_thr: Annotated[float, Range(-1, 1)] = -1.0
    obj_level_weights: Annotated[tuple[float, ...], Range(0)] = (4.0, 1.0, 0.4)
    test_cfg: TestConfig = TestConfig(
        score_thr=0.001, nms_pre=30000, nms=NMS(iou_threshold=0.65), max_per_img=300
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_unless_sigmoid()
        if len(self.obj_level_weights) != len(self.strides):
            raise self.value_error(
                f"{len(self.strides)} levels need as many obj_level_weights: "
                f"{self.obj_level_weights}"
            )
        if -1 < self.ignore_iof_thr < 0:
            raise self.value_error(
                f"ignore_iof_thr must be in [0, 1], or -1, got {self.ignore_iof_thr}"
            )
        if not isinstance(self.loss_bbox, YOLOIoULoss):
            raise self.value_error(f"loss_bbox must be YOLOIoULoss, got {self.loss_bbox!r}")

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmyolo.

        Raises: ValueError for a key that stands twice, and for a `head_module` of other strides or
          another number of anchors than the `prior_generator`.
        """
        module = as_dict(settings.get("head_module") or {})
        settings = from_mmyolo(settings, train_cfg)
        generator: Any = settings.get("prior_generator", YOLOv5Head.prior_generator)
        if is_config(generator):
            generator = settings["prior_generator"] = TASK_UTILS.build(generator)
        strides, count = list(generator.strides), generator.num_base_priors
        given = list(module.get("featmap_strides", strides)), module.get("num_base_priors", count)
        if given != (strides, count):
            raise ValueError(
                f"YOLOv5Head: head_module has featmap_strides {given[0]} and {given[1]} "
                f"num_base_priors, and prior_generator strides {strides} and {count} anchors"
            )
        return settings

    @described_by(DenseHead.update)
    @compiled
    def update(
        self,
        state: States,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        ignore_flags: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          ignore_flags: (B, G) bool: which of the boxes are regions to ignore, and not learnt. Their
            labels count for nothing, but negative ones are padding. None has no such region.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit, and for `ignore_flags`
          where `ignore_iof_thr` is -1.
        """
        truth = (gt_boxes, gt_labels, image_shapes, pad_shapes)
        targets = self.targets(outputs, *truth, ignore_flags=ignore_flags)
        return self.losses_of(state, outputs, targets, axis_name)

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        ignore_flags: jax.Array | None = None,
    ) -> HeadTargets:
        """What each prior learns, and in `candidates` all that is. The arguments are `loss`'s."""
        images = self.images(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        if ignore_flags is not None:
            self._check_flags(ignore_flags, gt_labels)
            if gt_labels.shape[1]:  # Without boxes there is one row of padding.
                images = images._replace(ignore_flags=jnp.asarray(ignore_flags, bool))
        return self.assign_all(outputs, images)

    def _check_flags(self, ignore_flags: Any, gt_labels: Any) -> None:
        check_array("ignore_flags", ignore_flags)
        if self.ignore_iof_thr < 0:
            raise ValueError("ignore_flags need an ignore_iof_thr in [0, 1]")
        if ignore_flags.shape != gt_labels.shape:
            raise ValueError(
                f"ignore_flags must have shape {gt_labels.shape}, got {ignore_flags.shape}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        return self.prior_generator.strides

    @property
    def num_base_priors(self) -> int:
        return self.prior_generator.num_base_priors

    @property
    def channels(self) -> dict[str, int]:
        return super().channels | {"objectnesses": 1}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        objectness = jax.ShapeDtypeStruct((rows,), "float32")
        return super().examples(rows) | {"loss_obj": (objectness, objectness)}

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return self.prior_generator.grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        learns = image.gt_labels >= 0
        # Keep these `where` whose sides are equal. Arrays that rows are put into have to be spread
        # over devices as the images are, or the put is an error on an explicit mesh.
        data = learns.any()
        no_number = jnp.where(data, jnp.zeros(len(grid.priors), jnp.int32), 0)
        no_quality = jnp.where(data, jnp.zeros(len(grid.priors), grid.priors.dtype), 0)
        ignored = None
        if image.ignore_flags is not None:
            ignored = self._ignored(grid, image.gt_boxes, learns & image.ignore_flags)
            learns &= ~image.ignore_flags
        candidates = self._candidates(grid, image, learns, ignored)
        places, exists = candidates.priors, candidates.weights > 0
        raw = jnp.concatenate(image.outputs["bbox_preds"])[places].astype(grid.priors.dtype)
        pred = self._boxes_in_cells(raw, [i for i, n in enumerate(grid.level_sizes) if n])
        overlap = 1 - self.loss_bbox.compute(
            pred, candidates.bbox_targets, None, reduction="none", avg_factor=None
        )
        # Keep the barrier: what is compared has to be the same bits in every kernel.
        quality = jax.lax.optimization_barrier(jnp.where(exists, jnp.maximum(overlap, 0), 0))
        metrics = no_quality.at[places].max(quality)
        numbers = 1 + jnp.arange(len(places), dtype=jnp.int32)
        winners = jnp.where(exists & (quality == metrics[places]), numbers, 0)
        best = no_number.at[places].max(winners)
        gt_inds = jnp.where(best > 0, pick(candidates.gt_inds, best), 0)
        targets = self.make_targets(
            gt_inds if ignored is None else jnp.where(ignored, IGNORED, gt_inds),
            pick(candidates.labels, best),
            pick(candidates.bbox_targets, best),
        )
        # Not by `make_targets`: the losses read only these, and need no box of each prior.
        weights = no_quality + 1 if ignored is None else (~ignored).astype(metrics.dtype)
        return targets._replace(label_weights=weights, metrics=metrics, candidates=candidates)

    def _ignored(self, grid: Grid, gt_boxes: jax.Array, regions: jax.Array) -> jax.Array:
        """Which priors (N,) are covered too much by one of the boxes (G, 4) that are regions."""
        priors = jnp.asarray(grid.priors)[:, None]
        least, threshold = as_dtype(priors.dtype, EPS, self.ignore_iof_thr)
        covered = overlaps(priors, gt_boxes[None], "iof", least) > threshold
        return (covered & regions[None]).any(axis=1)

    def _candidates(
        self, grid: Grid, image: Image, learns: jax.Array, ignored: jax.Array | None
    ) -> Candidates:
        """What one image's priors learn of the boxes of which `learns` (G,) says so.

        The slots are those of L levels with cells, G boxes, A anchors and `CELLS` places.
        """
        dtype = grid.priors.dtype
        levels = [i for i, size in enumerate(grid.level_sizes) if size]
        strides = np.array([self.strides[i] for i in levels], dtype).reshape(-1, 1, 1)
        extent = np.array([grid.sizes[i][::-1] for i in levels], dtype).reshape(-1, 1, 2)
        starts = np.cumsum((0, *grid.level_sizes), dtype=np.int32)[levels].reshape(-1, 1, 1, 1)
        match_thr, near = as_dtype(dtype, self.prior_match_thr, self.near_neighbor_thr)
        boxes = convert_boxes(image.gt_boxes)[None]
        at, size = boxes[..., :2] / strides, boxes[..., 2:] / strides  # (L, G, 2)

        ratio = size[:, :, None] / self._anchors(levels, dtype)[:, None]  # (L, G, A, 2)
        fits = (ratio > 0) & (jnp.maximum(ratio, 1 / ratio) < match_thr)
        fits = fits.all(axis=-1) & learns[None, :, None]

        # Of each axis, whether the cell before or the one after the box's own learns it too.
        before = (at % 1 < near) & (at > 1)
        after = ((extent - at) % 1 < near) & (extent - at > 1)
        own = jnp.trunc(at)
        # Half a cell after a whole number is still the box's own cell.
        again = after & (jnp.trunc(at + near) == own)
        beside = jnp.where(before, jnp.trunc(at - near), jnp.trunc(at + near))
        has_beside = before | (after & ~again)
        (x, y), (other_x, other_y) = (jnp.moveaxis(cell, -1, 0) for cell in (own, beside))
        columns = jnp.stack([x, other_x, x], axis=-1)  # (L, G, CELLS)
        rows = jnp.stack([y, y, other_y], axis=-1)
        in_own = 1 + again.sum(axis=-1, keepdims=True, dtype=dtype)
        times = jnp.concatenate([in_own, has_beside.astype(dtype)], axis=-1)
        width, height = extent[..., :1], extent[..., 1:]
        inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        times = jnp.where(inside, times, 0)

        cell = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
        cell = cell.astype(jnp.int32)
        count = self.num_base_priors
        anchors = np.arange(count, dtype=np.int32).reshape(1, 1, -1, 1)
        priors = starts + cell[:, :, None] * count + anchors  # (L, G, A, CELLS)
        weights = jnp.where(fits[..., None], times[:, :, None], 0)
        if ignored is not None:
            weights = jnp.where(ignored[priors], 0, weights)
        exists = weights > 0
        sides = (jnp.broadcast_to(size[..., i, None], rows.shape) for i in (0, 1))
        center = (at[..., 0, None] - columns, at[..., 1, None] - rows)
        learnt = jnp.stack([*center, *sides], axis=-1)[:, :, None]

        def of_box(x: jax.Array, nothing: int) -> jax.Array:
            return jnp.where(exists, x[None, :, None, None], nothing).reshape(-1)

        return Candidates(
            priors=jnp.where(exists, priors, 0).reshape(-1),
            gt_inds=of_box(1 + jnp.arange(len(learns), dtype=jnp.int32), 0),
            labels=of_box(image.gt_labels, self.num_classes),
            bbox_targets=jnp.where(exists[..., None], learnt, 0).reshape(-1, 4),
            weights=weights.reshape(-1),
        )

    def _anchors(self, levels: Sequence[int], dtype: Any) -> np.ndarray:
        """Widths and heights (L, A, 2) of the anchors of levels, in strides."""
        anchors = [
            np.array(self.prior_generator.base_sizes[i], dtype) / self.strides[i] for i in levels
        ]
        return np.array(anchors, dtype).reshape(len(levels), self.num_base_priors, 2)

    def _boxes_in_cells(self, raw: jax.Array, levels: Sequence[int]) -> jax.Array:
        """x, y, w, h from the cells' corners, in cells, of what the network gives (..., K, 4).

        Args:
          raw: In the slots of `_candidates`.
          levels: Those with cells.
        """
        anchors = self._anchors(levels, raw.dtype)[:, None, :, None]
        of_box = max(anchors.size // 2 * CELLS, 1)
        shape = (len(levels), raw.shape[-2] // of_box, self.num_base_priors, CELLS, 2)
        anchors = np.broadcast_to(anchors, shape).reshape(*[1] * (raw.ndim - 2), -1, 2)
        parts = 2 * jax.nn.sigmoid(raw)
        return jnp.concatenate([parts[..., :2] - 0.5, parts[..., 2:] ** 2 * anchors], axis=-1)

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        candidates: Any = targets.candidates
        weights, dtype = candidates.weights, candidates.weights.dtype
        levels = [i for i, level in enumerate(criterion.levels) if level.stop > level.start]
        each = weights.shape[1] // max(len(levels), 1)
        slots = [slice(i * each, (i + 1) * each) for i in range(len(levels))]
        weights = _of_means(criterion, weights, slots, [1.0] * len(levels))
        if self.num_classes > 1 and levels:
            named = {f"cls_scores[{i}]": x for i, x in enumerate(rows.cls_scores)}
            logits = []
            for i, slot in zip(levels, slots, strict=True):
                scores, start = rows.cls_scores[i], int(criterion.levels[i].start)
                places = jnp.clip(candidates.priors[:, slot] - start, 0, scores.shape[1] - 1)
                # Keep half floats until the rows are taken, though gradients of a prior that learns
                # several boxes are added up in them. In float32 the gradient by all scores would be
                # one more array: 15 times the scratch memory (H200, 16 images, jax 0.12.0.1).
                logits.append(_take(scores, places).astype(compute_dtype(**named)))
            of_classes = jnp.concatenate(logits, axis=1)
            count = self.num_classes
            criterion.add("loss_cls", of_classes, candidates.labels, weights / count, ONE, slots)
        else:
            criterion.losses["loss_cls"] = jnp.zeros((), dtype)
        factors = [self.obj_level_weights[i] for i in levels]
        parts = [criterion.levels[i] for i in levels]
        of_priors = _of_means(criterion, targets.label_weights, parts, factors)
        criterion.add("loss_obj", rows.objectnesses, targets.metrics, of_priors, ONE)
        raw = _take(rows.bbox_preds.astype(dtype), candidates.priors)
        pred = self._boxes_in_cells(raw, levels)
        criterion.add("loss_bbox", pred, candidates.bbox_targets, weights, ONE, slots)
        batch = criterion.total(jnp.asarray(weights.shape[0], dtype))
        criterion.losses = {name: loss * batch for name, loss in criterion.losses.items()}

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        strides = jnp.asarray(grid.strides)[None, :, None]
        anchors = convert_boxes(jnp.asarray(grid.priors)[None])
        parts = 2 * jax.nn.sigmoid(bbox_preds.astype(anchors.dtype))
        center = anchors[..., :2] + (parts[..., :2] - 1) * strides
        size = anchors[..., 2:] * parts[..., 2:] ** 2
        boxes = convert_boxes(jnp.concatenate([center, size], axis=-1), "cxcywh", "xyxy")
        return clip_to_image(boxes, image_shapes)


def _of_means(
    criterion: Criterion, weights: jax.Array, levels: Sequence[slice], factors: Sequence[float]
) -> jax.Array:
    """Weights (B, n) by which a sum is the sum over the levels of factor · the weighted mean."""
    parts = []
    for level, factor in zip(levels, factors, strict=True):
        part = weights[:, level]
        parts.append(part * (as_dtype(part.dtype, factor) / criterion.total(part.sum())))
    return jnp.concatenate(parts, axis=1) if parts else weights


def _take(x: jax.Array, places: jax.Array) -> jax.Array:
    """The rows (B, K, ...) of x (B, N, ...) at the places (B, K)."""
    rows: jax.Array = jax.vmap(lambda x, i: x[i])(x, places)
    return rows
