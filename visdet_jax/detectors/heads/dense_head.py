"""The base of the heads on priors: from maps of outputs to the losses of a detector."""

import functools
import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.nms import KeptDetections, batched_nms, in_slots
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.rules import Expected, Rule
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import Head, as_shapes, compiled, without_state
from visdet_jax.detectors.postprocessing import TestConfig
from visdet_jax.detectors.priors import Grid, Sizes
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    HeadOutputs,
    HeadTargets,
    Image,
    Losses,
    Rows,
    Shapes,
    States,
)

# Outputs of one logit for each prior, by whose sigmoid the scores of classes are multiplied.
_LOGITS_OF_PRIORS = {"centernesses", "objectnesses"}


@dataclass(frozen=True, kw_only=True)
class DenseHead(Head):
    """Base of the heads on priors, anchors or points, of which every cell has as many.

    Each of its losses is the sum over the levels. A subclass is its fields, its `strides`, and
    `grid`, `assign`, `compute` and `boxes`.

    Args:
      test_cfg: Which predictions `detect` makes detections.
    """

    test_cfg: TestConfig = TestConfig(score_thr=0.05)

    # Whether detections suppress each other level by level and by no score, as in mmdet's RPN.
    suppresses_by_level: ClassVar[bool] = False
    # Whether the best class of a prior is its only candidate, unless `test_cfg` says it.
    detects_best_class: ClassVar[bool] = False
    # Whether candidates go by their scores times the sigmoid of the prior's logit, as in YOLOX.
    detects_by_joint_scores: ClassVar[bool] = False
    # Whether `nms_pre` counts the candidates of all levels together, as in mmyolo and ultralytics.
    ranks_levels_together: ClassVar[bool] = False
    # The output that holds the boxes of detections.
    detected_boxes: ClassVar[str] = "bbox_preds"
    # The fields of its outputs that are no maps of the levels' priors.
    other_outputs: ClassVar[tuple[str, ...]] = ()

    # What users call.

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
          image_shapes: (B, 2) height and width of each image in pixels, for priors that reach over
            its border. Unless given, what the cells of the finest feature map cover.
          pad_shapes: (B, 2) height and width in pixels of each image with its own padding. Priors
            of cells beyond take no part; all do unless given.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        targets = self.targets(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        return self.losses_of(state, outputs, targets, axis_name)

    loss = without_state(update)

    def losses_of(
        self,
        state: States,
        outputs: HeadOutputs,
        targets: HeadTargets,
        axis_name: AxisName,
        **options: Any,
    ) -> tuple[Losses, States]:
        """(losses, next state) of outputs whose targets are known.

        `options` are what `compute` finds in `criterion.options`.
        """
        self.check_state(state)
        grid, maps = self._grid(outputs), self._maps(outputs)
        bbox_maps: Any = outputs.bbox_preds
        criterion = Criterion(self, state, grid.level_sizes, axis_name, options)
        joined = {
            name: jnp.concatenate(levels, axis=1)
            for name, levels in maps.items()
            if name in Rows._fields and name != "cls_scores"
        }
        rows = Rows(
            cls_scores=maps["cls_scores"],
            bbox_maps=bbox_maps,
            priors=jnp.asarray(grid.priors[None]),
            strides=jnp.asarray(grid.strides[None]),
            targets=targets,
            **{name: x[..., 0] if name in _LOGITS_OF_PRIORS else x for name, x in joined.items()},
        )
        self.compute(criterion, rows)
        return criterion.losses, criterion.state

    @compiled
    def targets(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
    ) -> HeadTargets:
        """What each prior learns. The arguments are those of `loss`."""
        images = self.images(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        return self.assign_all(outputs, images)

    def images(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None,
        pad_shapes: Shapes | None,
    ) -> Image:
        """The batch's images. The arguments are those of `loss`; they are checked here."""
        self._check_outputs(outputs)
        grid, batch = self._grid(outputs), outputs.cls_scores[0].shape[0]
        dtype = grid.priors.dtype
        boxes, labels = self.ground_truth(gt_boxes, gt_labels, batch, dtype)
        shapes = {}
        for name, given, default in (
            ("image_shape", image_shapes, self.image_shape(outputs)),
            ("pad_shape", pad_shapes, np.inf),
        ):
            if given is None:
                given = jnp.broadcast_to(jnp.asarray(default), (batch, 2))
            shapes[name] = as_shapes(f"{name}s", given, labels, dtype)
        images = Image(gt_boxes=boxes, gt_labels=labels, outputs=self._maps(outputs), **shapes)
        return jax.lax.stop_gradient(images)

    def assign_all(self, outputs: HeadOutputs, images: Image) -> HeadTargets:
        """The targets of a batch of images: `assign` of each, without a gradient."""
        assign = functools.partial(self.assign, self._grid(outputs))
        return jax.lax.stop_gradient(jax.vmap(assign)(images))

    @compiled
    def decode(
        self, outputs: HeadOutputs, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> Detections:
        """Boxes and scores of every prior, for non-maximum suppression.

        Scores are sigmoid(cls_scores), times the sigmoid of the centernesses or objectnesses where
        the head has them, or the softmax without the background.

        Args:
          outputs: What the network gave; see `HeadOutputs`.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all. Boxes are clipped to them where given and where the coder's `clip_border` is True.
        """
        self._check_outputs(outputs)
        grid = self._grid(outputs)
        maps = {name: jnp.concatenate(x, axis=1) for name, x in self._maps(outputs).items()}
        scores = self.scores(maps["cls_scores"].astype(grid.priors.dtype))
        scores = _times_priors(scores, maps)
        return Detections(self.boxes(grid, maps[self.detected_boxes], image_shapes), scores)

    @compiled
    def detect(
        self, outputs: HeadOutputs, image_shapes: Shapes | Sequence[Number] | None = None
    ) -> KeptDetections:
        """The detections of a batch, without duplicates, as `test_cfg` says.

        Of each level the best `nms_pre` pairs of a prior and a class whose score is above
        `score_thr` are candidates. Their boxes are decoded and clipped; what is left after
        non-maximum suppression class by class, the best first, fills `max_per_img` slots. With
        `nms=None` in `test_cfg` the best fill them as they are. The YOLOs but YOLOX, and
        `YOLORTMDetHead`, have `nms_pre` candidates of all levels together, as in mmyolo and
        ultralytics. `RPNHead` reads no `score_thr`, and suppresses level by level. `YOLOXHead` has
        one candidate a prior, its best class, unless `test_cfg` says `multi_label`. Of its scores
        and of `YOLOv5Head`'s `score_thr` is compared with the product with the objectness.

        Args:
          outputs, image_shapes: See `decode`.

        Returns: (B, S, ...) the boxes, scores and classes in their slots, the index of each one's
          prior, and which slots hold one.
        Raises: as `decode`; ValueError for a suppression other than dict(type="nms").
        """
        return self.detect_by(outputs, image_shapes, self.test_cfg)

    # What a subclass defines.

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the levels, in pixels."""
        raise NotImplementedError(f"{type(self).__name__} must define strides")

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        """The priors of feature maps of the given (height, width)."""
        raise NotImplementedError(f"{type(self).__name__} must define grid")

    def assign(self, grid: Grid, image: Image) -> HeadTargets:
        """The targets (N, ...) of one image."""
        raise NotImplementedError(f"{type(self).__name__} must define assign")

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        """Adds each loss to the criterion."""
        raise NotImplementedError(f"{type(self).__name__} must define compute")

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: Any) -> jax.Array:
        """Boxes (B, N, 4) in pixels from what was predicted for them (B, N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define boxes")

    # What a subclass may extend.

    @property
    def num_base_priors(self) -> int:
        """How many priors a cell has."""
        return 1

    @property
    def box_channels(self) -> int:
        """How many numbers are predicted for a box."""
        return 4

    @property
    def channels(self) -> dict[str, int]:
        channels = super().channels | {"bbox_preds": self.box_channels}
        return channels | ({"centernesses": 1} if hasattr(self, "loss_centerness") else {})

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        if "centernesses" in self.channels:
            centerness = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_centerness"] = (centerness, centerness)
        return examples

    def image_shape(self, outputs: HeadOutputs) -> tuple[int, int]:
        """The (height, width) that the finest map with cells covers, in pixels."""
        for stride, (height, width) in self._filled(outputs):
            return height * stride, width * stride
        return 0, 0

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        given = inspect.signature(self.loss).bind(*args, **options).arguments
        shapes, (height, width) = given.get("image_shapes"), self.image_shape(given["outputs"])
        # A network may leave out the last pixels, which do not fill a cell.
        slack = min((stride for stride, _ in self._filled(given["outputs"])), default=0)
        fits = Rule(
            lambda x: (x[..., 0] > height + slack) | (x[..., 1] > width + slack),
            f"must be (height, width) within {height} x {width} pixels, which the maps cover: are "
            f"the strides other than {self.strides}, or height and width exchanged?",
        )
        expected = super().expects(*args, **options)
        if shapes is not None:
            expected.append(Expected("image_shapes", jnp.asarray(shapes), fits))
        return expected

    # The rest.

    def detect_by(
        self, outputs: HeadOutputs, image_shapes: Any, config: TestConfig
    ) -> KeptDetections:
        """`detect` by another config."""
        self._check_outputs(outputs)
        grid, maps, suppression = self._grid(outputs), self._maps(outputs), config.suppression()
        by_level = self.suppresses_by_level
        best_class = self.detects_best_class
        if config.multi_label is not None:
            best_class = not config.multi_label
        dtype, batch = grid.priors.dtype, outputs.cls_scores[0].shape[0]
        if image_shapes is not None:
            image_shapes = jnp.broadcast_to(jnp.asarray(image_shapes).astype(dtype), (batch, 2))
        score_thr = -np.inf if by_level else config.score_thr
        least, min_size = as_dtype(dtype, score_thr, config.min_bbox_size)
        starts = np.cumsum((0, *grid.level_sizes))
        # Whether the best candidates are the detections: nothing drops one or changes their order.
        final = suppression.iou_threshold is None and (
            self.detects_by_joint_scores or not maps.keys() & _LOGITS_OF_PRIORS
        )
        final &= isinstance(config.min_bbox_size, int | float) and config.min_bbox_size < 0

        def candidates(level: int, maps: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
            """Scores, places among all priors, classes and levels of one level's best pairs."""
            scores = self.scores(maps["cls_scores"].astype(dtype))
            best = None
            if best_class:
                best, scores = scores.argmax(1).astype(jnp.int32), scores.max(1, keepdims=True)
            if self.detects_by_joint_scores:
                scores = _times_priors(scores, maps)
            classes, scores = scores.shape[1], scores.reshape(-1)
            scores = jnp.where(scores > least, scores, -jnp.inf)
            count = scores.size if config.nms_pre <= 0 else min(config.nms_pre, scores.size)
            # Of 672 000 pairs 300 are found in 2 ms and 30 000 in 46 ms (jax 0.10.2, CPU).
            if final:
                count = min(count, config.max_per_img)
            scores, pairs = jax.lax.top_k(scores, count)
            labels = pairs % classes if best is None else best[pairs]
            places = starts[level].item() + pairs // classes
            return scores, places, labels, jnp.full_like(pairs, level)

        def image(maps: dict[str, list[jax.Array]], shape: Any) -> KeptDetections:
            if self.ranks_levels_together:
                maps = {name: [jnp.concatenate(x)] for name, x in maps.items()}
            parts = [
                candidates(level, {name: x[level] for name, x in maps.items()})
                for level in range(len(maps["cls_scores"]))
            ]
            scores, places, labels, levels = (jnp.concatenate(x) for x in zip(*parts, strict=True))
            chosen = {
                name: jnp.concatenate(x)[places] for name, x in maps.items() if name != "cls_scores"
            }
            boxes = self.boxes(
                grid._replace(
                    priors=jnp.asarray(grid.priors)[places],
                    strides=jnp.asarray(grid.strides)[places],
                ),
                chosen[self.detected_boxes][None],
                None if shape is None else shape[None],
            )[0]
            exists = scores > -jnp.inf
            if not self.detects_by_joint_scores:
                scores = _times_priors(scores[:, None], chosen)[:, 0]
            sides = boxes[:, 2:] - boxes[:, :2]
            exists &= (min_size < 0) | (sides > min_size).all(axis=1)
            kept = batched_nms(
                boxes,
                scores,
                levels if by_level else labels,
                suppression.iou_threshold,
                exists,
                max_out=config.max_per_img,
                class_agnostic=suppression.class_agnostic and not by_level,
            )
            slots = (x[kept.indices] for x in (boxes, scores, labels, places))
            return in_slots(kept.exists, *slots)

        return jax.vmap(image)(maps, image_shapes)

    def _check_outputs(self, outputs: HeadOutputs) -> None:
        """Raises unless the outputs are what this head takes."""
        if not isinstance(outputs, HeadOutputs):
            raise TypeError(f"outputs must be HeadOutputs, got {type(outputs).__name__}")
        channels, count = self.channels, self.num_base_priors
        for name in HeadOutputs._fields:
            if name not in (*channels, *self.other_outputs) and getattr(outputs, name) is not None:
                raise ValueError(f"outputs.{name} must be None: this head has none")
        for name, size in channels.items():
            maps = getattr(outputs, name)
            if maps is None or len(maps) != len(self.strides):
                got = "None" if maps is None else f"{len(maps)} arrays"
                raise ValueError(f"{name} must be {len(self.strides)} levels, got {got}")
            for level, (x, scores) in enumerate(zip(maps, outputs.cls_scores, strict=True)):
                check_array(f"{name}[{level}]", x)
                batch = outputs.cls_scores[0].shape[:1]
                if x.ndim != 4 or x.shape != (*batch, *scores.shape[1:3], count * size):
                    as_others = "" if x is scores else ", with the B, H and W of cls_scores"
                    torchs = x.ndim == 4 and x.shape[1] == count * size
                    raise ValueError(
                        f"{name}[{level}] must have shape (B, H, W, {count * size}), that is "
                        f"{count} x {size}, the priors of a cell and the channels of a prior"
                        f"{as_others}; got {x.shape}" + (": channels go last" if torchs else "")
                    )
        by_stride = sorted(self._filled(outputs))
        for (fine, larger), (coarse, smaller) in itertools.pairwise(by_stride):
            if fine < coarse and np.less(larger, smaller).any():
                raise ValueError(
                    f"maps must not be larger at a larger stride: got (H, W) {_sizes(outputs)} for "
                    f"the strides {self.strides}"
                )

    def _filled(self, outputs: HeadOutputs) -> list[tuple[int, tuple[int, int]]]:
        """The stride and the (height, width) of each level that has cells."""
        levels = zip(self.strides, _sizes(outputs), strict=True)
        return [(stride, size) for stride, size in levels if all(size)]

    def _grid(self, outputs: HeadOutputs) -> Grid:
        """The priors of the outputs, in the type that boxes are computed in.

        It is the type of the boxes, since losses compute in a type of their own.
        """
        maps: Any = outputs.bbox_preds
        dtype = compute_dtype(**{f"bbox_preds[{i}]": x for i, x in enumerate(maps)})
        return self.grid(_sizes(outputs), dtype)

    def _maps(self, outputs: HeadOutputs) -> dict[str, list[jax.Array]]:
        """The outputs by name, of each level (B, n, channels of a prior)."""
        return {
            name: [_rows_of_map(x, size) for x in getattr(outputs, name)]
            for name, size in self.channels.items()
        }


def _times_priors(scores: jax.Array, maps: dict[str, jax.Array]) -> jax.Array:
    """Scores (..., n, classes) times the sigmoids of the priors' own logits (..., n, 1)."""
    for name in sorted(maps.keys() & _LOGITS_OF_PRIORS):
        scores *= jax.nn.sigmoid(maps[name].astype(scores.dtype))
    return scores


def _sizes(outputs: HeadOutputs) -> Sizes:
    """The (height, width) of each level."""
    return tuple((x.shape[1], x.shape[2]) for x in outputs.cls_scores)


def _rows_of_map(x: jax.Array, channels: int) -> jax.Array:
    """A map (B, H, W, A · channels) as rows (B, H · W · A, channels)."""
    batch, height, width, total = x.shape
    count = total // channels
    # Keep the two steps. In one, XLA cannot follow a batch that is sharded over an explicit mesh.
    # Keep the sizes too: -1 cannot be told where a map has no cells.
    rows = x.reshape(batch, height, width, count, channels)
    return rows.reshape(batch, height * width * count, channels)
