"""The first stage of CenterNet2, which is a detector of its own: CenterNet on several levels."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.hyperparameters import Count, Fraction, NonNegative, Positive, Range
from visdet_jax.detectors.assigners.assigner import Rules, no_box_yet, pick, visit_boxes
from visdet_jax.detectors.coders import DistancePointBBoxCoder
from visdet_jax.detectors.heads._heatmaps import draw_heatmaps, peak
from visdet_jax.detectors.heads.criterion import Criterion, avg_factor_of_device
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.fcos import raise_unless_a_range_each
from visdet_jax.detectors.priors import Grid, MlvlPointGenerator, Sizes
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Candidates, HeadTargets, Image, Rows
from visdet_jax.losses.boxes.box_loss import BoxLoss
from visdet_jax.losses.boxes.iou import GIoULoss
from visdet_jax.losses.classification.gaussian_focal import GaussianFocalLoss
from visdet_jax.losses.loss import Loss

LEAST_VALUE = 1e-4  # mmdet's: smaller values of a heatmap are 0.
LEAST_SCORE = 1e-4  # mmdet's: scores are at least this, and at most 1 minus this.
# The cells around a box's own: mmdet's 3 x 3, row by row. The fifth is the own one.
AROUND = np.array([(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1)])
OWN = 4


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class CenterNetUpdateHead(DenseHead):
    """CenterNet2's first stage: heatmaps of centres on all levels, and boxes near the centres.

    The heatmap of a class, on every level, is the maximum over its boxes of exp(-d² / r²), with d
    the distance in pixels of a cell's point from the box's centre, 0 in the cell that the centre is
    in, and r² = max(2 ((1 - hm_min_overlap) / (1 + hm_min_overlap))² · area, hm_min_radius²).
    Values below 1e-4 are 0.

    A box's size is half its diagonal, in pixels, and it belongs to the levels whose range has that,
    both ends included. Its positives for the classes are, on these levels, the cell of its centre;
    and on all levels those of the 3 x 3 cells around it whose `loss_bbox`, before its
    `loss_weight`, is below `more_pos_thresh` and below the `more_pos_topk`-th least of the box,
    where that of a cell of its centre counts as 0. With n their number in the batch, `loss_cls` is
    the sum over the positives, and over all cells as negatives, divided by max(n, 1). A cell may be
    positive for several boxes and counts as often. Scores are clipped to [1e-4, 1 - 1e-4], and have
    no gradient beyond.

    The box of a cell is learnt in the 3 x 3 cells around the centre that are inside the box, on the
    levels to which it belongs; of several boxes it is the one with the least d² / r². `loss_bbox`
    is the sum over these cells divided by their number, at least 1; with `soft_weight_on_reg` they
    are weighted by the largest value of their heatmaps, and the divisor is the sum of the weights.

    `bbox_preds` are distances (left, top, right, bottom) in strides, positive already: after the
    network's ReLU. `image_shapes` and `pad_shapes` have no effect on the losses. In `targets`
    `heatmaps` are the heatmaps, and `candidates` the positives of the classes.

    An image without boxes has a heatmap of 0. mmdet gives it one of C everywhere, which multiplies
    its negatives by (1 - C)^4: 4e7 for 80 classes. And where a centre is in no cell of a level,
    mmdet makes the first cell of the batch a positive; here it has none.

    Args:
      strides: Strides of the levels, in pixels, at least 1.
      regress_ranges: (low, high) of each level, in pixels, of half the diagonals of its boxes.
      hm_min_radius: The least r, in pixels, above 0. Larger values give small boxes wider peaks.
      hm_min_overlap: In [0, 1]. Larger values give narrower peaks.
      more_pos_thresh: At least 0. Larger values give more positives.
      more_pos_topk: At least 1. Larger values give more positives.
      soft_weight_on_reg: Whether `loss_bbox` is weighted by the heatmaps.
      loss_cls: Loss of the heatmaps' probabilities, a `GaussianFocalLoss`.
      loss_bbox: Loss of the boxes, which it gets as x1, y1, x2, y2 in strides, from the point.
      bbox_coder: Between boxes and distances from a point.

    Source: Zhou et al. 2021, https://arxiv.org/abs/2103.07461; mmdet's `CenterNetUpdateHead`
    """

    strides: Annotated[tuple[int, ...], Range(1)] = (8, 16, 32, 64, 128)
    regress_ranges: tuple[tuple[float, ...], ...] = (
        (0, 80),
        (64, 160),
        (128, 320),
        (256, 640),
        (512, 1e9),
    )
    hm_min_radius: Positive = 4.0
    hm_min_overlap: Fraction = 0.8
    more_pos_thresh: NonNegative = 0.2
    more_pos_topk: Count = 9
    soft_weight_on_reg: bool = False
    loss_cls: Loss = GaussianFocalLoss(pos_weight=0.25, neg_weight=0.75)
    loss_bbox: Loss = GIoULoss(loss_weight=2.0)
    bbox_coder: DistancePointBBoxCoder = DistancePointBBoxCoder()

    def __post_init__(self) -> None:
        super().__post_init__()
        raise_unless_a_range_each(self)
        for name, kind in (("loss_cls", GaussianFocalLoss), ("loss_bbox", BoxLoss)):
            if not isinstance(getattr(self, name), kind):
                what = "a GaussianFocalLoss" if name == "loss_cls" else "a loss of whole boxes"
                raise self.value_error(f"{name} must be {what}, got {getattr(self, name)!r}")

    @property
    def use_sigmoid(self) -> bool:
        return True

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        scores, _ = examples["loss_cls"]
        return examples | {"loss_cls": (scores, scores)}

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        return MlvlPointGenerator(strides=self.strides).grid(sizes, dtype)

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        points, strides = jnp.asarray(grid.priors), jnp.asarray(grid.strides)
        gt_inds = self._nearest(grid, image)
        distances = self.bbox_coder.encode(points, pick(image.gt_boxes, gt_inds))
        targets = self.make_targets(
            gt_inds, pick(image.gt_labels, gt_inds), distances / strides[:, None]
        )
        return targets._replace(
            heatmaps=self._heatmaps(grid, image), candidates=self._positives(grid, image)
        )

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        targets = rows.targets
        candidates: Any = targets.candidates
        heatmaps: Any = targets.heatmaps
        weight = candidates.weights
        avg_factor = avg_factor_of_device(criterion.total(weight.sum()), criterion.axis_name)
        # The positives apart, since a cell may be one several times.
        loss_cls: Any = self.loss_cls
        negatives = dataclasses.replace(loss_cls, pos_weight=0.0)
        positives = dataclasses.replace(loss_cls, neg_weight=0.0)
        levels = [i for i, x in enumerate(rows.cls_scores) if x.shape[1]]
        each = weight.shape[1] // max(len(levels), 1)
        total, at_positives = jnp.zeros((), weight.dtype), []
        for i, level in enumerate(levels):
            logits, cells = rows.cls_scores[level], criterion.levels[level]
            scores = _clipped_scores(logits.astype(weight.dtype))
            total += negatives(scores, heatmaps[:, cells], None, avg_factor)
            slots = slice(i * each, (i + 1) * each)
            exists = weight[:, slots] > 0
            row = jnp.where(exists, candidates.priors[:, slots] - int(cells.start), 0)
            label = jnp.where(exists, candidates.labels[:, slots], 0)
            # Keep the two axes of cells and classes. With one axis value and gradient need one
            # more array of the scores' size (XLA:CPU, jax 0.10.2).
            own = jax.vmap(lambda x, row, label: x[row, label])(logits, row, label)
            at_positives.append(own.astype(weight.dtype))
        if levels:
            scores = _clipped_scores(jnp.concatenate(at_positives, axis=1))
            total += positives(scores, jnp.ones_like(scores), weight, avg_factor)
        criterion.losses["loss_cls"] = total
        weight = targets.bbox_weights
        if self.soft_weight_on_reg:
            weight *= heatmaps.max(axis=-1)
        # Around the origin in place of the point, which loses no digits: both boxes move.
        pred, target = map(
            _around_origin, (rows.bbox_preds.astype(weight.dtype), targets.bbox_targets)
        )
        criterion.add("loss_bbox", pred, target, weight, criterion.total(weight.sum()))

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        strides = jnp.asarray(grid.strides)[None, :, None]
        distances = bbox_preds.astype(strides.dtype) * strides
        return self.bbox_coder.decode(jnp.asarray(grid.priors[None]), distances, image_shapes)

    # What an image learns.

    def _squared_radius(self, boxes: jax.Array) -> jax.Array:
        """The r² of boxes (..., 4), in pixels squared."""
        overlap, least = as_dtype(boxes.dtype, self.hm_min_overlap, self.hm_min_radius)
        x1, y1, x2, y2 = columns(boxes)
        delta = (1 - overlap) / (1 + overlap)
        return jnp.maximum(2 * delta * delta * (x2 - x1) * (y2 - y1), least * least)

    def _nearest(self, grid: Grid, image: Image) -> jax.Array:
        """The box that each point (N,) learns: 1 for the first, and 0 for none."""
        x, y = columns(jnp.asarray(grid.priors))
        strides, dtype = jnp.asarray(grid.strides), grid.priors.dtype
        ranges = np.repeat(np.asarray(self.regress_ranges, dtype), grid.level_sizes, axis=0)
        low, high = columns(jnp.asarray(ranges))

        def compute(box: jax.Array, exists: jax.Array, _: slice) -> jax.Array:
            """Minus d² / r², and minus infinity for points that do not learn the box."""
            x1, y1, x2, y2 = (side[None] for side in columns(box))
            least = jnp.minimum
            inside = least(least(x - x1, y - y1), least(x2 - x, y2 - y)) > 0
            from_cell = [
                jnp.abs(points - (jnp.trunc(center / strides) + 0.5) * strides)
                for points, center in ((x, (x1 + x2) / 2), (y, (y1 + y2) / 2))
            ]
            near = jnp.maximum(*from_cell) <= strides
            size = _half_diagonal(box)[None]
            learns = inside & near & (low <= size) & (size <= high) & exists
            d_x, d_y = x - (x1 + x2) / 2, y - (y1 + y2) / 2
            squared = jnp.where(jnp.maximum(*from_cell) == 0, 0, d_x * d_x + d_y * d_y)
            return jnp.where(learns, -squared / self._squared_radius(box)[None], -jnp.inf)

        start = no_box_yet(jnp.ones_like(x, bool), image.gt_labels, dtype, score=-jnp.inf)
        rules = Rules(
            compute, lambda _: None, lambda best, number, score, _: best.or_box(number, score)
        )
        return visit_boxes(rules, start, image.gt_boxes, image.gt_labels).numbers

    def _heatmaps(self, grid: Grid, image: Image) -> jax.Array:
        """The heatmaps (N, C) of all levels."""
        dtype, boxes = grid.priors.dtype, image.gt_boxes
        levels = [
            (as_dtype(dtype, stride), *size)
            for stride, size in zip(self.strides, grid.sizes, strict=True)
        ]

        def draw(own: Any) -> list[jax.Array]:
            x, y, squared_radius = (number[None] for number in own)

            def on_axis(count: int, stride: jax.Array, middle: jax.Array) -> Any:
                """The values along an axis, and the cell that the centre is in."""
                cells = jnp.arange(count, dtype=dtype)[:, None]
                values = peak((cells + 0.5) * stride, middle, squared_radius)
                return values, cells == jnp.trunc(middle / stride)

            maps = []
            for stride, height, width in levels:
                down, in_row = on_axis(height, stride, y)
                across, in_column = on_axis(width, stride, x)
                own_cell = in_row[:, None] & in_column[None]
                values = jnp.where(own_cell, 1, down[:, None] * across[None])
                # Keep this in the loop. After it, a GPU's program stores zeros of the heatmaps'
                # size and reads them: the head moves 1.2 times as much (H200, jax 0.12.0.1).
                maps.append(jnp.where(values < LEAST_VALUE, 0, values))
            return maps

        nothing = [
            jnp.zeros((height, width, self.num_classes), dtype) for _, height, width in levels
        ]
        x, y = ((boxes[:, i] + boxes[:, i + 2]) / 2 for i in (0, 1))
        numbers = (x, y, self._squared_radius(boxes))
        maps = draw_heatmaps(image.gt_labels, numbers, nothing, draw)
        rows = [
            x.reshape(height * width, self.num_classes)
            for x, (_, height, width) in zip(maps, levels, strict=True)
        ]
        return jnp.concatenate(rows)

    def _positives(self, grid: Grid, image: Image) -> Candidates:
        """The positives of the classes, in slots of the levels with cells, G boxes and 9 cells."""
        dtype, boxes = grid.priors.dtype, image.gt_boxes
        exists, size = image.gt_labels >= 0, _half_diagonal(boxes)
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        starts = np.cumsum((0, *grid.level_sizes))
        levels = [i for i, count in enumerate(grid.level_sizes) if count]
        slots = (0, *exists.shape, len(AROUND))
        # What a level appends, after none: there may be no cells at all.
        priors, losses = [jnp.zeros(slots, jnp.int32)], [jnp.zeros(slots, dtype)]
        learnt = [jnp.zeros((*slots, 4), dtype)]
        for i in levels:
            (height, width), stride = grid.sizes[i], as_dtype(dtype, self.strides[i])
            low, high = as_dtype(dtype, *self.regress_ranges[i])
            cells = jnp.trunc(center / stride)[:, None] + as_dtype(dtype, AROUND)[None]
            distances = self.bbox_coder.encode((cells + 0.5) * stride, boxes[:, None]) / stride
            in_map = (cells >= 0) & (cells < as_dtype(dtype, (width, height))[None, None])
            valid = in_map.all(-1) & (distances >= 0).all(-1) & exists[:, None]
            column, row = columns(cells.astype(jnp.int32))
            places = jnp.where(valid, row * width + column, 0)
            preds = image.outputs["bbox_preds"][i][places.reshape(-1)].astype(dtype)
            loss = self.loss_bbox.compute(
                _around_origin(preds),
                _around_origin(clamp(distances, 0, jnp.inf).reshape(-1, 4)),
                None,
                reduction="none",
                avg_factor=None,
            ).reshape(places.shape)
            fits = (low <= size) & (size <= high)
            own = (np.arange(len(AROUND)) == OWN)[None] & fits[:, None]
            losses.append(jnp.where(valid, jnp.where(own, 0, loss), jnp.inf)[None])
            priors.append((places + int(starts[i]))[None])
            learnt.append(distances[None])
        loss = jnp.concatenate(losses)
        by_box = jnp.sort(jnp.moveaxis(loss, 1, 0).reshape(exists.shape[0], -1), axis=1)
        limit = jnp.broadcast_to(as_dtype(dtype, self.more_pos_thresh), exists.shape)
        if self.more_pos_topk <= by_box.shape[1]:
            limit = jnp.minimum(limit, by_box[:, self.more_pos_topk - 1])
        chosen = loss < limit[None, :, None]

        def of_box(x: jax.Array, otherwise: int) -> jax.Array:
            return jnp.where(chosen, x[None, :, None], otherwise).reshape(-1)

        return Candidates(
            priors=jnp.where(chosen, jnp.concatenate(priors), 0).reshape(-1),
            gt_inds=of_box(1 + jnp.arange(len(exists), dtype=jnp.int32), 0),
            labels=of_box(image.gt_labels, self.num_classes),
            bbox_targets=jnp.where(chosen[..., None], jnp.concatenate(learnt), 0).reshape(-1, 4),
            weights=chosen.reshape(-1).astype(dtype),
        )


def _clipped_scores(logits: jax.Array) -> jax.Array:
    """sigmoid(logits), within mmdet's bounds."""
    least, largest = as_dtype(logits.dtype, LEAST_SCORE, 1 - LEAST_SCORE)
    return clamp(jax.nn.sigmoid(logits), least, largest)


def _half_diagonal(boxes: jax.Array) -> jax.Array:
    """The size of boxes (..., 4) by which they belong to a level."""
    x1, y1, x2, y2 = columns(boxes)
    width, height = x2 - x1, y2 - y1
    return jnp.sqrt(width * width + height * height) / 2


def _around_origin(distances: jax.Array) -> jax.Array:
    """Boxes (..., 4) as x1, y1, x2, y2 from distances (..., 4) from the origin to their sides."""
    left, top, right, bottom = columns(distances)
    return jnp.stack([-left, -top, right, bottom], axis=-1)
