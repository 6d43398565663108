"""The mask branch of a second stage: a mask for each region."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.boxes.masks import crop_masks, paste_masks
from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import reduce_sum
from visdet_jax.core.hyperparameters import Count, Number
from visdet_jax.detectors.heads.criterion import avg_factor_of_device
from visdet_jax.detectors.heads.head import WithLosses
from visdet_jax.detectors.registry import BRANCHES
from visdet_jax.detectors.structures import AxisName, Losses, RoIOutputs, Samples, States
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss


@BRANCHES.register_module()
@dataclass(frozen=True, kw_only=True)
class FCNMaskHead(WithLosses):
    """The masks of the positive regions.

    What a region learns is its ground truth's bitmap inside its box, at m × m pixels.
    `loss_mask` is the mean over the pixels of all positives of the batch of the binary cross
    entropy of their own class's mask; 0 without a positive.

    Args:
      num_classes: Number of classes without background, at least 1.
      class_agnostic: Whether there is one mask for all classes, or one for each.
      loss_mask: Loss of the masks, with `use_mask=True`.

    Source: He et al. 2017, https://arxiv.org/abs/1703.06870; mmdet's `FCNMaskHead`
    """

    num_classes: Count = 80
    class_agnostic: bool = False
    loss_mask: CrossEntropyLoss = CrossEntropyLoss(use_mask=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.loss_mask.use_mask:
            raise self.value_error(f"loss_mask must have use_mask=True, got {self.loss_mask!r}")

    @property
    def channels(self) -> int:
        """How many channels the outputs have."""
        return 1 if self.class_agnostic else self.num_classes

    def targets(
        self, samples: Samples, gt_masks: jax.Array, size: tuple[int, int], soft: bool, slots: int
    ) -> jax.Array:
        """The masks (B, slots, h, w) that the first slots learn; 0 in those without a positive."""
        check_array("gt_masks", gt_masks)
        if gt_masks.ndim != 4 or gt_masks.shape[0] != samples.boxes.shape[0]:
            raise ValueError(
                f"gt_masks must have shape ({samples.boxes.shape[0]}, G, H, W), got "
                f"{gt_masks.shape}"
            )
        crop = jax.vmap(
            lambda masks, boxes, gt_inds: crop_masks(
                masks, boxes, gt_inds, None if soft else 0.5, output_size=size
            )
        )
        gt_inds = samples.targets.gt_inds[:, :slots]
        masks: jax.Array = crop(gt_masks, samples.boxes[:, :slots], gt_inds)
        return masks

    def paste(
        self,
        mask_preds: jax.Array,
        found: KeptDetections,
        threshold: Number,
        image_shape: tuple[int, int],
    ) -> jax.Array:
        """The bitmaps (B, K, H, W) of detections, of logits (B, K, h, w, channels)."""
        check_array("mask_preds", mask_preds)
        if mask_preds.ndim != 5 or mask_preds.shape[:2] != found.labels.shape:
            raise ValueError(
                f"mask_preds must have shape {(*found.labels.shape, 'h', 'w', self.channels)}, one "
                f"for each slot of the detections, got {mask_preds.shape}"
            )
        labels = jnp.zeros_like(found.labels) if self.class_agnostic else found.labels
        channels = jnp.arange(self.channels, dtype=labels.dtype)
        own = labels[..., None] == channels[None, None]
        logits = jnp.where(own[:, :, None, None], mask_preds, 0).sum(axis=-1)

        def image(masks: jax.Array, boxes: jax.Array, exists: jax.Array) -> jax.Array:
            return paste_masks(masks, boxes, exists, threshold, image_shape=image_shape)

        bitmaps: jax.Array = jax.vmap(image)(jax.nn.sigmoid(logits), found.boxes, found.exists)
        return bitmaps

    def update(
        self,
        state: States,
        outputs: RoIOutputs,
        samples: Samples,
        gt_masks: jax.Array,
        size: tuple[int, int],
        soft: bool,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """(losses, next state) of the masks (B, M, h, w, channels) for the first M samples."""
        pred = outputs.mask_preds
        check_array("mask_preds", pred)
        assert pred is not None
        batch, slots = samples.boxes.shape[:2]
        if pred.ndim != 5 or pred.shape != (batch, pred.shape[1], *size, self.channels):
            raise ValueError(
                f"mask_preds must have shape ({batch}, M, {size[0]}, {size[1]}, {self.channels}), "
                f"got {pred.shape}"
            )
        count = min(pred.shape[1], slots)
        pred = pred[:, :count]
        targets = self.targets(samples, gt_masks, size, soft, count)
        positive = samples.targets.gt_inds[:, :count] > 0
        labels = jnp.where(
            positive & (not self.class_agnostic), samples.targets.labels[:, :count], 0
        )
        count_of_pixels = positive.astype(targets.dtype).sum() * (size[0] * size[1])
        pixels = reduce_sum(count_of_pixels, axis_name)
        value, state_of_loss = self.loss_mask.update(
            state["loss_mask"],
            jnp.moveaxis(pred, -1, 2).reshape(batch * count, self.channels, *size),
            targets.reshape(batch * count, *size),
            positive.reshape(-1).astype(targets.dtype),
            avg_factor_of_device(pixels, axis_name),
            label=labels.reshape(-1),
            axis_name=axis_name,
        )
        return {"loss_mask": value}, state | {"loss_mask": state_of_loss}
