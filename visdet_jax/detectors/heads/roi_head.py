"""The second stage: from proposals to samples, and from their outputs to losses and detections."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, Finite, Positive
from visdet_jax.core.rules import FINITE, UNIT, Expected, Rule
from visdet_jax.detectors.assigners.assigner import DROPPED, Assigner, pick
from visdet_jax.detectors.heads.bbox_head import BBoxHead
from visdet_jax.detectors.heads.head import WithLosses, as_shapes, compiled, without_state
from visdet_jax.detectors.heads.mask_head import FCNMaskHead
from visdet_jax.detectors.postprocessing import TestConfig
from visdet_jax.detectors.registry import BRANCHES, HEADS
from visdet_jax.detectors.samplers.pseudo import PseudoSampler
from visdet_jax.detectors.samplers.sampler import NEGATIVE, POSITIVE, Sampler
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    Losses,
    Proposals,
    RoIOutputs,
    Samples,
    Shapes,
    States,
)

# Its config holds its branches' configs.
HEADS.parts = {BBoxHead: BRANCHES, FCNMaskHead: BRANCHES, **HEADS.parts}


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class StandardRoIHead(WithLosses):
    """The second stage of Faster R-CNN and Mask R-CNN.

    Between its calls lies the network, which aligns the features of each sampled box:

      samples = roi.sample(proposals, gt_boxes, gt_labels, key=key)
      outputs = RoIOutputs(*network(features, samples.boxes))
      losses = roi.loss(outputs, samples)

    The losses are those of `BBoxHead`, and with masks those of `FCNMaskHead`.

    Args:
      bbox_head: The losses of classes and boxes.
      mask_head: The loss of masks; None for a detector without masks.
      assigner: Says which box each proposal learns.
      sampler: Takes a fixed number of the proposals, at random with a key.
      pos_weight: Weight of positives in the class loss, above 0. Any other number means 1.
      mask_size: Height and width of the masks that are learnt, or one number for both.
      soft_mask_target: Whether the masks that are learnt are the part of each pixel that is
        covered, or 1 where that is at least half.
      test_cfg: Which predictions `detect` makes detections.

    Source: Ren et al. 2015, https://arxiv.org/abs/1506.01497; mmdet's `StandardRoIHead`
    """

    bbox_head: BBoxHead
    mask_head: FCNMaskHead | None = None
    assigner: Assigner
    sampler: Sampler = PseudoSampler()
    pos_weight: Finite = -1
    mask_size: int | tuple[int, ...] = 28
    soft_mask_target: bool = False
    test_cfg: TestConfig = TestConfig(score_thr=0.05)

    @compiled
    def sample(
        self,
        proposals: Proposals | KeptDetections,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        *,
        key: jax.Array | None = None,
        losses: jax.Array | None = None,
        chosen: jax.Array | None = None,
    ) -> Samples:
        """The boxes that the network looks at, in fixed slots, and what they learn.

        The candidates of an image are its G ground truths, where the sampler's
        `add_gt_as_proposals` says so, and its P proposals. No gradient flows through them.

        Args:
          proposals: What `RPNHead.proposals` gives, or boxes of another origin (B, P, 4) with
            which of them exist (B, P).
          gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
          gt_labels: (B, G) integers of any width, from 0 to C - 1. Negative ones are padding, of
            whose boxes nothing is read.
          key: A `jax.random.key` for a sampler that draws. On several devices under `shard_map`
            each needs its own.
          losses: (B, G + P) the class loss of each candidate, ground truths first, for a sampler
            that goes by it (`OHEMSampler`).
          chosen: (B, G + P) which candidates are sampled, in place of a draw: 1 for a positive, 2
            for a negative, 0 for none. Then no key is needed.

        Returns: the samples, of which there are `min(num, G + P)` slots.
        Raises: ValueError, TypeError for shapes and types that do not fit, and for a key that is
          missing.
        """
        boxes, exists = without_empty(proposals)
        dtype = compute_dtype(proposals=boxes, gt_boxes=gt_boxes)
        boxes, batch = boxes.astype(dtype), boxes.shape[0]
        gt_boxes, labels = self.bbox_head.ground_truth(gt_boxes, gt_labels, batch, dtype)

        assign = jax.vmap(
            lambda boxes, gt_boxes, labels, exists: self.assigner.assign(
                boxes, gt_boxes, labels, exists, level_sizes=(boxes.shape[0],)
            )
        )
        found = assign(boxes, gt_boxes, labels, exists)
        own = jnp.arange(1, labels.shape[1] + 1, dtype=found.gt_inds.dtype)
        are_candidates = (labels >= 0) & self.sampler.adds_gt
        gt_inds = jnp.concatenate([jnp.where(are_candidates, own, DROPPED), found.gt_inds], axis=1)
        overlaps = found.max_overlaps
        if overlaps is not None:
            overlaps = jnp.concatenate([are_candidates.astype(overlaps.dtype), overlaps], axis=1)
        chosen = self.sampler.choose(
            gt_inds, key=key, overlaps=overlaps, losses=losses, chosen=chosen
        )
        candidates = jnp.concatenate([gt_boxes, boxes], axis=1)
        samples = jax.vmap(self._slots)(chosen, gt_inds, candidates, gt_boxes, labels)
        return jax.lax.stop_gradient(samples)

    @compiled
    def update(
        self,
        state: States,
        outputs: RoIOutputs,
        samples: Samples,
        gt_masks: jax.Array | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          outputs: What the network gave for the boxes of `samples`; see `RoIOutputs`.
          samples: From `sample`.
          gt_masks: (B, G, H, W) the bitmaps of the ground truth, 0 and 1 of any type, for a head
            with a `mask_head`.
          axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map` or
            `vmap(axis_name=...)`. The mean of the devices' losses is then the loss of the whole
            batch.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        losses, of_boxes = self.bbox_head.update(
            state["bbox_head"], outputs, samples, axis_name=axis_name
        )
        state = state | {"bbox_head": of_boxes}
        if self.mask_head is None:
            if gt_masks is not None or outputs.mask_preds is not None:
                raise ValueError("gt_masks and mask_preds must be None: this head has no mask_head")
            return losses, state
        if gt_masks is None or outputs.mask_preds is None:
            raise ValueError("gt_masks and outputs.mask_preds must be given for the mask_head")
        self._check_mask_slots(outputs.mask_preds, samples)
        of_masks, state["mask_head"] = self.mask_head.update(
            state["mask_head"],
            outputs,
            samples,
            gt_masks,
            self._mask_shape(),
            self.soft_mask_target,
            axis_name=axis_name,
        )
        return losses | of_masks, state

    loss = without_state(update)

    @compiled
    def decode(
        self, outputs: RoIOutputs, boxes: jax.Array, image_shapes: Shapes | None = None
    ) -> Detections:
        """Boxes and scores of each region, for non-maximum suppression.

        Args:
          outputs: What the network gave for the boxes; see `RoIOutputs`.
          boxes: (B, S, 4) as x1, y1, x2, y2, in pixels.
          image_shapes: (B, 2) height and width of each image in pixels. Boxes are clipped to them
            where given and where the coder's `clip_border` is True.

        Returns: boxes (B, S, C, 4), or (B, S, 4) for all classes, and scores (B, S, C).
        """
        return self.bbox_head.decode(outputs, boxes, image_shapes)

    @compiled
    def detect(
        self,
        outputs: RoIOutputs,
        proposals: Proposals | KeptDetections,
        image_shapes: Shapes | None = None,
    ) -> KeptDetections:
        """The detections of a batch, without duplicates, as `test_cfg` says.

        Args:
          outputs: What the network gave for the boxes of the proposals; see `RoIOutputs`.
          proposals: What `RPNHead.detect` gives, or boxes of another origin.
          image_shapes: See `decode`.

        Returns: (B, S, ...) the boxes, scores and classes in their slots, the index of each one's
          proposal, and which slots hold one.
        """
        boxes, exists = without_empty(proposals)
        found = self.bbox_head.decode(outputs, boxes, image_shapes)
        return self.bbox_head.detect(found, exists, self.test_cfg)

    @compiled
    def refine(
        self,
        outputs: RoIOutputs,
        samples: Samples | Proposals | KeptDetections,
        image_shapes: Shapes,
    ) -> Proposals:
        """The boxes that the outputs mean, as the proposals of a cascade's next stage.

        In training these are the samples, negatives too, but for the ground truths among them:
        those are marked as not existing. A positive's box is that of its class, any other box that
        of its best class. No gradient flows through it.

        Args:
          outputs: What the network gave for the boxes; see `RoIOutputs`.
          samples: From `sample`; in evaluation the proposals.
          image_shapes: (B, 2) height and width of each image in pixels, to which boxes are clipped.
        """
        labels = None
        if isinstance(samples, Samples):
            targets = samples.targets
            labels = jnp.where(targets.gt_inds > 0, targets.labels, -1)
            exists = (targets.gt_inds >= 0) & ~samples.is_gt
            proposals = Proposals(samples.boxes, exists)
        else:
            proposals = without_empty(samples)
        like = proposals.boxes[..., 0]
        shapes = as_shapes("image_shapes", image_shapes, like, proposals.boxes.dtype)
        return self.bbox_head.refine(outputs, proposals, labels, shapes)

    @compiled
    def mask_targets(self, samples: Samples, gt_masks: jax.Array) -> jax.Array:
        """The masks (B, M, h, w) that the samples learn, for a look.

        Args:
          samples: From `sample`.
          gt_masks: (B, G, H, W) the bitmaps of the ground truth.

        Returns: the masks of the first M slots, which hold all positives; 0 without a positive.
        """
        if self.mask_head is None:
            raise ValueError("this head has no mask_head")
        size, slots = self._mask_shape(), self.mask_slots(samples)
        return self.mask_head.targets(samples, gt_masks, size, self.soft_mask_target, slots)

    @compiled
    def paste_masks(
        self, mask_preds: jax.Array, found: KeptDetections, *, image_shape: tuple[int, int]
    ) -> jax.Array:
        """The bitmaps of detections, for evaluation: of each the mask of its class.

        A pixel belongs to a mask where its probability is at least the `mask_thr_binary` of
        `test_cfg`.

        Args:
          mask_preds: Logits (B, K, h, w, C or 1), which the network gives for the boxes that
            `detect` found.
          found: From `detect`.
          image_shape: (H, W) of the bitmaps in pixels. It is static: each one compiles anew.

        Returns: (B, K, H, W) bool, empty in slots without a detection.
        """
        if self.mask_head is None:
            raise ValueError("this head has no mask_head")
        threshold = self.test_cfg.mask_thr_binary
        return self.mask_head.paste(mask_preds, found, threshold, image_shape)

    def mask_slots(self, samples: Samples) -> int:
        """The number M of slots that may hold a positive, of which the network predicts masks."""
        return self.sampler.positive_slots(samples.boxes.shape[1])

    def expects(
        self,
        outputs: RoIOutputs,
        samples: Samples,
        gt_masks: jax.Array | None = None,
        *,
        axis_name: AxisName = None,
    ) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        targets = samples.targets
        sampled, positive = targets.gt_inds >= 0, targets.gt_inds > 0
        none = Rule(lambda x: x == 0, "no region was sampled: is there a proposal?")
        expected = [
            Expected("outputs.cls_scores", outputs.cls_scores, FINITE, sampled[..., None]),
            Expected("outputs.bbox_preds", outputs.bbox_preds, FINITE, positive[..., None]),
            Expected("number of samples", reduce_sum(sampled.sum(), axis_name), none),
        ]
        if outputs.mask_preds is not None:
            of_masks = positive[:, : outputs.mask_preds.shape[1], None, None, None]
            expected.append(Expected("outputs.mask_preds", outputs.mask_preds, FINITE, of_masks))
        return [*expected, Expected("gt_masks", gt_masks, UNIT)]

    def accuracy(self, outputs: RoIOutputs, samples: Samples) -> dict[str, jax.Array]:
        """The part of the sampled regions whose class is right, in percent, by name."""
        return self.bbox_head.accuracy(outputs, samples)

    def _mask_shape(self) -> tuple[int, int]:
        """Height and width of the masks."""
        size = self.mask_size
        if isinstance(size, tuple):
            height, width = size
            return height, width
        return size, size

    def _check_mask_slots(self, mask_preds: jax.Array, samples: Samples) -> None:
        """Raises a ValueError where a positive could have no mask."""
        least = self.mask_slots(samples)
        if mask_preds.ndim > 1 and mask_preds.shape[1] < least:
            raise ValueError(
                f"mask_preds must have the masks of the first {least} samples or more, got "
                f"{mask_preds.shape}"
            )

    def _slots(
        self,
        chosen: jax.Array,
        gt_inds: jax.Array,
        candidates: jax.Array,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
    ) -> Samples:
        """The samples of one image: the chosen candidates, and what they learn."""
        slots = self.sampler.slots(chosen.size)
        rank = jnp.where(chosen == NEGATIVE, 1, jnp.where(chosen == POSITIVE, 0, 2))
        places = jnp.argsort(rank, stable=True)[:slots].astype(jnp.int32)
        exists = rank[places] < 2
        gt_inds = jnp.where(exists, gt_inds[places], DROPPED)
        boxes = jnp.where(exists[:, None], candidates[places], 0)
        matched = pick(gt_boxes, gt_inds)
        head = self.bbox_head
        # A box that exists in place of an empty slot's, or the logarithm of its width is infinite.
        filled = jnp.where(exists[:, None], boxes, jnp.asarray([0, 0, 1, 1], boxes.dtype))
        learnt = matched if head.reg_decoded_bbox else head.bbox_coder.encode(filled, matched)
        labels = pick(gt_labels, gt_inds)
        return Samples(
            boxes=boxes,
            candidates=jnp.where(exists, places, -1),
            is_gt=exists & (places < len(gt_labels)),
            targets=head.make_targets(gt_inds, labels, learnt, pos_weight=self.pos_weight),
        )


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class DoubleHeadRoIHead(StandardRoIHead):
    """Double-Head R-CNN's second stage: `StandardRoIHead`'s losses.

    The network aligns the features of its two branches by itself, those for the boxes from regions
    that are `reg_roi_scale_factor` times as large.

    Args:
      reg_roi_scale_factor: It is the network's, and has no effect.

    Source: Wu et al. 2020, https://arxiv.org/abs/1904.06493; mmdet's `DoubleHeadRoIHead`
    """

    reg_roi_scale_factor: Positive = 1.3


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class TridentRoIHead(StandardRoIHead):
    """TridentNet's second stage: `StandardRoIHead`'s losses, of every branch of the network.

    In training the batch holds each image once for every branch, with its ground truth, as if they
    were images of their own. `detect` is of one branch, which is what `test_branch_idx` names.

    Args:
      num_branch: Number of branches in a config of mmdet. It is the network's, and has no effect.
      test_branch_idx: The branch whose outputs `detect` gets; -1 means all of them, whose
        detections are not put together here: `detect` then raises.

    Source: Li et al. 2019, https://arxiv.org/abs/1901.01892; mmdet's `TridentRoIHead`
    """

    num_branch: Count = 3
    test_branch_idx: int = 1

    def detect(
        self,
        outputs: RoIOutputs,
        proposals: Proposals | KeptDetections,
        image_shapes: Shapes | None = None,
    ) -> KeptDetections:
        """The detections of one branch, as `StandardRoIHead.detect`.

        Args:
          outputs, proposals, image_shapes: See `StandardRoIHead.detect`.

        Raises: ValueError where `test_branch_idx` asks for all branches.
        """
        if self.test_branch_idx < 0:
            raise self.value_error(
                f"detect is of one branch: set test_branch_idx, got {self.test_branch_idx}"
            )
        return super().detect(outputs, proposals, image_shapes)


def without_empty(proposals: Any) -> Proposals:
    """The proposals, checked, with boxes of zeros in slots that hold none.

    Raises: ValueError, TypeError for what does not fit.
    """
    if not isinstance(proposals, Proposals | KeptDetections):
        raise TypeError(f"proposals must be Proposals, got {type(proposals).__name__}")
    boxes, exists = proposals.boxes, proposals.exists
    check_array("proposals.boxes", boxes)
    check_array("proposals.exists", exists)
    if boxes.ndim != 3 or boxes.shape[2] != 4 or exists.shape != boxes.shape[:2]:
        raise ValueError(
            "proposals must be boxes (B, P, 4) and exists (B, P), got "
            f"{boxes.shape} and {exists.shape}"
        )
    exists = jnp.asarray(exists).astype(bool)
    return Proposals(jnp.where(exists[..., None], jnp.asarray(boxes), 0), exists)
