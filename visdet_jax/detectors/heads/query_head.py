"""The base of the heads whose queries are matched with boxes: DETR and its successors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.formats import convert_boxes, denormalize_boxes, normalize_boxes
from visdet_jax.boxes.nms import KeptDetections, in_slots
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.hyperparameters import Number
from visdet_jax.core.rules import UNIT, Expected, Rule
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner, hungarian
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import Head, as_shapes, compiled
from visdet_jax.detectors.postprocessing import QueryTestConfig
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.boxes.box_loss import BoxLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss


class QuerySets(NamedTuple):
    """S sets of Q queries for each of B images, matched one by one: those of S layers, say."""

    cls_scores: jax.Array  # Logits (S, B, Q, C).
    bbox_preds: jax.Array  # (S, B, Q, 4) as cx, cy, w, h in fractions of the image.
    gt: Instances  # (B, G, ...), with labels and bboxes in pixels.
    # Masks at P points, where they are matched too.
    mask_preds: jax.Array | None = None  # Logits (S, B, Q, P).
    gt_masks: jax.Array | None = None  # (S, B, G, P)


FRACTIONS = UNIT._replace(must="must be in [0, 1]: cx, cy, w, h in fractions of the image")


@dataclass(frozen=True, kw_only=True)
class QueryHead(Head):
    """Base of the heads whose queries are matched with boxes.

    The outputs have parts: the layers of a decoder, an encoder's proposals, denoising queries, and
    so on. Each part is some layers of queries, and each layer is matched with the boxes, or is told
    what it learns, and has a few losses.

    Args:
      loss_bbox: Loss of centres and sizes, in fractions of the image.
      loss_iou: Loss of the boxes as x1, y1, x2, y2.
      assigner: Matches boxes and queries; mmdet's `train_cfg` has it.
      test_cfg: How many predictions `detect` makes detections.
    """

    outputs_type: ClassVar[Any]
    bbox_rule: ClassVar[Rule] = FRACTIONS  # What `checked` asks of predicted boxes.
    # The axes of the parts of the outputs, by what their names start with.
    parts: ClassVar[Mapping[str, str]]

    loss_iou: Loss
    assigner: HungarianAssigner
    test_cfg: QueryTestConfig = QueryTestConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.loss_bbox, BoxLoss):
            raise self.value_error(
                f"loss_bbox gets fractions of the image, and {self.loss_bbox!r} needs boxes in "
                "pixels: it may be loss_iou"
            )

    # What users call. The subclasses have `update`, `loss` and `targets`.

    @compiled
    def decode(self, outputs: Any, image_shapes: Shapes | Sequence[Number]) -> Detections:
        """Boxes and scores of the last layer's queries. There are no duplicates to suppress.

        Scores are sigmoid(cls_scores), or the softmax without the background.

        Args:
          outputs: What the network gave, as `loss` takes it.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all. Boxes are clipped to them.
        """
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        scores = self.scores(outputs.cls_scores[-1].astype(dtype))
        boxes = convert_boxes(outputs.bbox_preds[-1].astype(dtype), "cxcywh", "xyxy")
        boxes = denormalize_boxes(clamp(boxes, 0, 1), jnp.asarray(image_shapes))
        return Detections(boxes, scores)

    @compiled
    def detect(self, outputs: Any, image_shapes: Shapes | Sequence[Number]) -> KeptDetections:
        """The best predictions of the last layer, the best first, as `test_cfg` says.

        With a sigmoid for each class every class of a query may be one, and with a softmax only the
        best. There are no duplicates to suppress.

        Args:
          outputs, image_shapes: See `decode`.

        Returns: (B, S, ...) the boxes, scores and classes, the index of each one's query, and which
          slots hold one; all do. S is `max_per_img`, or less where there are fewer predictions.
        Raises: as `decode`.
        """
        found = self.decode(outputs, image_shapes)
        return self.best_of(found, best_class=not self.use_sigmoid)

    # What a subclass may extend.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, labels = examples["loss_cls"]
        if isinstance(self.loss_cls, QualityLoss):
            scores = jax.ShapeDtypeStruct((rows,), np.float32)
            examples["loss_cls"] = (logits, (labels, scores))
        return examples | {"loss_iou": examples["loss_bbox"]}

    def corners(self, boxes: jax.Array) -> jax.Array:
        """Boxes (..., 4) as cx, cy, w, h as the corners whose overlap is looked at."""
        return convert_boxes(boxes, "cxcywh", "xyxy")

    def gt_of_part(self, part: str, queries: QuerySets) -> Instances:
        """What the queries of a part learn, which have all ground truth: `queries.gt`."""
        return queries.gt

    def channels_of(self, part: str, name: str) -> tuple[int, ...]:
        """How many channels the output of that name may have in a part."""
        return (self.channels[name],)

    def _check_outputs(self, outputs: Any) -> None:
        """Raises a TypeError or ValueError unless the outputs are what this head takes."""
        self.sizes_of(outputs)

    def sizes_of(self, outputs: Any) -> dict[str, int]:
        """The sizes of the outputs' axes by their letters.

        Raises: TypeError, ValueError for outputs that this head does not take.
        """
        if not isinstance(outputs, self.outputs_type):
            expected = self.outputs_type.__name__
            raise TypeError(f"outputs must be {expected}, got {type(outputs).__name__}")
        sizes: dict[str, int] = {}
        for part, axes in self.parts.items():
            there = [name for name in _PREDICTIONS if getattr(outputs, part + name) is not None]
            if part and not there:
                continue
            for name in _PREDICTIONS:
                if name not in there:
                    raise ValueError(f"{part}{name} is missing, beside {part}{there[0]}")
                last = self.channels_of(part, name)
                check_axes(part + name, getattr(outputs, part + name), axes, last, sizes)
        if getattr(outputs, "dn_gt_inds", None) is not None and "N" not in sizes:
            raise ValueError(
                "dn_cls_scores and dn_bbox_preds are missing, beside dn_gt_inds: what the decoder "
                "gives for its first N queries, the denoising ones, N being dn_gt_inds.shape[1]"
            )
        if "N" in sizes:
            if outputs.dn_gt_inds is None:
                raise ValueError("dn_gt_inds is missing, beside dn_cls_scores")
            as_labels("dn_gt_inds", outputs.dn_gt_inds, (sizes["B"], sizes["N"]))
        return sizes

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        expected = super().expects(*args, **options)
        return [
            x._replace(rule=self.bbox_rule) if x.name.endswith("bbox_preds") else x
            for x in expected
        ]

    # What subclasses share.

    def best_of(self, found: Detections, *, best_class: bool) -> KeptDetections:
        """The best predictions of each image, of all classes or of each query's best class."""
        boxes, scores = found
        classes = scores.argmax(-1).astype(jnp.int32)
        if best_class:
            scores = scores.max(-1, keepdims=True)
        batch, queries, per_query = scores.shape

        def of_image(boxes: jax.Array, scores: jax.Array, classes: jax.Array) -> KeptDetections:
            best, places = jax.lax.top_k(scores, min(self.test_cfg.max_per_img, scores.size))
            index = places // per_query
            labels = classes[index] if best_class else places % per_query
            return in_slots(jnp.ones_like(best, bool), boxes[index], best, labels, index)

        return jax.vmap(of_image)(boxes, scores.reshape(batch, queries * per_query), classes)

    def prepare(
        self, outputs: Any, gt_boxes: Any, gt_labels: Any, image_shapes: Shapes
    ) -> tuple[Instances, jax.Array]:
        """(ground truth without what stands in its padding, image shapes) of checked outputs."""
        self._check_outputs(outputs)
        dtype = compute_dtype(pred=outputs.bbox_preds)
        batch = outputs.cls_scores.shape[1]
        gt_boxes, gt_labels = self.ground_truth(gt_boxes, gt_labels, batch, dtype)
        shapes = as_shapes("image_shapes", image_shapes, gt_labels, dtype)
        return Instances(bboxes=gt_boxes, labels=gt_labels), shapes

    def targets_of(self, gt_inds: jax.Array, gt: Instances, image_shapes: jax.Array) -> HeadTargets:
        """What queries (L, B, Q) learn that are matched so."""
        gt_boxes: Any = gt.bboxes
        gt_labels: Any = gt.labels
        pick_in_layers = jax.vmap(jax.vmap(pick), in_axes=(None, 0))
        labels = pick_in_layers(gt_labels, gt_inds)
        gt_inds = jnp.where(labels >= 0, gt_inds, jnp.minimum(gt_inds, 0))
        gt_boxes = normalize_boxes(convert_boxes(gt_boxes), image_shapes)
        boxes = pick_in_layers(gt_boxes, gt_inds)
        return jax.lax.stop_gradient(self.make_targets(gt_inds, labels, boxes))

    def sets_of(self, outputs: Any, gt: Instances) -> dict[str, QuerySets]:
        """The queries of the parts that there are; each part has an axis of layers."""
        sets = {}
        boxes: Any = gt.bboxes
        for part, axes in self.parts.items():
            cls_scores, bbox_preds = (getattr(outputs, part + name) for name in _PREDICTIONS)
            if cls_scores is None:
                continue
            if "L" not in axes:
                cls_scores, bbox_preds = cls_scores[None], bbox_preds[None]
            queries = QuerySets(cls_scores, bbox_preds.astype(boxes.dtype), gt)
            sets[part] = queries._replace(gt=self.gt_of_part(part, queries))
        return sets

    def match(
        self,
        sets: dict[str, QuerySets],
        image_shapes: jax.Array,
        given: dict[str, Any],
        groups: int = 1,
    ) -> dict[str, jax.Array]:
        """The matching (S, B, Q) of each entry of `sets`, by the same names; see `hungarian`.

        All that have the same number of queries are matched in one call.

        Args:
          sets: The queries. The names are what stands before "gt_inds" in errors.
          image_shapes: (B, 2) height and width in pixels.
          given: Matchings (S, B, Q) that take the place of the assigner's, or None where there is
            none. A query is -1 where it is left out.
          groups: Into how many groups of equal size, one after the other, the queries are divided.
            Each group is matched with all boxes.

        Raises: ValueError, TypeError for a matching given that does not fit.
        """
        found, costs = {}, {}
        for name, queries in sets.items():
            if (gt_inds := given.get(name)) is None:
                costs[name] = self._costs(queries, image_shapes)
            else:
                shape = queries.cls_scores.shape[:3]
                found[name] = as_labels(f"{name}gt_inds", gt_inds, shape)
        sizes = {name: cost.shape[2] for name, cost in costs.items()}
        for size in dict.fromkeys(sizes.values()):
            if size % groups:
                raise ValueError(f"{size} queries are no {groups} groups of equal size")
            names = [name for name, other in sizes.items() if other == size]
            together = jnp.concatenate([costs[name] for name in names])
            mask = jnp.concatenate([_exists(sets[name]) for name in names])
            *leading, _, boxes = together.shape
            matrices = together.reshape(*leading, groups, size // groups, boxes)
            mask = jnp.broadcast_to(mask[:, :, None], (*leading, groups, boxes))
            gt_inds = hungarian(matrices, mask).reshape(*leading, size)
            start = 0
            for name in names:
                stop = start + len(costs[name])
                found[name] = sharded_as(gt_inds[start:stop], sets[name].cls_scores)
                start = stop
        return found

    def match_parts(
        self,
        outputs: Any,
        sets: dict[str, QuerySets],
        image_shapes: jax.Array,
        given: dict[str, Any],
        *,
        shared: bool = False,
        groups: int = 1,
    ) -> dict[str, HeadTargets]:
        """What each part learns, (S, B, Q, ...), by its own matching.

        Args:
          outputs: The outputs, which say what denoising queries learn.
          sets: See `sets_of`.
          image_shapes: (B, 2) height and width in pixels.
          given: The matchings that are given, or None, by what stands before "gt_inds".
          shared: The layers of the decoder are matched as the last one is.
          groups: See `match`.
        """
        known, matched = dict(given), dict(sets)
        for part, queries in sets.items():
            name = "dn_gt_inds" if part.startswith("dn_") else f"{part}gt_inds"
            gt_inds = outputs.dn_gt_inds if part.startswith("dn_") else given[part]
            if part and gt_inds is not None:  # The same for all layers, if there are several.
                shape = queries.cls_scores.shape[:3]
                known[part] = jnp.broadcast_to(as_labels(name, gt_inds, shape[1:]), shape)
            elif not part and shared and gt_inds is None:
                cls_scores, bbox_preds = (x[-1:] for x in queries[:2])
                matched[part] = queries._replace(cls_scores=cls_scores, bbox_preds=bbox_preds)
        found = self.match(matched, image_shapes, known, groups)
        return {
            part: self.targets_of(
                jnp.broadcast_to(found[part], queries.cls_scores.shape[:3]),
                queries.gt,
                image_shapes,
            )
            for part, queries in sets.items()
        }

    def _costs(self, queries: QuerySets, image_shapes: jax.Array) -> jax.Array:
        """The costs (S, B, Q, G)."""
        boxes = self.corners(queries.bbox_preds.astype(image_shapes.dtype))

        masks = queries.mask_preds, queries.gt_masks

        def cost(
            scores: jax.Array, boxes: jax.Array, masks: Any, gt: Instances, image_shape: jax.Array
        ) -> jax.Array:
            boxes = denormalize_boxes(boxes, image_shape)
            pred = Instances(scores=scores, bboxes=boxes, masks=masks[0])
            return self.assigner.cost(pred, gt._replace(masks=masks[1]), image_shape)

        cost_of_sets = jax.vmap(jax.vmap(cost), in_axes=(0, 0, 0, None, None))
        return cost_of_sets(queries.cls_scores, boxes, masks, queries.gt, image_shapes)

    def losses_of_layers(
        self,
        compute: Callable[[Criterion, Any], None],
        state: States,
        arrays: Any,
        axis_name: AxisName,
    ) -> tuple[list[Losses], States]:
        """The losses of each of L layers, and the state, which goes from layer to layer.

        One program serves all layers, which are computed together where no loss keeps statistics:
        one after the other they are as many kernels each, and what the gradient keeps of a layer
        is copied into an array of all. The losses of RT-DETR's decoder start 14 kernels in place of
        150 on an H200, and need a tenth of the memory (jax 0.12.0.1).

        Args:
          compute: Adds the losses of one layer to a criterion.
          state: The losses' states by name.
          arrays: What `compute` gets of each layer, with an axis L in front.
          axis_name: The mesh axis, or axes, over which the batch is spread.
        """

        def layer(state: States, arrays: Any) -> tuple[States, Losses]:
            rows = jax.tree.leaves(arrays)[0].shape[1]
            criterion = Criterion(self, state, (rows,), axis_name)
            compute(criterion, arrays)
            return criterion.state, criterion.losses

        # jax 0.10.2 cannot take the gradient of all layers together where a part has no queries.
        is_empty = any(0 in x.shape for x in jax.tree.leaves(arrays))
        if is_empty or jax.tree.leaves(state):
            state, by_layer = jax.lax.scan(layer, state, arrays)
        else:
            _, by_layer = jax.vmap(layer, in_axes=(None, 0))(state, arrays)
        layers = range(len(jax.tree.leaves(arrays)[0]))
        return [{name: values[i] for name, values in by_layer.items()} for i in layers], state


def _exists(queries: QuerySets) -> jax.Array:
    """Which ground truths there are, (S, B, G)."""
    labels: Any = queries.gt.labels
    return jnp.broadcast_to(labels >= 0, (len(queries.cls_scores), *labels.shape))


_PREDICTIONS = ("cls_scores", "bbox_preds")


def check_axes(name: str, x: Any, axes: str, last: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Raises a ValueError unless an array has these axes, and then one of the sizes `last`.

    Args:
      axes: Letters of its axes but the last.
      sizes: The sizes of the axes that are known, by their letters. Those of others are added.
    """
    check_array(name, x)
    known = [sizes.get(axis) for axis in axes]
    fits = x.ndim == len(axes) + 1 and x.shape[-1] in last
    if not fits or any(n not in (None, m) for n, m in zip(known, x.shape, strict=False)):
        expected = [
            axis if n is None else f"{axis}={n}" for axis, n in zip(axes, known, strict=True)
        ]
        shape = ", ".join([*expected, " or ".join(map(str, last))])
        raise ValueError(f"{name} must have shape ({shape}), got {x.shape}")
    sizes.update(zip(axes, x.shape, strict=False))
