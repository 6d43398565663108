"""The semantic branch of Panoptic FPN: a class for every pixel."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.core.jitted import errors_named
from visdet_jax.detectors.heads.head import WithLosses, compiled, without_state
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import Losses, States
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.loss import Loss


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class PanopticFPNHead(WithLosses):
    """The semantic branch of Panoptic FPN, beside the heads of Mask R-CNN.

    A segmentation map has T classes of things, and then S of stuff. Learnt are the classes 0 to
    S - 1 of stuff, and for all things the class S. Any other label stays as it is, for the loss to
    ignore; negative ones cost nothing. Of the map only every 2^(start_level + 2)-th pixel of every
    so many-th row is learnt. `loss_seg` is the mean over these pixels, the ignored ones too unless
    the loss leaves them out. Inside `shard_map` the mean of the devices' losses is the batch's,
    but not of a loss that leaves them out.

    Args:
      num_things_classes: The number T of classes of things, at least 1.
      num_stuff_classes: The number S of classes of stuff, at least 1.
      start_level: The finest level of features, at least 0, on which the size of the map depends.
      loss_seg: Loss of the S + 1 logits of each pixel.

    Source: Kirillov et al. 2019, https://arxiv.org/abs/1901.02446; mmdet's `PanopticFPNHead`
    """

    num_things_classes: Count = 80
    num_stuff_classes: Count = 53
    start_level: Annotated[int, Range(0)] = 0
    loss_seg: Loss = CrossEntropyLoss()

    def __post_init__(self) -> None:
        super().__post_init__()
        logits = jax.ShapeDtypeStruct((2, self.channels), np.float32)
        labels = jax.ShapeDtypeStruct((2,), np.int32)
        try:
            value, _ = jax.eval_shape(self.loss_seg.update, self.loss_seg.init(), logits, labels)
        except (TypeError, ValueError) as error:
            raise self.value_error(
                f"loss_seg gets logits (N, {self.channels}) and labels (N,), which does not fit "
                f"{self.loss_seg!r}: {error}"
            ) from error
        if getattr(value, "shape", None) != ():
            raise self.value_error(f"loss_seg must give one number: {self.loss_seg!r}")

    @property
    def channels(self) -> int:
        """How many logits a pixel has: one for each class of stuff, and one for all things."""
        return self.num_stuff_classes + 1

    @compiled
    def update(
        self, state: States, seg_preds: jax.Array, gt_sem_seg: jax.Array
    ) -> tuple[Losses, States]:
        """({"loss_seg": a scalar}, next state) of a batch.

        Args:
          state: From `init` or the last `update`; see `StatefulLoss`.
          seg_preds: Logits (B, h, w, S + 1) as the network gives them. Where h and w are not those
            of the smaller map, the logits are resized to it, bilinearly.
          gt_sem_seg: (B, H, W) integers of any width: the class of each pixel of the images.

        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        target = self.targets(gt_sem_seg)
        logits = self._resized(seg_preds, target.shape)
        value, of_seg = self.loss_seg.update(
            state["loss_seg"], logits.reshape(-1, self.channels), target.reshape(-1)
        )
        return {"loss_seg": value}, state | {"loss_seg": of_seg}

    loss = without_state(update)

    @compiled
    def targets(self, gt_sem_seg: jax.Array) -> jax.Array:
        """The classes (B, H', W') that the pixels of the smaller map learn. See `loss`."""
        labels = as_labels("gt_sem_seg", gt_sem_seg)
        if labels.ndim != 3:
            raise ValueError(f"gt_sem_seg must have shape (B, H, W), got {labels.shape}")
        step = 2 ** (self.start_level + 2)
        height, width = (size // step for size in labels.shape[1:])
        labels = labels[:, ::step, ::step][:, :height, :width]
        things, stuff = self.num_things_classes, self.num_stuff_classes
        is_stuff = (labels >= things) & (labels < things + stuff)
        is_thing = (labels >= 0) & (labels < things)
        return jnp.where(is_stuff, labels - things, jnp.where(is_thing, stuff, labels))

    def decode(self, seg_preds: jax.Array, shape: Sequence[int]) -> jax.Array:
        """The logits (B, H, W, S + 1) of every pixel of images of `shape` (H, W)."""
        height, width = shape
        with errors_named(type(self).__name__):
            return self._resized(seg_preds, (len(seg_preds), height, width))

    def _resized(self, seg_preds: Any, shape: tuple[int, ...]) -> jax.Array:
        """The logits in another (B, height, width), bilinearly and without antialiasing."""
        check_array("seg_preds", seg_preds)
        expected = (shape[0], self.channels)
        if seg_preds.ndim != 4 or (seg_preds.shape[0], seg_preds.shape[3]) != expected:
            raise ValueError(
                f"seg_preds must have shape ({shape[0]}, h, w, {self.channels}), got "
                f"{seg_preds.shape}"
            )
        logits = jnp.asarray(seg_preds)
        if logits.shape[1:3] == shape[1:]:
            return logits
        logits = logits.astype(compute_dtype(seg_preds=logits))
        return jax.image.resize(logits, (*shape, self.channels), "bilinear", antialias=False)
