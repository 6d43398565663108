"""MaskFormer's head: a set of masks against the set of ground truths, layer by layer."""

import inspect
import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import reduce_sum, sharded_as
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.rules import FINITE, GROUND_TRUTH_COUNT, UNIT, Expected, Rule
from visdet_jax.detectors.assigners.assigner import pick
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner, hungarian
from visdet_jax.detectors.costs.classes import ClassificationCost, FocalLossCost
from visdet_jax.detectors.costs.masks import DiceCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.criterion import Criterion
from visdet_jax.detectors.heads.head import WithLosses, compiled, without_state
from visdet_jax.detectors.registry import HEADS, with_training
from visdet_jax.detectors.structures import (
    AxisName,
    Losses,
    MaskFormerOutputs,
    Masks,
    MaskTargets,
    States,
)
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.masks.dice import DiceLoss

# How many masks of an image are enlarged together. More take more memory, and less time on an
# accelerator.
MASKS_TOGETHER = 4


class MaskPairs(NamedTuple):
    """The matched pairs of a layer, in K slots of each of B images."""

    queries: jax.Array  # (B, K), 0 for the first.
    rows: jax.Array  # (B, K) the ground truth, 0 for the first.
    exists: jax.Array  # (B, K) bool: whether there is a pair.


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class MaskFormerHead(WithLosses):
    """MaskFormer's set criterion, for the last layer of a decoder and for those before it.

    In each layer `assigner` matches the masks of an image with queries, one each, at the least
    total cost; the other queries are "no object". There the ground truth is of the predictions'
    size, each pixel the nearest one. `loss_cls` is the sum over the queries divided by the sum of
    the weights of their classes, as its `class_weight` has them.

    For the losses of masks the matched logits are enlarged bilinearly to the size H × W of the
    ground truth. With n_i the number of matched queries of an image and n = Σ_i max(n_i, 1), of the
    whole batch, `loss_dice` is a sum over them divided by n. `loss_mask`, over their pixels divided
    by n · H · W, has one class, which is the mask, as in mmdet: 0 for a pixel of it and 1, the
    background, for others. So a focal loss's `alpha` is the weight of the mask's pixels. The
    matching has no gradient.

    The losses of the layers before the last are called "d0.loss_cls" and so on.

    For panoptic segmentation the ground truth of an image has a mask for each thing, and one for
    each class of stuff in it, whose labels follow those of the things.

    Memory: the logits of 4 masks of each image at the size of the ground truth, and what the losses
    make of them. They are computed again for the gradient.

    Args:
      num_things_classes: Number of classes of things, at least 1. They come first.
      num_stuff_classes: Number of classes of stuff, at least 0.
      loss_cls: Loss of the logits, with a softmax.
      loss_mask: Loss of the logits of the masks' pixels.
      loss_dice: Loss of whole masks.
      assigner: Matches masks and queries; mmdet's `train_cfg` has it.

    Source: Cheng et al. 2021, https://arxiv.org/abs/2107.06278; mmdet's `MaskFormerHead`
    """

    num_things_classes: Count = 80
    num_stuff_classes: Annotated[int, Range(0)] = 53
    loss_cls: CrossEntropyLoss = CrossEntropyLoss(class_weight=(1.0,) * 133 + (0.1,))
    loss_mask: Loss = FocalLoss(gamma=2.0, alpha=0.25, loss_weight=20.0)
    loss_dice: Loss = DiceLoss(naive_dice=True, eps=1.0)
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            ClassificationCost(),
            FocalLossCost(weight=20.0, binary_input=True),
            DiceCost(pred_act=True, eps=1.0),
        )
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss_cls.use_sigmoid or self.loss_cls.use_mask:
            raise self.value_error(f"loss_cls must have a softmax, got {self.loss_cls!r}")
        rows = 2
        for name, (pred, target) in self.examples(rows).items():
            self.check_fit(name, rows, pred, target)

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet. Its `strides` have no effect.

        Raises: ValueError for a key that stands twice, and for a sampler that does not take all.
        """
        settings = with_training(settings, train_cfg)
        sampler = settings.pop("sampler", None)
        if sampler is not None and sampler["type"] != "MaskPseudoSampler":
            raise ValueError(f"sampler must be MaskPseudoSampler, got {sampler}")
        settings.pop("strides", None)
        return settings

    # What users call.

    @compiled
    def update(
        self,
        state: States,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many masks they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `MaskFormerOutputs`.
          gt_labels: (B, G) integers of any width, from 0 to C - 1, C being the number of all
            classes. Negative ones are padding, of whose masks nothing is read.
          gt_masks: (B, G, H, W) the bitmaps of the ground truth, 0 and 1 of any type. H and W are
            those of the padded images.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's mask,
            1 for the first and 0 for none. A query of -1 is left out.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        return self.losses_of(state, outputs, gt_labels, gt_masks, None, gt_inds, axis_name)

    loss = without_state(update)

    @compiled
    def targets(
        self,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        *,
        gt_inds: jax.Array | None = None,
    ) -> MaskTargets:
        """What each query learns in each layer. The arguments are those of `loss`."""
        return self.targets_of(outputs, gt_labels, gt_masks, None, gt_inds)

    @compiled
    def decode(self, outputs: MaskFormerOutputs) -> Masks:
        """Class scores and masks of the last layer's queries, at the size of the network's masks.

        Scores are the softmax without "no object", masks are sigmoid(mask_preds).

        Args:
          outputs: What the network gave; see `MaskFormerOutputs`.
        """
        dtype = self.check_outputs(outputs)
        scores = jax.nn.softmax(outputs.cls_scores[-1].astype(dtype), axis=-1)
        return Masks(scores[..., :-1], jax.nn.sigmoid(outputs.mask_preds[-1].astype(dtype)))

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        given = inspect.signature(self.update).bind(self.init(), *args, **options).arguments
        gt_labels = as_labels("gt_labels", given["gt_labels"])
        exists, masks = gt_labels >= 0, given["gt_masks"]
        count = reduce_sum(exists.sum(), given.get("axis_name"))
        last = self.num_classes - 1
        labels = Rule(lambda x: x > last, f"must be from 0 to {last}, or negative for padding")
        return [
            *(
                Expected(jax.tree_util.keystr(path).removeprefix("."), x, FINITE)
                for path, x in jax.tree.leaves_with_path(given["outputs"])
            ),
            Expected("number of masks", count, GROUND_TRUTH_COUNT),
            Expected("gt_labels", gt_labels, labels),
            Expected(
                "gt_masks", masks, UNIT, exists[..., None, None] & jnp.ones(masks.shape, bool)
            ),
        ]

    # What a subclass may extend. `drawn` is what it drew for a layer, or for all with an axis L.

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        """Shapes and types of each loss's pred and target, by which it is tried for its place."""
        logits = jax.ShapeDtypeStruct((rows, self.num_classes + 1), np.float32)
        pixels = jax.ShapeDtypeStruct((rows, 1), np.float32)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        masks = jax.ShapeDtypeStruct((rows, 4, 4), np.float32)
        return {
            "loss_cls": (logits, labels),
            "loss_mask": (pixels, labels),
            "loss_dice": (masks, masks),
        }

    def masks_to_match(
        self, mask_preds: jax.Array, gt_masks: jax.Array, drawn: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The masks of a layer (B, Q, ...) and of the ground truth (B, G, ...), of one size."""
        rows, columns = (
            np.arange(size) * whole // size
            for size, whole in zip(mask_preds.shape[2:], gt_masks.shape[2:], strict=True)
        )
        return mask_preds, gt_masks[:, :, rows][:, :, :, columns]

    def compute_masks(
        self,
        criterion: Criterion,
        mask_preds: jax.Array,
        gt_masks: jax.Array,
        pairs: MaskPairs,
        total: jax.Array,
        drawn: Any,
    ) -> None:
        """Adds `loss_mask` and `loss_dice` of one layer to the criterion.

        Args:
          criterion: Calls the losses.
          mask_preds: (B, Q, h, w)
          gt_masks: (B, G, H, W)
          pairs: What is matched.
          total: The number of pairs by which the sums are divided.
          drawn: What was drawn for this layer.
        """
        size = gt_masks.shape[2:]
        count = pairs.exists.shape[1]
        together = max(min(MASKS_TOGETHER, count), 1)

        def in_chunks(x: jax.Array) -> jax.Array:
            x = jnp.pad(x, [(0, 0), (0, -count % together)])
            return jnp.moveaxis(x.reshape(x.shape[0], -(-count // together), together), 1, 0)

        def of_chunk(state: States, pairs: MaskPairs) -> tuple[States, Losses]:
            part = Criterion(self, state, (together,), criterion.axis_name)
            logits, bitmaps = (
                jax.vmap(lambda x, i: x[i])(*x)
                for x in ((mask_preds, pairs.queries), (gt_masks, pairs.rows))
            )
            logits = logits.astype(total.dtype)
            logits = jax.image.resize(
                logits,
                (*logits.shape[:2], *size),
                "bilinear",
                antialias=False,
                precision=jax.lax.Precision.HIGHEST,
            )
            inside = bitmaps.astype(bool)
            weight = pairs.exists.astype(logits.dtype)
            part.add("loss_dice", logits, inside.astype(logits.dtype), weight, total)
            pixels, labels, weight = (
                x.reshape(x.shape[0], together * math.prod(size))
                for x in (
                    logits,
                    (~inside).astype(jnp.int32),
                    jnp.broadcast_to(weight[..., None, None], logits.shape),
                )
            )
            part.add("loss_mask", pixels[..., None], labels, weight, total * math.prod(size))
            return part.state, part.losses

        # Keep the checkpoint. Without it the enlarged masks of all pairs are kept for the gradient.
        run = jax.checkpoint(of_chunk, prevent_cse=False)
        criterion.state, parts = jax.lax.scan(run, criterion.state, jax.tree.map(in_chunks, pairs))
        criterion.losses |= {name: values.sum() for name, values in parts.items()}

    # What subclasses share.

    @property
    def num_classes(self) -> int:
        """The number of all classes, without "no object"."""
        return self.num_things_classes + self.num_stuff_classes

    def losses_of(
        self,
        state: States,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        drawn: Any,
        gt_inds: jax.Array | None,
        axis_name: AxisName,
    ) -> tuple[Losses, States]:
        """The losses by name, and the next state. The arguments are those of `update`."""
        self.check_state(state)
        targets = self.targets_of(outputs, gt_labels, gt_masks, drawn, gt_inds)
        _, gt_masks = self._ground_truth(outputs, gt_labels, gt_masks)
        queries, channels = outputs.cls_scores.shape[2:]
        # Of a matching that is given all queries may have a mask.
        most = queries if gt_inds is not None else min(queries, gt_masks.shape[1])

        def layer(state: States, arrays: tuple[Any, ...]) -> tuple[States, Losses]:
            cls_scores, mask_preds, targets, drawn = arrays
            criterion = Criterion(self, state, (queries,), axis_name)
            weights = self.loss_cls.weight_of_classes(cls_scores.reshape(-1, channels))
            of_labels = targets.label_weights
            if weights is not None:
                own = is_at(targets.labels[..., None], cls_scores, axis=-1)
                weights = weights.astype(of_labels.dtype)[None, None]
                of_labels *= jnp.where(own, weights, 0).sum(-1)
            divisor = criterion.total(of_labels.sum(), 0)
            criterion.add("loss_cls", cls_scores, targets.labels, targets.label_weights, divisor)
            matched = targets.gt_inds > 0
            counts = jnp.maximum(matched.sum(1, dtype=jnp.int32), 1)
            total = criterion.total(counts.sum().astype(of_labels.dtype))
            # Of equal ones top_k takes those of the lowest index.
            exists, places = jax.lax.top_k(matched.astype(jnp.int32), most)
            rows = jnp.take_along_axis(targets.gt_inds, places, axis=1)
            pairs = MaskPairs(places, jnp.maximum(rows - 1, 0), exists > 0)
            self.compute_masks(criterion, mask_preds, gt_masks, pairs, total, drawn)
            return criterion.state, criterion.losses

        arrays = (outputs.cls_scores, outputs.mask_preds, targets, drawn)
        state, by_layer = jax.lax.scan(layer, state, arrays)
        *before, last = range(len(outputs.cls_scores))
        losses = {name: values[last] for name, values in by_layer.items()}
        for i in before:
            losses |= {f"d{i}.{name}": values[i] for name, values in by_layer.items()}
        return losses, state

    def targets_of(
        self,
        outputs: MaskFormerOutputs,
        gt_labels: jax.Array,
        gt_masks: jax.Array,
        drawn: Any,
        gt_inds: jax.Array | None,
    ) -> MaskTargets:
        """What each query learns. The arguments are those of `targets`."""
        dtype = self.check_outputs(outputs)
        gt_labels, gt_masks = self._ground_truth(outputs, gt_labels, gt_masks)
        if gt_inds is None:
            gt_inds = self._match(outputs, gt_labels, gt_masks, drawn)
        else:
            gt_inds = as_labels("gt_inds", gt_inds, outputs.cls_scores.shape[:3])
        labels = jax.vmap(jax.vmap(pick), in_axes=(None, 0))(gt_labels, gt_inds)
        gt_inds = jnp.where(labels >= 0, gt_inds, jnp.minimum(gt_inds, 0))
        labels = jnp.where(gt_inds > 0, labels, self.num_classes)
        return MaskTargets(gt_inds, labels, (gt_inds >= 0).astype(dtype))

    # The rest.

    def _match(
        self, outputs: MaskFormerOutputs, gt_labels: jax.Array, gt_masks: jax.Array, drawn: Any
    ) -> jax.Array:
        """The matching (L, B, Q) of all layers and images at once."""
        exists = gt_labels >= 0

        def cost(
            scores: jax.Array, masks: jax.Array, gt_labels: jax.Array, gt_masks: jax.Array
        ) -> jax.Array:
            pred = Instances(scores=scores, masks=masks)
            return self.assigner.cost(pred, Instances(labels=gt_labels, masks=gt_masks))

        def of_layer(arrays: tuple[Any, ...]) -> jax.Array:
            cls_scores, mask_preds, drawn = arrays
            masks, truth = self.masks_to_match(mask_preds, gt_masks, drawn)
            costs: jax.Array = jax.vmap(cost)(cls_scores, masks, gt_labels, truth)
            return costs

        detached = jax.lax.stop_gradient((outputs.cls_scores, outputs.mask_preds))
        costs = jax.lax.map(of_layer, (*detached, drawn))
        mask = jnp.broadcast_to(exists, (len(costs), *exists.shape))
        return sharded_as(hungarian(costs, mask), outputs.cls_scores)

    def _ground_truth(
        self, outputs: MaskFormerOutputs, gt_labels: Any, gt_masks: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Labels (B, G) as int32 or int64, and masks (B, G, H, W). G is at least 1."""
        gt_labels = as_labels("gt_labels", gt_labels)
        batch = outputs.cls_scores.shape[1]
        if gt_labels.ndim != 2 or gt_labels.shape[0] != batch:
            raise ValueError(f"gt_labels must have shape ({batch}, G), got {gt_labels.shape}")
        check_array("gt_masks", gt_masks)
        if gt_masks.ndim != 4 or gt_masks.shape[:2] != gt_labels.shape:
            raise ValueError(
                f"gt_masks must have shape ({batch}, {gt_labels.shape[1]}, H, W), got "
                f"{gt_masks.shape}"
            )
        if not gt_labels.shape[1]:
            gt_labels = jnp.full((batch, 1), -1, gt_labels.dtype)
            gt_masks = jnp.zeros((batch, 1, *gt_masks.shape[2:]), bool)
        return gt_labels, jnp.asarray(gt_masks)

    def check_outputs(self, outputs: Any) -> Any:
        """The type that outputs are computed in. Raises unless they are what this head takes."""
        if not isinstance(outputs, MaskFormerOutputs):
            raise TypeError(f"outputs must be MaskFormerOutputs, got {type(outputs).__name__}")
        channels = self.num_classes + 1
        dtype = compute_dtype(pred=outputs.cls_scores, mask_preds=outputs.mask_preds)
        scores, masks = outputs.cls_scores.shape, outputs.mask_preds.shape
        if len(scores) != 4 or scores[-1] != channels:
            raise ValueError(f"cls_scores must have shape (L, B, Q, {channels}), got {scores}")
        if len(masks) != 5 or masks[:3] != scores[:3]:
            expected = ", ".join(map(str, scores[:3]))
            raise ValueError(f"mask_preds must have shape ({expected}, h, w), got {masks}")
        return dtype
