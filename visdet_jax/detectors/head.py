"""The base of the heads: from raw outputs and padded ground truth to a detector's losses."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.checks import BOXES, FINITE, Expected, Rule
from visdet_jax.detectors.assigner import without_padding
from visdet_jax.detectors.criterion import Criterion
from visdet_jax.detectors.priors import Grid, Sizes
from visdet_jax.detectors.structures import Detections, HeadOutputs, HeadTargets, Rows
from visdet_jax.function import check_array, check_labels, compute_dtype, errors_named
from visdet_jax.module import Config, Loss
from visdet_jax.reduction import reduce_sum


def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    """Jits a method of a head, and puts the head's name in front of its errors."""
    static = {"self", "axis_name"} & inspect.signature(method).parameters.keys()
    jitted = jax.jit(method, static_argnames=sorted(static))

    @functools.wraps(method)
    def call(head: "Head", *args: Any, **options: Any) -> Any:
        try:
            hash(head)
            hashable = True
        except TypeError:  # a hyperparameter is being traced: some jit or vmap is around already
            hashable = False
        with errors_named(type(head).__name__):
            return (jitted if hashable else method)(head, *args, **options)

    return call


@dataclass(frozen=True, kw_only=True)
class Head(Config):
    """Base of the heads: a subclass is its fields, its `grid`, `assign`, `compute` and `boxes`.

    A head has no parameters and is no network: it takes what the network gave. Like a loss it is
    frozen, equal and hashed by value, and can be a jit argument.

    Args:
      num_classes: without background.
      loss_cls, loss_bbox: losses, or their configs in a head's config.
    """

    num_classes: int
    loss_cls: Loss
    loss_bbox: Loss

    def __post_init__(self):
        super().__post_init__()
        self.refuse_unless_positive("num_classes")
        rows = 2
        for name, (pred, target) in self.examples(rows).items():
            self._check_fit(name, rows, pred, target)

    # What users call.

    def loss(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array | None = None,
        pad_shapes: jax.Array | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> dict[str, jax.Array]:
        """The losses of a batch by name, each a scalar, the sum over the levels.

        Jitted: one compilation for all batches of the same shapes, however many boxes are in them.

        Args:
          outputs: what the network gave; see `HeadOutputs`.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) from 0 to C - 1; negative for padding, of whose boxes nothing is read.
          image_shapes: (B, 2) height and width of each image in pixels, for priors that reach over
            its border; the size of the finest feature map times its stride unless given.
          pad_shapes: (B, 2) height and width of each image with its own padding: priors of cells
            beyond take no part. All do unless given.
          axis_name: of the mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Under plain `jit` over sharded arrays it is so without.
        Raises: ValueError, TypeError for shapes and types that do not fit; TypeError where a loss
          keeps running statistics, which `update` is for.
        """
        state = self.init()
        if jax.tree.leaves(state):
            names = [name for name, part in state.items() if jax.tree.leaves(part)]
            raise TypeError(
                f"{type(self).__name__}: {' and '.join(names)} keeps running statistics: write "
                "`state = head.init()` once and `losses, state = head.update(state, ...)` at each "
                "step"
            )
        arguments = (outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        return self.update(state, *arguments, axis_name=axis_name)[0]

    def init(self) -> dict[str, Any]:
        """The losses' states before the first `update`, by name; () for those that keep none."""
        losses = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: loss.init() for name, loss in losses.items() if isinstance(loss, Loss)}

    @compiled
    def update(
        self,
        state: dict[str, Any],
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array | None = None,
        pad_shapes: jax.Array | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """(losses, next state), as `loss` and as a `StatefulLoss`'s `update`."""
        given, own = (jax.tree.map(lambda _: 0, tree) for tree in (state, self.init()))
        if given != own:
            raise ValueError(f"state must come from init() or update(), got {state}")
        grid, targets = self._assign(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        criterion = Criterion(self, state, grid.level_sizes, axis_name)
        maps = self._rows(outputs)
        rows = Rows(
            cls_scores=maps["cls_scores"],
            bbox_preds=jnp.concatenate(maps["bbox_preds"], axis=1),
            centernesses=None,
            priors=grid.priors[None],
            strides=grid.strides[None],
            targets=targets,
        )
        if "centernesses" in maps:
            centernesses = jnp.concatenate(maps["centernesses"], axis=1)[..., 0]
            rows = rows._replace(centernesses=centernesses)
        self.compute(criterion, rows)
        return criterion.losses, criterion.state

    @compiled
    def targets(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array | None = None,
        pad_shapes: jax.Array | None = None,
    ) -> HeadTargets:
        """What each prior learns; the arguments are those of `loss`."""
        return self._assign(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)[1]

    @compiled
    def decode(self, outputs: HeadOutputs, image_shapes: jax.Array | None = None) -> Detections:
        """Boxes and scores of every prior, for non-maximum suppression.

        Scores are sigmoid(cls_scores), times sigmoid(centernesses) where the head has them, or the
        softmax without the background. Boxes are clipped to `image_shapes` (B, 2) where given and
        the coder's `clip_border` allows it.
        """
        sizes, dtype = self._check_outputs(outputs)
        maps = {name: jnp.concatenate(x, axis=1) for name, x in self._rows(outputs).items()}
        logits = maps["cls_scores"].astype(dtype)
        if self.use_sigmoid:
            scores = jax.nn.sigmoid(logits)
        else:
            scores = jax.nn.softmax(logits, axis=-1)[..., : self.num_classes]
        if "centernesses" in maps:
            scores *= jax.nn.sigmoid(maps["centernesses"].astype(dtype))
        return Detections(
            self.boxes(self.grid(sizes, dtype), maps["bbox_preds"], image_shapes), scores
        )

    def expects(
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: jax.Array | None = None,
        pad_shapes: jax.Array | None = None,
        *,
        axis_name: str | tuple[str, ...] | None = None,
    ) -> list[Expected]:
        """What `checked` looks at: the arguments of `loss`, and what their values must be."""
        exists = jnp.asarray(gt_labels) >= 0
        finest = np.asarray(outputs.cls_scores[0].shape[1:3]) * self.strides[0]
        shapes = jnp.asarray(finest[None] if image_shapes is None else image_shapes)
        height, width = jnp.moveaxis(shapes[:, None], -1, 0).astype(gt_boxes.dtype)
        outside = Rule(
            lambda box: (
                (box[..., 2] <= 0)
                | (box[..., 3] <= 0)
                | (box[..., 0] >= width)
                | (box[..., 1] >= height)
            ),
            "lies outside its image",
        )
        last = self.num_classes - 1
        labels = Rule(lambda x: x > last, f"must be from 0 to {last}, or negative for padding")
        some = Rule(lambda x: x == 0, "every image is without ground truth")
        count = reduce_sum(exists.sum(), axis_name)
        return [
            *(
                Expected(f"{name}[{level}]", x, FINITE)
                for name in self.channels
                for level, x in enumerate(getattr(outputs, name))
            ),
            Expected("number of boxes", count, some),
            Expected("gt_labels", gt_labels, labels),
            Expected("gt_boxes", gt_boxes, BOXES, exists),
            Expected("gt_boxes", gt_boxes, outside, exists),
        ]

    # What a subclass defines.

    def grid(self, sizes: Sizes, dtype: Any) -> Grid:
        """The priors of feature maps of the given (height, width)."""
        raise NotImplementedError(f"{type(self).__name__} must define grid")

    def assign(
        self,
        grid: Grid,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shape: jax.Array,
        pad_shape: jax.Array,
    ) -> HeadTargets:
        """The targets (N, ...) of one image, from boxes (G, 4) and labels (G,)."""
        raise NotImplementedError(f"{type(self).__name__} must define assign")

    def compute(self, criterion: Criterion, rows: Rows) -> None:
        """Adds each loss to the criterion."""
        raise NotImplementedError(f"{type(self).__name__} must define compute")

    def boxes(self, grid: Grid, bbox_preds: jax.Array, image_shapes: jax.Array | None) -> jax.Array:
        """Boxes (B, N, 4) in pixels from what was predicted for them (B, N, ...)."""
        raise NotImplementedError(f"{type(self).__name__} must define boxes")

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        """Shapes and types of each loss's pred and target, by which it is tried for its place."""
        logits = jax.ShapeDtypeStruct((rows, self.channels["cls_scores"]), np.float32)
        boxes = jax.ShapeDtypeStruct((rows, 4), np.float32)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        examples = {"loss_cls": (logits, labels), "loss_bbox": (boxes, boxes)}
        if "centernesses" in self.channels:
            centerness = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_centerness"] = (centerness, centerness)
        return examples

    @property
    def num_base_priors(self) -> int:
        """How many priors a cell has."""
        return 1

    @property
    def box_channels(self) -> int:
        """How many numbers are predicted for a box."""
        return 4

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides of the levels, in pixels."""
        raise NotImplementedError(f"{type(self).__name__} must define strides")

    # The rest.

    @property
    def use_sigmoid(self) -> bool:
        """Whether each class has its sigmoid, or all and the background share a softmax."""
        return getattr(self.loss_cls, "use_sigmoid", False)

    @property
    def channels(self) -> dict[str, int]:
        """How many channels each of the outputs has for a prior."""
        channels = {
            "cls_scores": self.num_classes + (not self.use_sigmoid),
            "bbox_preds": self.box_channels,
        }
        return channels | ({"centernesses": 1} if hasattr(self, "loss_centerness") else {})

    def _check_fit(self, name: str, rows: int, pred: Any, target: Any) -> None:
        """Raises a ValueError unless the loss of that name takes what this head gives it."""
        loss = getattr(self, name)
        weight = jax.ShapeDtypeStruct((rows,), np.float32)
        parts = [f"(N{str(x.shape)[2:]}" for x in jax.tree.leaves((pred, target))]
        what = f"{name} gets pred {parts[0]}, target {' and '.join(parts[1:])} and weight (N,)"
        try:
            value, _ = jax.eval_shape(loss.update, loss.init(), pred, target, weight, 1.0)
        except (TypeError, ValueError) as error:
            self.refuse(f"{what}, which does not fit {loss!r}: {error}")
        if getattr(value, "shape", None) != ():
            self.refuse(f"{what} and must give one number, which {loss!r} does not: {value}")

    def _check_outputs(self, outputs: HeadOutputs) -> tuple[Sizes, Any]:
        """The (height, width) of each level, and the type to compute in."""
        if not isinstance(outputs, HeadOutputs):
            raise TypeError(f"outputs must be HeadOutputs, got {type(outputs).__name__}")
        channels, count = self.channels, self.num_base_priors
        if "centernesses" not in channels and outputs.centernesses is not None:
            raise ValueError("outputs.centernesses must be None: this head has no centerness")
        for name, size in channels.items():
            maps = getattr(outputs, name)
            if maps is None or len(maps) != len(self.strides):
                got = "None" if maps is None else f"{len(maps)} arrays"
                raise ValueError(f"{name} must be {len(self.strides)} levels, got {got}")
            for level, (x, scores) in enumerate(zip(maps, outputs.cls_scores, strict=True)):
                check_array(f"{name}[{level}]", x)
                batch = outputs.cls_scores[0].shape[:1]
                if x.ndim != 4 or x.shape != (*batch, *scores.shape[1:3], count * size):
                    raise ValueError(
                        f"{name}[{level}] must have shape (B, H, W, {count * size}), that is "
                        f"{count} priors of {size} channels, with the B, H and W of cls_scores; "
                        f"got {x.shape}"
                    )
        # By the boxes, since losses compute in a type of their own.
        dtype = compute_dtype(**dict(zip("abcdefgh", outputs.bbox_preds, strict=False)))
        return tuple((x.shape[1], x.shape[2]) for x in outputs.cls_scores), dtype

    def _assign(
        self,
        outputs: HeadOutputs,
        gt_boxes: Any,
        gt_labels: Any,
        image_shapes: Any,
        pad_shapes: Any,
    ) -> tuple[Grid, HeadTargets]:
        """The priors, and what they learn."""
        sizes, dtype = self._check_outputs(outputs)
        batch = outputs.cls_scores[0].shape[0]
        check_array("gt_boxes", gt_boxes)
        if gt_boxes.ndim != 3 or gt_boxes.shape[::2] != (batch, 4):
            raise ValueError(f"gt_boxes must have shape ({batch}, G, 4), got {gt_boxes.shape}")
        check_labels("gt_labels", gt_labels, gt_boxes.shape[:2])
        shapes = []
        for name, given, default in (
            ("image_shapes", image_shapes, np.asarray(sizes[0]) * self.strides[0]),
            ("pad_shapes", pad_shapes, np.inf),
        ):
            if given is None:
                given = jnp.broadcast_to(jnp.asarray(default), (batch, 2))
            if np.shape(given) != (batch, 2):
                raise ValueError(f"{name} must have shape ({batch}, 2), got {np.shape(given)}")
            shapes.append(jnp.asarray(given).astype(dtype))
        boxes, labels = without_padding(gt_boxes, gt_labels, dtype)
        grid = self.grid(sizes, dtype)
        targets = jax.vmap(functools.partial(self.assign, grid))(boxes, labels, *shapes)
        return grid, jax.lax.stop_gradient(targets)

    def _rows(self, outputs: HeadOutputs) -> dict[str, list[jax.Array]]:
        """The outputs by name, of each level (B, n, channels of a prior)."""
        return {
            # In two steps, which a batch that is sharded over an explicit mesh can follow.
            name: [
                x.reshape(*x.shape[:3], -1, size).reshape(x.shape[0], -1, size)
                for x in getattr(outputs, name)
            ]
            for name, size in self.channels.items()
        }
