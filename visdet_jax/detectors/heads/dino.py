"""The heads of DINO and of Grounding DINO."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.checks import check_array
from visdet_jax.core.elementary import divide
from visdet_jax.core.hyperparameters import Count, Number
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.detectors.assigners.hungarian import HungarianAssigner
from visdet_jax.detectors.costs.boxes import BBoxL1Cost, IoUCost
from visdet_jax.detectors.costs.classes import BinaryFocalLossCost, FocalLossCost
from visdet_jax.detectors.costs.match_cost import Instances
from visdet_jax.detectors.heads.detr import DeformableDETRHead
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.heads.query_head import QuerySets
from visdet_jax.detectors.registry import HEADS, with_training
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    DETROutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.classification.focal import FocalLoss
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.quality._quality import QualityLoss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DINOHead(DeformableDETRHead):
    """DINO's criterion: Deformable DETR's, with classes for the encoder's proposals.

    The encoder gives the Q proposals that the decoder starts from, and they learn the classes of
    their boxes. The denoising queries are those of `dn_queries`.

    Source: Zhang et al. 2022, https://arxiv.org/abs/2203.03605; mmdet's `DINOHead`
    """

    loss_cls: Loss = FocalLoss()
    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            FocalLossCost(weight=2.0),
            BBoxL1Cost(weight=5.0, box_format="xywh"),
            IoUCost(weight=2.0),
        )
    )

    def gt_of_part(self, part: str, queries: QuerySets) -> Instances:
        return queries.gt


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class GroundingDINOHead(DINOHead):
    """Grounding DINO's criterion: DINO's, with tokens of a text in place of classes.

    Each query has a logit for each of T tokens, and learns which of them name its box: none for
    background. Tokens that the text does not have are neither learnt nor counted, and their logits
    may be -inf. The class loss is divided by max(n, 1), a number of queries and not of tokens.

    Args:
      num_classes: Has no effect: labels only say which boxes are padding.
      max_text_len: T, the number of tokens of the longest text; mmdet's `contrastive_cfg` has it.

    Source: Liu et al. 2023, https://arxiv.org/abs/2303.05499; mmdet's `GroundingDINOHead`
    """

    assigner: HungarianAssigner = HungarianAssigner(
        match_costs=(
            BinaryFocalLossCost(weight=2.0),
            BBoxL1Cost(weight=5.0, box_format="xywh"),
            IoUCost(weight=2.0),
        )
    )
    max_text_len: Count = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.raise_unless_sigmoid()
        if isinstance(self.loss_cls, QualityLoss):
            raise self.value_error(f"loss_cls gets maps of tokens, and {self.loss_cls!r} labels")

    @classmethod
    def from_mmdet(cls, settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The keys of this head for those of mmdet, whose `contrastive_cfg` has `max_text_len`."""
        settings = with_training(settings, train_cfg)
        text = settings.pop("contrastive_cfg", None)
        if text is not None and "max_text_len" in text:
            settings["max_text_len"] = text["max_text_len"]
        return settings

    @compiled
    def update(  # type: ignore[override]
        self,
        state: States,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        positive_maps: jax.Array,
        text_token_mask: jax.Array,
        gt_inds: jax.Array | None = None,
        enc_gt_inds: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, and the next state, which goes from layer to layer.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave; see `DETROutputs`, with tokens in place of classes.
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width. Negative ones are padding, of whose boxes nothing
            is read.
          image_shapes: (B, 2) height and width in pixels of each image, of which the predicted
            boxes are fractions.
          positive_maps: (B, G, T) which tokens name each box, in [0, 1].
          text_token_mask: (B, T), or with fewer tokens: which there are in each image's text.
          gt_inds: (L, B, Q) a matching in place of the assigner's: the number of each query's box,
            1 for the first and 0 for none. A query of -1 is left out.
          enc_gt_inds: (B, P) likewise, of the encoder's proposals.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch. Plain `jit` over sharded arrays needs no name for that.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        gt = self._with_text(gt, positive_maps, text_token_mask)
        outputs = _without_padding(outputs, gt.text_token_mask)
        given = {"": gt_inds, "enc_": enc_gt_inds}
        return self.update_of(state, outputs, gt, shapes, given, axis_name)

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(  # type: ignore[override]
        self,
        outputs: DETROutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes,
        *,
        positive_maps: jax.Array,
        text_token_mask: jax.Array,
        gt_inds: jax.Array | None = None,
    ) -> HeadTargets:
        """What each query learns in each layer, (L, B, Q, ...). The arguments are those of `loss`.

        `bbox_targets` are centres and sizes in fractions of the image, and `labels` are those of
        `gt_labels`. The tokens of a query are `positive_maps` at its `gt_inds`.
        """
        gt, shapes = self.prepare(outputs, gt_boxes, gt_labels, image_shapes)
        gt = self._with_text(gt, positive_maps, text_token_mask)
        outputs = _without_padding(outputs, gt.text_token_mask)
        layers = {"": self.sets_of(outputs, gt)[""]}
        return self.match_parts(outputs, layers, shapes, {"": gt_inds})[""]

    @compiled
    def decode(
        self,
        outputs: DETROutputs,
        image_shapes: Shapes | Sequence[Number],
        token_maps: jax.Array | None = None,
    ) -> Detections:
        """Boxes and scores of the last layer's queries. There are no duplicates to suppress.

        Scores are those of the tokens, sigmoid(cls_scores), or of classes named by several tokens.

        Args:
          outputs: What the network gave; see `DETROutputs`.
          image_shapes: (B, 2) height and width of each image in pixels, or one (height, width) for
            all. Boxes are clipped to them.
          token_maps: (C, T) of 0 and 1, which tokens name each class. A class has the mean of their
            scores, and 0 where there is none. None gives the scores of the tokens.
        """
        detections = super().decode(outputs, image_shapes)
        if token_maps is None:
            return detections
        check_array("token_maps", token_maps)
        if token_maps.ndim != 2 or token_maps.shape[1] != self.max_text_len:
            raise ValueError(
                f"token_maps must have shape (C, {self.max_text_len}), got {token_maps.shape}"
            )
        maps = jnp.asarray(token_maps).astype(detections.scores.dtype)
        maps = divide(maps, maps.sum(1, keepdims=True))
        scores = jnp.einsum("bqt,ct->bqc", detections.scores, maps, precision="highest")
        return Detections(detections.boxes, scores)

    @compiled
    def detect(
        self,
        outputs: DETROutputs,
        image_shapes: Shapes | Sequence[Number],
        token_maps: jax.Array | None = None,
    ) -> KeptDetections:
        """The best predictions of the last layer, the best first, as `test_cfg` says.

        Args:
          outputs, image_shapes, token_maps: See `decode`. Without `token_maps` a query has the
            label and the score of its best token.

        Returns: as `QueryHead.detect`.
        """
        found = self.decode(outputs, image_shapes, token_maps)
        return self.best_of(found, best_class=token_maps is None)

    def class_targets(self, targets: HeadTargets, gt: Instances) -> tuple[Any, Any]:
        maps: Any = gt.positive_maps
        mask: Any = gt.text_token_mask
        numbers = jnp.arange(1, maps.shape[1] + 1, dtype=targets.gt_inds.dtype)
        is_box = (targets.gt_inds[..., None] == numbers[None, None]).astype(maps.dtype)
        tokens = jnp.einsum("bqg,bgt->bqt", is_box, maps, precision="highest")
        return tokens, jnp.where(mask[:, None], targets.label_weights[..., None], 0)

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        examples = super().examples(rows)
        logits, _ = examples["loss_cls"]
        return examples | {"loss_cls": (logits, logits)}

    @property
    def channels(self) -> dict[str, int]:
        return {"cls_scores": self.max_text_len, "bbox_preds": 4}

    @property
    def last_label(self) -> int:
        return np.iinfo(np.int32).max

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        call = inspect.signature(self.update).bind(self.init(), *args, **options)
        mask, labels = call.arguments["text_token_mask"], call.arguments["gt_labels"]
        mask = self._padded_mask(mask, len(labels))
        call.arguments["outputs"] = _without_padding(call.arguments["outputs"], mask)
        _, *args_of_loss = call.args
        maps = jnp.asarray(call.arguments["positive_maps"])
        of_boxes = jnp.broadcast_to(jnp.asarray(labels >= 0)[..., None], maps.shape)
        expected = Expected("positive_maps", maps, UNIT, of_boxes)
        return [*super().expects(*args_of_loss, **call.kwargs), expected]

    def _with_text(self, gt: Instances, positive_maps: Any, text_token_mask: Any) -> Instances:
        """The ground truth with its text."""
        labels: Any = gt.labels
        boxes: Any = gt.bboxes
        check_array("positive_maps", positive_maps)
        shape = (*labels.shape, self.max_text_len)
        if not positive_maps.shape[1]:  # Ground truth has at least one box, of padding.
            positive_maps = jnp.zeros(shape, boxes.dtype)
        if positive_maps.shape != shape:
            raise ValueError(f"positive_maps must have shape {shape}, got {positive_maps.shape}")
        maps = jnp.where(labels[..., None] >= 0, jnp.asarray(positive_maps), 0).astype(boxes.dtype)
        mask = self._padded_mask(text_token_mask, len(labels))
        return gt._replace(positive_maps=maps, text_token_mask=mask)

    def _padded_mask(self, text_token_mask: Any, batch: int) -> jax.Array:
        """The mask (B, T) as bools."""
        check_array("text_token_mask", text_token_mask)
        length, most = text_token_mask.shape[-1], self.max_text_len
        if text_token_mask.shape != (batch, length) or length > most:
            raise ValueError(
                f"text_token_mask must have shape ({batch}, {most}) or fewer tokens, got "
                f"{text_token_mask.shape}"
            )
        mask = jnp.asarray(text_token_mask).astype(bool)
        return jnp.pad(mask, ((0, 0), (0, most - length)))


def _without_padding(outputs: DETROutputs, mask: Any) -> DETROutputs:
    """The outputs with 0 for the tokens that the text does not have."""

    def masked(logits: Any) -> Any:
        if logits is None:
            return None
        mask_of_queries = mask[:, None] if logits.ndim == 3 else mask[None, :, None]
        return jnp.where(mask_of_queries, logits, 0)

    names = ("cls_scores", "enc_cls_scores", "dn_cls_scores")
    return outputs._replace(**{name: masked(getattr(outputs, name)) for name in names})
