"""The base of the heads: what all have that turn outputs and ground truth into losses."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.jitted import errors_named
from visdet_jax.core.rules import BOXES, Expected, Rule
from visdet_jax.losses.loss import Loss


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
class Head(FrozenModule):
    """Base of the heads, which have a `loss`, its `update` with states, `targets` and `decode`.

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
        self._raise_unless_positive("num_classes")
        rows = 2
        for name, (pred, target) in self.examples(rows).items():
            self._check_fit(name, rows, pred, target)

    def init(self) -> dict[str, Any]:
        """The losses' states before the first `update`, by name; () for those that keep none."""
        losses = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: loss.init() for name, loss in losses.items() if isinstance(loss, Loss)}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        """Shapes and types of each loss's pred and target, by which it is tried for its place."""
        logits = jax.ShapeDtypeStruct((rows, self.channels["cls_scores"]), np.float32)
        boxes = jax.ShapeDtypeStruct((rows, 4), np.float32)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        return {"loss_cls": (logits, labels), "loss_bbox": (boxes, boxes)}

    @property
    def use_sigmoid(self) -> bool:
        """Whether each class has its sigmoid, or all and the background share a softmax."""
        return getattr(self.loss_cls, "use_sigmoid", False)

    @property
    def channels(self) -> dict[str, int]:
        """How many channels each of the outputs has for a prediction."""
        return {"cls_scores": self.num_classes + (not self.use_sigmoid), "bbox_preds": 4}

    # What subclasses share.

    def scores(self, logits: jax.Array) -> jax.Array:
        """sigmoid(logits), or their softmax without the background: (..., C)."""
        if self.use_sigmoid:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits, axis=-1)[..., : self.num_classes]

    def stateless(self) -> dict[str, Any]:
        """The state of losses that keep none; a TypeError where one does."""
        state = self.init()
        if jax.tree.leaves(state):
            names = [name for name, part in state.items() if jax.tree.leaves(part)]
            raise TypeError(
                f"{type(self).__name__}: {' and '.join(names)} keeps running statistics: write "
                "`state = head.init()` once and `losses, state = head.update(state, ...)` at each "
                "step"
            )
        return state

    def check_state(self, state: dict[str, Any]) -> None:
        """Raises a ValueError for what `init` and `update` did not give."""
        given, own = (jax.tree.map(lambda _: 0, tree) for tree in (state, self.init()))
        if given != own:
            raise ValueError(f"state must come from init() or update(), got {state}")

    def check_ground_truth(self, gt_boxes: Any, gt_labels: Any, batch: int) -> None:
        """Raises unless these are boxes (B, G, 4) and labels (B, G)."""
        check_array("gt_boxes", gt_boxes)
        if gt_boxes.ndim != 3 or gt_boxes.shape[::2] != (batch, 4):
            raise ValueError(f"gt_boxes must have shape ({batch}, G, 4), got {gt_boxes.shape}")
        gt_labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:2])

    def expects_ground_truth(
        self, gt_boxes: Any, gt_labels: Any, image_shapes: Any, axis_name: Any
    ) -> list[Expected]:
        """What `checked` looks at in the ground truth of images of these shapes."""
        exists = jnp.asarray(gt_labels) >= 0
        shapes = jnp.asarray(image_shapes)
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
            Expected("number of boxes", count, some),
            Expected("gt_labels", gt_labels, labels),
            Expected("gt_boxes", gt_boxes, BOXES, exists),
            Expected("gt_boxes", gt_boxes, outside, exists),
        ]

    def _check_fit(self, name: str, rows: int, pred: Any, target: Any) -> None:
        """Raises a ValueError unless the loss of that name takes what this head gives it."""
        loss = getattr(self, name)
        weight = jax.ShapeDtypeStruct((rows,), np.float32)
        parts = [f"(N{str(x.shape)[2:]}" for x in jax.tree.leaves((pred, target))]
        what = f"{name} gets pred {parts[0]}, target {' and '.join(parts[1:])} and weight (N,)"
        try:
            value, _ = jax.eval_shape(loss.update, loss.init(), pred, target, weight, 1.0)
        except (TypeError, ValueError) as error:
            raise self.value_error(f"{what}, which does not fit {loss!r}: {error}") from error
        if getattr(value, "shape", None) != ():
            raise self.value_error(
                f"{what} and must give one number, which {loss!r} does not: {value}"
            )
