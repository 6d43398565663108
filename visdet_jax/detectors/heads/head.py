"""The base of the heads, and what makes their methods: `compiled` and `without_state`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.overlap import overlaps
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import reduce_sum, sharded_as
from visdet_jax.core.docstrings import with_arguments
from visdet_jax.core.dtypes import as_dtype
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Count, Number
from visdet_jax.core.jitted import errors_named
from visdet_jax.core.rules import BOXES, FINITE, GROUND_TRUTH_COUNT, LOGITS, Expected, Rule
from visdet_jax.detectors.assigners.assigner import EPS, without_padding
from visdet_jax.detectors.structures import Detections, HeadTargets, Losses, States
from visdet_jax.losses.boxes.box_loss import BoxLoss
from visdet_jax.losses.loss import Loss

H = TypeVar("H", bound="WithLosses")
P = ParamSpec("P")
R = TypeVar("R")

# Arguments that choose the program.
_STATIC = ("axis_name", "image_shape", "training")
# Arguments that may be lists or tuples of numbers.
_SHAPES = ("image_shapes", "pad_shapes", "batch_input_shape")


def compiled(method: Callable[Concatenate[H, P], R]) -> Callable[Concatenate[H, P], R]:
    """Decorator that jits a method of a head and puts the head's name in front of its errors.

    `self` and the names in `_STATIC` are static, all other arguments are traced. Lists and tuples
    of numbers for `image_shapes` and the like are made arrays first: the jit would take each of
    their numbers for an array of its own.

    A head has no hash while one of its hyperparameters is being traced. Its methods then run
    without a jit of their own, inside the jit or vmap that traces.
    """
    signature = inspect.signature(method)
    static = [name for name in ("self", *_STATIC) if name in signature.parameters]
    jitted = jax.jit(method, static_argnames=static)

    @functools.wraps(method)
    def call(head: H, *args: P.args, **options: P.kwargs) -> R:
        with errors_named(type(head).__name__):
            given = signature.bind(head, *args, **options)
            for name in _SHAPES:
                if isinstance(given.arguments.get(name), list | tuple):
                    given.arguments[name] = jnp.asarray(given.arguments[name])
            run: Any = jitted if _has_hash(head) else method
            result: R = run(*given.args, **given.kwargs)
            return result

    return call


def _has_hash(head: Any) -> bool:
    try:
        hash(head)
    except TypeError:
        return False
    return True


def without_state(
    update: Callable[Concatenate[H, States, P], tuple[Losses, States]],
) -> Callable[Concatenate[H, P], Losses]:
    """Makes the `loss` of a head from its `update`: the same arguments, described as there."""

    def loss(head: H, *args: P.args, **options: P.kwargs) -> Losses:
        """The losses of a batch by name, each a scalar.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        This is `update` for losses without running statistics. A head with a loss that keeps some
        raises a TypeError, which says how to call `update`. Shapes and types that do not fit raise
        a ValueError or TypeError.
        """
        losses, _ = head.update(head.stateless(), *args, **options)
        return losses

    signature = inspect.signature(update)
    parameters = [p for name, p in signature.parameters.items() if name != "state"]
    loss.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        parameters, return_annotation=Losses
    )
    names = [parameter.name for parameter in parameters]
    loss.__doc__ = with_arguments(loss.__doc__, names, [update.__doc__ or ""])
    loss.__module__ = update.__module__
    loss.__qualname__ = f"{update.__qualname__.rpartition('.')[0]}.loss"
    return loss


@dataclass(frozen=True, kw_only=True)
class WithLosses(FrozenModule):
    """Base of what has losses in its fields, or parts that have: their states by name."""

    # Whether its losses have the reduction "sum", and the sums are divided by exactly their
    # `avg_factor`, without mmdet's eps.
    sums_losses: ClassVar[bool] = False

    def init(self) -> States:
        """The losses' states before the first `update`, by name; () for those that keep none."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: part.init() for name, part in parts.items() if isinstance(part, Loss | WithLosses)
        }

    def update(self, *args: Any, **options: Any) -> tuple[Losses, States]:
        """(losses, next state) of a state and a batch."""
        raise NotImplementedError(f"{type(self).__name__} must define update")

    def stateless(self) -> States:
        """The state of losses that keep none; a TypeError where one does."""
        state = self.init()
        if jax.tree.leaves(state):
            names = [name for name, part in state.items() if jax.tree.leaves(part)]
            raise TypeError(
                f"{type(self).__name__}: {' and '.join(names)} "
                f"{'keeps' if len(names) == 1 else 'keep'} running statistics: write "
                "`state = head.init()` once and `losses, state = head.update(state, ...)` at each "
                "step"
            )
        return state

    def check_state(self, state: States) -> None:
        """Raises a ValueError unless the state has the form of what `init` gives."""
        given, own = (jax.tree.map(lambda _: 0, tree) for tree in (state, self.init()))
        if given != own:
            raise ValueError(f"state must come from init() or update(), got {state}")

    def check_fit(self, name: str, rows: int, pred: Any, target: Any) -> None:
        """Raises a ValueError unless the loss of that name takes what this head gives it.

        Args:
          name: The field that holds the loss.
          rows, pred, target: How many rows it is tried with; their shapes and types.
        """
        loss = getattr(self, name)
        if self.sums_losses and loss.reduction != "sum":
            raise self.value_error(f'{name} must have reduction="sum", got {loss!r}')
        weight = jax.ShapeDtypeStruct((rows,), np.float32)
        parts = [f"(N{str(x.shape)[2:]}" for x in jax.tree.leaves((pred, target))]
        what = f"{name} gets pred {parts[0]}, target {' and '.join(parts[1:])} and weight (N,)"
        try:
            factor = () if self.sums_losses else (1.0,)
            value, _ = jax.eval_shape(loss.update, loss.init(), pred, target, weight, *factor)
        except (TypeError, ValueError) as error:
            raise self.value_error(f"{what}, which does not fit {loss!r}: {error}") from error
        if any(part.shape != () for part in jax.tree.leaves(value)):
            raise self.value_error(
                f"{what} and must give one number, which {loss!r} does not: {value}"
            )


@dataclass(frozen=True, kw_only=True)
class BaseHead(WithLosses):
    """Base of the heads, which turn outputs of a network and ground truth into losses.

    A head has no parameters and is no network. Like a loss it is frozen, equal and hashed by value,
    and can be a jit argument. A subclass has its losses as fields, and defines `update`, whose
    first argument is the state of `init`, and `loss = without_state(update)`; `targets`, what is
    learnt; `decode`, the boxes and scores that outputs mean; `channels` and `examples`. In a head's
    config losses and other parts may be configs too.

    Args:
      num_classes: Number of classes without background, at least 1.
    """

    # The form of the boxes that the losses of boxes get, which some losses have as a field.
    bbox_format: ClassVar[str] = "xyxy"

    num_classes: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = 2
        for name, (pred, target) in self.examples(rows).items():
            self.check_fit(name, rows, pred, target)
        for field in fields(self):
            part = getattr(self, field.name)
            if getattr(part, "bbox_format", self.bbox_format) != self.bbox_format:
                raise self.value_error(
                    f'{field.name} gets boxes that need bbox_format="{self.bbox_format}", got '
                    f"{part!r}"
                )

    # What users call. The subclasses say of which arguments.

    def targets(self, *args: Any, **options: Any) -> HeadTargets:
        """What each prior or query learns."""
        raise NotImplementedError(f"{type(self).__name__} must define targets")

    def decode(self, *args: Any, **options: Any) -> Detections:
        """The boxes and scores that the outputs mean."""
        raise NotImplementedError(f"{type(self).__name__} must define decode")

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        call = inspect.signature(self.update).bind(self.init(), *args, **options)
        call.apply_defaults()
        given = call.arguments
        outputs, gt_boxes, image_shapes = (
            given[name] for name in ("outputs", "gt_boxes", "image_shapes")
        )
        if image_shapes is None:
            image_shapes = np.asarray(self.image_shape(outputs))[None]
        gt_labels = as_labels("gt_labels", given["gt_labels"])
        exists = gt_labels >= 0
        count = reduce_sum(exists.sum(), given["axis_name"])
        last = self.last_label
        labels = Rule(lambda x: x > last, f"must be from 0 to {last}, or negative for padding")
        leaves = {
            jax.tree_util.keystr(path).removeprefix("."): x
            for path, x in jax.tree.leaves_with_path(outputs)
        }
        # One warning is enough: of the logits of the first level, which is the largest.
        logits = next((name for name in leaves if name.startswith("cls_scores")), None)
        return [
            *(
                Expected(name, x, LOGITS if name == logits else FINITE)
                for name, x in leaves.items()
            ),
            Expected("number of boxes", count, GROUND_TRUTH_COUNT),
            Expected("gt_labels", gt_labels, labels),
            Expected("gt_boxes", gt_boxes, BOXES, exists),
            Expected("gt_boxes", gt_boxes, _inside(image_shapes, gt_boxes.dtype), exists),
        ]

    # What subclasses may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        """Shapes and types of each loss's pred and target, by which it is tried for its place."""
        raise NotImplementedError(f"{type(self).__name__} must define examples")

    @property
    def channels(self) -> dict[str, int]:
        """How many channels each of the outputs has for a prediction."""
        raise NotImplementedError(f"{type(self).__name__} must define channels")

    @property
    def last_label(self) -> int:
        """The largest label that ground truth may have."""
        return self.num_classes - 1

    def image_shape(self, outputs: Any) -> tuple[int, int]:
        """The (height, width) of images whose `image_shapes` are not given, in pixels."""
        raise self.value_error("image_shapes must be given")

    # What subclasses share.

    def ground_truth(
        self, gt_boxes: Any, gt_labels: Any, batch: int, dtype: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Boxes (B, G, 4), 0 where they are padding, and labels (B, G) as int32 or int64.

        G is at least 1. Raises: ValueError, TypeError for what does not fit.
        """
        check_array("gt_boxes", gt_boxes)
        if gt_boxes.ndim != 3 or gt_boxes.shape[::2] != (batch, 4):
            raise ValueError(f"gt_boxes must have shape ({batch}, G, 4), got {gt_boxes.shape}")
        labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:2])
        return without_padding(gt_boxes, labels, dtype)

    def make_targets(
        self,
        gt_inds: jax.Array,
        labels: jax.Array,
        boxes: jax.Array,
        centerness: jax.Array | None = None,
        pos_weight: Number = 1,
        metrics: jax.Array | None = None,
    ) -> HeadTargets:
        """The targets of priors or queries: background, of weight 1, where they have no box.

        Args:
          gt_inds: See `HeadTargets`.
          labels: Of the box that `gt_inds` calls; anything where it calls none. So are the others.
          boxes: (..., 4), in the form that the head learns.
          centerness: For heads that have one.
          pos_weight: Weight of positives in the class loss; any number that is not above 0 means 1.
          metrics: For heads whose assigner looks at predictions.
        """
        positive = gt_inds > 0
        pos_weight = as_dtype(boxes.dtype, pos_weight)
        of_positives = jnp.where(pos_weight > 0, pos_weight, 1)
        return HeadTargets(
            gt_inds=gt_inds,
            labels=jnp.where(positive, labels, self.num_classes),
            label_weights=jnp.where(positive, of_positives, (gt_inds >= 0).astype(boxes.dtype)),
            bbox_targets=jnp.where(positive[..., None], boxes, 0),
            bbox_weights=positive.astype(boxes.dtype),
            centerness=None if centerness is None else jnp.where(positive, centerness, 0),
            metrics=None if metrics is None else jnp.where(positive, metrics, 0),
        )


@dataclass(frozen=True, kw_only=True)
class Head(BaseHead):
    """Base of the heads with a loss of classes and one of boxes; see `BaseHead`.

    Args:
      loss_cls: Loss of the class logits.
      loss_bbox: Loss of the boxes.
    """

    loss_cls: Loss
    loss_bbox: Loss

    # What subclasses may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        logits = jax.ShapeDtypeStruct((rows, self.channels["cls_scores"]), np.float32)
        boxes = jax.ShapeDtypeStruct((rows, 4), np.float32)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        return {"loss_cls": (logits, labels), "loss_bbox": (boxes, boxes)}

    @property
    def channels(self) -> dict[str, int]:
        return {"cls_scores": self.num_classes + (not self.use_sigmoid), "bbox_preds": 4}

    # What subclasses share.

    @property
    def use_sigmoid(self) -> bool:
        """Whether each class has its own sigmoid; if not, one softmax has all and background."""
        return getattr(self.loss_cls, "use_sigmoid", False)

    def scores(self, logits: jax.Array) -> jax.Array:
        """sigmoid(logits), or their softmax without the background: (..., C)."""
        if self.use_sigmoid:
            return jax.nn.sigmoid(logits)
        return jax.nn.softmax(logits, axis=-1)[..., : self.num_classes]

    def raise_unless_sigmoid(self) -> None:
        """Raises a ValueError where `loss_cls` has a softmax of all classes."""
        if not self.use_sigmoid:
            raise self.value_error(
                f"loss_cls must use a sigmoid for each class, got {self.loss_cls!r}"
            )

    def raise_for_losses_of_boxes(self, reg_decoded_bbox: bool) -> None:
        """Raises a ValueError where `loss_bbox` needs boxes and would get deltas."""
        if isinstance(self.loss_bbox, BoxLoss) and not reg_decoded_bbox:
            raise self.value_error(f"{self.loss_bbox!r} needs boxes: set reg_decoded_bbox=True")


def as_shapes(name: str, shapes: Any, labels: jax.Array, dtype: Any) -> jax.Array:
    """Heights and widths (B, 2) of images in `dtype`, over devices as the labels (B, G) are.

    Raises: ValueError for another shape.
    """
    expected = (labels.shape[0], 2)
    if np.shape(shapes) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {np.shape(shapes)}")
    return sharded_as(jnp.asarray(shapes).astype(dtype), labels)


def iou_of_positives(pred: jax.Array, target: jax.Array, bbox_weights: jax.Array) -> jax.Array:
    """The quality of each prediction: the IoU with its box, without a gradient; 0 without a box."""
    iou = overlaps(jax.lax.stop_gradient(pred), target, "iou", EPS)
    return jnp.where(bbox_weights > 0, iou, 0)


def _inside(image_shapes: Any, dtype: Any) -> Rule:
    """The rule that boxes (B, G, 4) reach into their image, of height and width (B, 2)."""
    height, width = jnp.moveaxis(jnp.asarray(image_shapes)[:, None], -1, 0).astype(dtype)

    def outside(box: jax.Array) -> jax.Array:
        x1, y1, x2, y2 = jnp.moveaxis(box, -1, 0)
        return (x2 <= 0) | (y2 <= 0) | (x1 >= width) | (y1 >= height)

    def beyond(boxes: jax.Array, read: jax.Array) -> jax.Array:
        x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
        far = (x1 < -width / 10) | (y1 < -height / 10)
        far |= (x2 > 1.1 * width) | (y2 > 1.1 * height)
        return 4 * (far & read & ~outside(boxes)).sum() > read.sum()

    return Rule(
        outside,
        "lies outside its image",
        doubt="more than a quarter of {name} reach far beyond their image: are x and y exchanged, "
        "or its height and width?",
        doubtful=beyond,
    )
