"""The base of the heads on priors: from maps of outputs to the losses of a detector."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.rules import FINITE, Expected
from visdet_jax.detectors.assigners.assigner import without_padding
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import Head, compiled
from visdet_jax.detectors.priors import Grid, Sizes
from visdet_jax.detectors.structures import Detections, HeadOutputs, HeadTargets, Rows


@dataclass(frozen=True, kw_only=True)
class DenseHead(Head):
    """Base of the heads on priors: a subclass is its fields and what it must define."""

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
        arguments = (outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        return self.update(self.stateless(), *arguments, axis_name=axis_name)[0]

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
        self.check_state(state)
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
        scores = self.scores(maps["cls_scores"].astype(dtype))
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
        finest = np.asarray(outputs.cls_scores[0].shape[1:3]) * self.strides[0]
        shapes = finest[None] if image_shapes is None else image_shapes
        return [
            *(
                Expected(f"{name}[{level}]", x, FINITE)
                for name in self.channels
                for level, x in enumerate(getattr(outputs, name))
            ),
            *self.expects_ground_truth(gt_boxes, gt_labels, shapes, axis_name),
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

    def examples(self, rows):
        examples = super().examples(rows)
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
    def channels(self) -> dict[str, int]:
        channels = super().channels | {"bbox_preds": self.box_channels}
        return channels | ({"centernesses": 1} if hasattr(self, "loss_centerness") else {})

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
        self.check_ground_truth(gt_boxes, gt_labels, batch)
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
