"""The head of CenterNet: objects as points."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import clip_to_image
from visdet_jax.boxes.nms import KeptDetections, in_slots
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Count, Number, Range
from visdet_jax.core.rules import Expected
from visdet_jax.detectors.assigners.assigner import Rules, pick, visit_boxes
from visdet_jax.detectors.heads._heatmaps import draw_heatmaps, peak
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import BaseHead, as_shapes, compiled, without_state
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    HeadOutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.classification.gaussian_focal import GaussianFocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import L1Loss

STRIDE = 4  # Pixels of a cell where the size of the network's input is not given.
MIN_OVERLAP = 0.3  # mmdet's, of a box and one whose corners are moved by the radius.


@dataclass(frozen=True, kw_only=True)
class PeakConfig(FrozenModule):
    """Which peaks of the heatmaps become detections: mmdet's `test_cfg` of a `CenterNetHead`.

    Args:
      topk: The number of best peaks of an image that become detections, at least 1.
      local_maximum_kernel: An odd number of cells, at least 1: a peak is the largest value of its
        class in a square with such sides around it. Larger values leave fewer detections, and 1
        leaves all cells.
      max_per_img: The most detections of an image, at least 1.
    """

    needs_no_type: ClassVar[bool] = True

    topk: Count = 100
    local_maximum_kernel: Annotated[int, Range(1)] = 3
    max_per_img: Count = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.local_maximum_kernel % 2 == 0:
            raise self.value_error(
                f"local_maximum_kernel must be odd, got {self.local_maximum_kernel}"
            )


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class CenterNetHead(BaseHead):
    """CenterNet: a heatmap of centres for each class, and the size of the box in its centre's cell.

    A box of w x h cells with its centre in cell (i, j) has the heatmap
    exp(-((x - i)² + (y - j)²) / 2σ²) in a square of 2r + 1 cells around (i, j), and 0 beyond. There
    σ = (2r + 1) / 6, and r is the largest whole number by which both corners may move so that the
    IoU stays at least 0.3, as mmdet computes it. The heatmap of a class is the maximum over its
    boxes. With n the number of (cell, class) where the batch's heatmaps are 1, at least 1:
    `loss_center_heatmap` is the sum over all cells and classes divided by n; `loss_wh`, of w and h,
    and `loss_offset`, of the centre from its cell's corner, both in cells, are sums over the cells
    with a centre divided by 2n. Of several centres in a cell the last box gives size and offset.

    `cls_scores` are logits (B, H, W, C) of the heatmaps, `wh_preds` and `offset_preds` (B, H, W, 2)
    as (w, h) and (x, y), each a list of one level.

    Where a centre is in no cell, for which mmdet raises, the box is clipped to the feature map
    first, as CenterNet's authors do; what has no area left is not learnt. n is that of the batch
    over all devices, which mmdet does not add up.

    Args:
      loss_center_heatmap: Loss of the heatmaps' probabilities.
      loss_wh: Loss of widths and heights, in cells.
      loss_offset: Loss of the centres' offsets, in cells.
      test_cfg: Which peaks `detect` makes detections.

    Source: Zhou et al. 2019, https://arxiv.org/abs/1904.07850; mmdet's `CenterNetHead`
    """

    loss_center_heatmap: Loss = GaussianFocalLoss()
    loss_wh: Loss = L1Loss(loss_weight=0.1)
    loss_offset: Loss = L1Loss()
    test_cfg: PeakConfig = PeakConfig()

    # What users call.

    @compiled
    def update(
        self,
        state: States,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        *,
        batch_input_shape: jax.Array | Sequence[Number] | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `HeadOutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes nothing is read.
          image_shapes: (B, 2) height and width of each image in pixels. Only `checked` reads them.
          batch_input_shape: (height, width) in pixels of the network's input, which the feature map
            covers. Unless given, a cell has 4 x 4 pixels.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        targets = self.targets(
            outputs, gt_boxes, gt_labels, image_shapes, batch_input_shape=batch_input_shape
        )
        maps = self._rows(outputs)
        heatmaps: Any = targets.heatmaps
        scores = jax.nn.sigmoid(maps["cls_scores"].astype(targets.bbox_targets.dtype))
        criterion = Criterion(self, state, scores.shape[1:2], axis_name)
        # Keep the floor, which is 1 where a heatmap is 1. Before it sums a comparison, XLA:CPU
        # stores it, an array of the heatmaps' size, and takes five times as long (jax 0.10.2).
        count = criterion.total(jnp.floor(heatmaps).sum())
        criterion.add("loss_center_heatmap", scores, heatmaps, None, count)
        offset, wh = jnp.split(targets.bbox_targets, 2, axis=-1)
        weight = targets.bbox_weights
        criterion.add("loss_wh", maps["wh_preds"], wh, weight, 2 * count)
        criterion.add("loss_offset", maps["offset_preds"], offset, weight, 2 * count)
        return criterion.losses, criterion.state

    loss = without_state(update)

    @compiled
    def targets(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        *,
        batch_input_shape: jax.Array | Sequence[Number] | None = None,
    ) -> HeadTargets:
        """What each cell learns. The arguments are those of `loss`.

        `bbox_targets` are the offset and the size (x, y, w, h), in cells. What the classes learn is
        in `heatmaps`.
        """
        self._check_outputs(outputs)
        batch, height, width, _ = outputs.cls_scores[0].shape
        dtype = self._dtype(outputs)
        boxes, labels = self.ground_truth(gt_boxes, gt_labels, batch, dtype)
        if image_shapes is not None:
            as_shapes("image_shapes", image_shapes, labels, dtype)
        stride = self._stride(outputs, batch_input_shape)
        boxes = boxes / jnp.concatenate([stride, stride])[None, None]

        def image(boxes: jax.Array, labels: jax.Array) -> HeadTargets:
            return self._targets_of(boxes, labels, (height, width))

        return jax.lax.stop_gradient(jax.vmap(image)(boxes, labels))

    @compiled
    def decode(
        self,
        outputs: HeadOutputs,
        image_shapes: Shapes | Sequence[Number] | None = None,
        *,
        batch_input_shape: jax.Array | Sequence[Number] | None = None,
    ) -> Detections:
        """Boxes and scores of every cell, in the order of rows, then columns.

        Args:
          outputs: What the network gave; see `HeadOutputs`.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all, to which boxes are clipped. None clips nothing.
          batch_input_shape: See `loss`.
        """
        self._check_outputs(outputs)
        maps = self._rows(outputs)
        scores = jax.nn.sigmoid(maps["cls_scores"].astype(self._dtype(outputs)))
        cells = jnp.arange(scores.shape[1], dtype=jnp.int32)
        boxes = self._boxes(outputs, maps, cells[None], batch_input_shape)
        return Detections(clip_to_image(boxes, image_shapes), scores)

    @compiled
    def detect(
        self,
        outputs: HeadOutputs,
        image_shapes: Shapes | Sequence[Number] | None = None,
        *,
        batch_input_shape: jax.Array | Sequence[Number] | None = None,
    ) -> KeptDetections:
        """The detections of a batch: the best peaks of the heatmaps, as `test_cfg` says.

        A peak is where a class's score is the largest of those around it. Boxes are in pixels of
        the network's input, from which mmdet takes away the border that its test pipeline adds.
        mmdet fills slots that are left over with boxes of score 0; here `exists` is False there.

        Args:
          outputs, image_shapes, batch_input_shape: See `decode`.

        Returns: (B, S, ...) the boxes, scores and classes in their slots, the index of each one's
          cell, and which slots hold one.
        """
        self._check_outputs(outputs)
        heatmap, maps = outputs.cls_scores[0], self._rows(outputs)
        scores = jax.nn.sigmoid(heatmap.astype(self._dtype(outputs)))
        side = self.test_cfg.local_maximum_kernel
        largest = jax.lax.reduce_window(
            scores, -jnp.inf, jax.lax.max, (1, side, side, 1), (1, 1, 1, 1), "SAME"
        )
        batch, *cells_and_classes = scores.shape
        peaks = jnp.where(scores == largest, scores, -1).reshape(batch, prod(cells_and_classes))
        slots = min(self.test_cfg.topk, self.test_cfg.max_per_img, peaks.shape[1])
        best, pairs = jax.lax.top_k(peaks, slots)
        cells, labels = pairs // self.num_classes, pairs % self.num_classes
        maps = {name: jax.vmap(lambda x, i: x[i])(x, cells) for name, x in maps.items()}
        boxes = self._boxes(outputs, maps, cells, batch_input_shape)
        boxes = clip_to_image(boxes, image_shapes)
        return jax.vmap(in_slots)(best > 0, boxes, best, labels, cells)

    # The rest.

    @property
    def channels(self) -> dict[str, int]:
        return {"cls_scores": self.num_classes, "wh_preds": 2, "offset_preds": 2}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        scores = jax.ShapeDtypeStruct((rows, self.num_classes), np.float32)
        pairs = jax.ShapeDtypeStruct((rows, 2), np.float32)
        return {
            "loss_center_heatmap": (scores, scores),
            "loss_wh": (pairs, pairs),
            "loss_offset": (pairs, pairs),
        }

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        call = inspect.signature(self.loss).bind(*args, **options).arguments
        shape = call.get("batch_input_shape")
        if shape is not None and call.get("image_shapes") is None:
            call["image_shapes"] = jnp.asarray(shape)[None]
        return super().expects(**call)

    def image_shape(self, outputs: HeadOutputs) -> tuple[int, int]:
        _, height, width, _ = outputs.cls_scores[0].shape
        return STRIDE * height, STRIDE * width

    def _targets_of(
        self, boxes: jax.Array, labels: jax.Array, extent: tuple[int, int]
    ) -> HeadTargets:
        """The targets of one image with so many (rows, columns), of boxes (G, 4) in cells."""
        height, width = extent
        boxes, reaches = _reaching(boxes, jnp.array([width, height], boxes.dtype))
        labels = jnp.where(reaches, labels, -1)
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        corner, size = jnp.trunc(center), boxes[:, 2:] - boxes[:, :2]
        x, y = corner[:, 0], corner[:, 1]

        def draw(own: Any) -> list[jax.Array]:
            x, y, radius = own
            twice_variance = (2 * radius + 1) ** 2 / 18

            def on_axis(count: int, middle: jax.Array) -> jax.Array:
                cells = jnp.arange(count, dtype=boxes.dtype)[:, None]
                inside = jnp.abs(cells - middle[None]) <= radius[None]
                return jnp.where(inside, peak(cells, middle[None], twice_variance[None]), 0)

            return [on_axis(height, y)[:, None] * on_axis(width, x)[None]]

        nothing = jnp.zeros((height, width, self.num_classes), boxes.dtype)
        (heatmap,) = draw_heatmaps(labels, (x, y, _radius(size)), [nothing], draw)

        cells = jnp.arange(height * width, dtype=jnp.int32)
        no_box = jnp.where((labels >= 0).any(), jnp.zeros_like(cells), 0)
        rules = Rules(
            lambda cell, exists, _: (cells == cell[None]) & exists[None],
            lambda _: None,
            lambda gt_inds, number, learns, _: jnp.where(learns, number, gt_inds),
        )
        gt_inds = visit_boxes(rules, no_box, (y * width + x).astype(jnp.int32), labels)
        learnt = pick(jnp.concatenate([center - corner, size], axis=-1), gt_inds)
        targets = self.make_targets(gt_inds, pick(labels, gt_inds), learnt)
        return targets._replace(heatmaps=heatmap.reshape(height * width, self.num_classes))

    def _boxes(
        self,
        outputs: HeadOutputs,
        maps: dict[str, jax.Array],
        cells: jax.Array,
        batch_input_shape: Any,
    ) -> jax.Array:
        """Boxes (B, K, 4) in pixels from the outputs (B, K, ...) at cells (B or 1, K)."""
        width, stride = outputs.cls_scores[0].shape[2], self._stride(outputs, batch_input_shape)
        offset, wh = (maps[name].astype(stride.dtype) for name in ("offset_preds", "wh_preds"))
        corner = jnp.stack([cells % max(width, 1), cells // max(width, 1)], axis=-1)
        center, half = corner.astype(stride.dtype) + offset, wh / 2
        stride = stride[None, None]
        return jnp.concatenate([(center - half) * stride, (center + half) * stride], axis=-1)

    def _stride(self, outputs: HeadOutputs, batch_input_shape: Any) -> jax.Array:
        """Width and height of a cell, in pixels."""
        dtype, (_, height, width, _) = self._dtype(outputs), outputs.cls_scores[0].shape
        if batch_input_shape is None:
            return jnp.full(2, STRIDE, dtype)
        if np.shape(batch_input_shape) != (2,):
            raise ValueError(
                f"batch_input_shape must be (height, width), got {np.shape(batch_input_shape)}"
            )
        shape = jnp.asarray(batch_input_shape).astype(dtype)
        return shape[::-1] / jnp.array([max(width, 1), max(height, 1)], dtype)

    def _dtype(self, outputs: HeadOutputs) -> Any:
        """The type that is computed in."""
        return compute_dtype(
            **{name: x[0] for name in self.channels if (x := getattr(outputs, name))}
        )

    def _rows(self, outputs: HeadOutputs) -> dict[str, jax.Array]:
        """The outputs by name, (B, H · W, channels)."""
        maps = {name: getattr(outputs, name)[0] for name in self.channels}
        return {
            name: x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])
            for name, x in maps.items()
        }

    def _check_outputs(self, outputs: Any) -> None:
        """Raises unless the outputs are what this head takes."""
        if not isinstance(outputs, HeadOutputs):
            raise TypeError(f"outputs must be HeadOutputs, got {type(outputs).__name__}")
        for name in HeadOutputs._fields:
            maps = getattr(outputs, name)
            if name not in self.channels:
                if maps is not None:
                    raise ValueError(f"outputs.{name} must be None: this head has none")
                continue
            if maps is None or len(maps) != 1:
                got = "None" if maps is None else f"{len(maps)} arrays"
                raise ValueError(f"{name} must be a list of one level, got {got}")
            check_array(f"{name}[0]", maps[0])
            shape = (*outputs.cls_scores[0].shape[:3], self.channels[name])
            if maps[0].ndim != 4 or maps[0].shape != shape:
                raise ValueError(
                    f"{name}[0] must have shape (B, H, W, {self.channels[name]}) with the B, H and "
                    f"W of cls_scores, got {maps[0].shape}"
                )


def _reaching(boxes: jax.Array, extent: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Boxes (G, 4) in cells whose centres are in the map, and which of them are.

    `extent` is the map's (width, height). Boxes whose centre is in no cell are clipped to the map.
    """
    cell = jnp.trunc((boxes[:, :2] + boxes[:, 2:]) / 2)
    inside = ((cell >= 0) & (cell < extent[None])).all(axis=1)
    clipped = clamp(boxes, 0, jnp.concatenate([extent, extent])[None])
    boxes = jnp.where(inside[:, None], boxes, clipped)
    return boxes, inside | (clipped[:, 2:] > clipped[:, :2]).all(axis=1)


def _radius(size: jax.Array) -> jax.Array:
    """The radius of the peaks of boxes of that width and height (G, 2), a whole number of cells.

    The least of the roots by which the IoU stays `MIN_OVERLAP` where one corner moves inwards and
    the other outwards, both inwards, or both outwards.
    """
    total, area, overlap = size.sum(axis=-1), size[..., 0] * size[..., 1], MIN_OVERLAP

    def root(a: float, b: jax.Array, c: jax.Array) -> jax.Array:
        return (b + jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0))) / (2 * a)

    def smaller_root(a: float, b: jax.Array, c: jax.Array) -> jax.Array:
        return (b - jnp.sqrt(jnp.maximum(b * b - 4 * a * c, 0))) / (2 * a)

    radius = jnp.minimum(
        smaller_root(1, total, area * ((1 - overlap) / (1 + overlap))),
        smaller_root(4, 2 * total, area * (1 - overlap)),
    )
    outwards = root(4 * overlap, -2 * overlap * total, area * (overlap - 1))
    return jnp.maximum(jnp.trunc(jnp.minimum(radius, outwards)), 0)
