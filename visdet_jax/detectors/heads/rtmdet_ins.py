"""RTMDet's heads with masks: of each positive a small network of its own makes the mask."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.checks import check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.core.rules import UNIT, Expected
from visdet_jax.detectors.heads.criterion import Criterion, avg_factor_of_device
from visdet_jax.detectors.heads.dense_head import DenseHead
from visdet_jax.detectors.heads.head import compiled, without_state
from visdet_jax.detectors.heads.rtmdet import RTMDetHead
from visdet_jax.detectors.registry import HEADS, with_training
from visdet_jax.detectors.structures import (
    AxisName,
    HeadOutputs,
    HeadTargets,
    Losses,
    Shapes,
    States,
)
from visdet_jax.losses.masks.dice import DiceLoss

# How many masks of an image are computed together. More take more memory, and less time on an
# accelerator.
MASKS_TOGETHER = 16
AREA_EPS = 1e-7  # By which mmdet divides at least for a mask's centre.


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RTMDetInsHead(RTMDetHead):
    """RTMDet with masks: `RTMDetHead`, and of each positive a mask by convolutions of its own.

    The network predicts for each point the weights and biases of `num_dyconvs` convolutions of
    size 1 (`kernel_preds`), which read `num_prototypes` feature maps of the image (`mask_feats`)
    and the point's distance from each of their cells. The weights of all layers come first, each
    (channels out, channels in) row by row, then the biases. The first two of the channels in are x
    and y of the distance, (point - cell) / (8 · stride) for a finest stride of 8, and after all
    layers but the last there is a ReLU. The logits are enlarged bilinearly to one in
    `mask_loss_stride` pixels and compared with the ground truth's bitmap in one pixel of each such
    cell, right and below of its middle, as in mmdet: half a pixel beside what the logit stands for.
    `loss_mask` is the sum over the positives divided by their number; the quality does not count.

    Distances in the assigner are from the centres of the masks.

    Memory: `gt_masks` at every `mask_loss_stride`-th pixel, and the activations of 16 masks of each
    image. They are computed again for the gradient.

    Args:
      loss_mask: Loss of the masks' logits.
      mask_loss_stride: In pixels, at least 1, a divisor of the finest stride. Larger values compare
        fewer pixels, which thin or small objects do not forgive: 1 compares all, without the shift.
      num_prototypes: The number of channels of `mask_feats`, at least 1.
      dyconv_channels: The number of channels between two of the convolutions, at least 1.
      num_dyconvs: The number of convolutions, at least 2.
      max_masks: The number of slots for the positives of an image that get a mask, at least 1. In
        an image with more positives those of the highest metric do, of equal ones the first, and
        only these count in what `loss_mask` is divided by. Larger values take more time.

    Source: Lyu et al. 2022, https://arxiv.org/abs/2212.07784; mmdet's `RTMDetInsHead`, which gives
      some positives the weights of another point where an image's `pad_shapes` drop points.
    """

    other_outputs: ClassVar[tuple[str, ...]] = ("mask_feats",)

    loss_mask: DiceLoss = DiceLoss(loss_weight=2.0, eps=5e-6)
    mask_loss_stride: Count = 4
    num_prototypes: Count = 8
    dyconv_channels: Count = 8
    num_dyconvs: Annotated[int, Range(2)] = 3
    max_masks: Count = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strides[0] % self.mask_loss_stride:
            raise self.value_error(
                f"mask_loss_stride must be a divisor of the finest stride, {self.strides[0]}; got "
                f"{self.mask_loss_stride}"
            )

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet.

        Raises: ValueError for mmyolo's head of this name, which has no losses.
        """
        if "head_module" in settings:
            raise ValueError("mmyolo's RTMDet heads with masks have no losses; use mmdet's")
        return with_training(settings, train_cfg)

    # What users call.

    @described_by(DenseHead.update)
    @compiled
    def update(  # type: ignore[override]
        self,
        state: States,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        gt_masks: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of a batch by name, each a scalar, and the next state.

        Compiled once for all batches of the same shapes, however many boxes they hold.

        Args:
          gt_masks: (B, G, H, W) the bitmaps of the ground truth, 0 and 1 of any type. H and W are
            those of the padded images: of `mask_feats` times the finest stride.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        targets = self.targets(
            outputs, gt_boxes, gt_labels, image_shapes, pad_shapes, gt_masks=gt_masks
        )
        losses, state = self.losses_of(state, outputs, targets, axis_name)
        loss_mask = self._loss_mask(outputs, targets, gt_masks, axis_name)
        return losses | {"loss_mask": loss_mask}, state

    loss = without_state(update)  # type: ignore[arg-type]

    @compiled
    def targets(  # type: ignore[override]
        self,
        outputs: HeadOutputs,
        gt_boxes: jax.Array,
        gt_labels: jax.Array,
        image_shapes: Shapes | None = None,
        pad_shapes: Shapes | None = None,
        *,
        gt_masks: jax.Array,
    ) -> HeadTargets:
        """What each point learns. The arguments are those of `loss`."""
        images = self.images(outputs, gt_boxes, gt_labels, image_shapes, pad_shapes)
        self._check_masks(outputs, gt_labels, gt_masks)
        dtype = images.gt_boxes.dtype
        if gt_masks.shape[1]:
            centers = mask_centers(gt_masks, dtype)
            centers = jnp.where(images.gt_labels[..., None] >= 0, centers, 0)
        else:
            centers = images.gt_boxes[..., :2]  # One row of padding.
        return self.assign_all(outputs, images._replace(gt_centers=jax.lax.stop_gradient(centers)))

    @compiled
    def paste_masks(
        self, outputs: HeadOutputs, found: KeptDetections, *, image_shape: tuple[int, int]
    ) -> jax.Array:
        """The bitmaps of detections, for evaluation.

        A pixel belongs to a mask where its probability is above the `mask_thr_binary` of
        `test_cfg`.

        Args:
          outputs: What the network gave; see `HeadOutputs`.
          found: From `detect`.
          image_shape: (H, W) of the bitmaps in pixels, at most what `mask_feats` cover. It is
            static: each one compiles anew.

        Returns: (B, K, H, W) bool, empty in slots without a detection.
        """
        self._check_outputs(outputs)
        size = self._covered(outputs)
        if len(image_shape) != 2 or image_shape[0] > size[0] or image_shape[1] > size[1]:
            raise ValueError(f"image_shape must be at most {size}, got {image_shape}")

        def bitmaps(logits: jax.Array, exists: jax.Array, _: jax.Array) -> jax.Array:
            whole = resized(logits, size)[..., : image_shape[0], : image_shape[1]]
            threshold = as_dtype(whole.dtype, self.test_cfg.mask_thr_binary)
            return (jax.nn.sigmoid(whole) > threshold) & exists[..., None, None]

        parts = self._map_masks(bitmaps, outputs, found.indices, found.exists, found.indices)
        chunks, batch, together = parts.shape[:3]
        whole = jnp.moveaxis(parts, 0, 1).reshape(batch, chunks * together, *image_shape)
        return whole[:, : found.indices.shape[1]]

    def expects(self, *args: Any, **options: Any) -> list[Expected]:
        masks = options.get("gt_masks")
        more = [] if masks is None else [Expected("gt_masks", masks, UNIT)]
        return [*super().expects(*args, **options), *more]

    # The rest.

    @property
    def channels(self) -> dict[str, int]:
        return super().channels | {"kernel_preds": sum(map(sum, self._sizes_of_layers()))}

    def examples(self, rows: int) -> dict[str, tuple[Any, Any]]:
        masks = jax.ShapeDtypeStruct((rows, 4, 4), "float32")
        return super().examples(rows) | {"loss_mask": (masks, masks)}

    def _sizes_of_layers(self) -> tuple[list[int], list[int]]:
        """How many weights and how many biases each layer has."""
        widths = self._widths()
        return [a * b for a, b in itertools.pairwise(widths)], widths[1:]

    def _widths(self) -> list[int]:
        """The numbers of channels before, between and after the convolutions."""
        return [self.num_prototypes + 2, *[self.dyconv_channels] * (self.num_dyconvs - 1), 1]

    def _check_outputs(self, outputs: HeadOutputs) -> None:
        super()._check_outputs(outputs)
        feats, scores = outputs.mask_feats, outputs.cls_scores[0]
        if feats is None:
            raise ValueError("outputs.mask_feats must be given")
        check_array("mask_feats", feats)
        if feats.ndim != 4 or feats.shape[::3] != (scores.shape[0], self.num_prototypes):
            raise ValueError(
                f"mask_feats must have shape ({scores.shape[0]}, h, w, {self.num_prototypes}), got "
                f"{feats.shape}"
            )

    def _covered(self, outputs: HeadOutputs) -> tuple[int, int]:
        """The (height, width) that `mask_feats` cover, in pixels."""
        feats: Any = outputs.mask_feats
        return feats.shape[1] * self.strides[0], feats.shape[2] * self.strides[0]

    def _check_masks(self, outputs: HeadOutputs, gt_labels: Any, gt_masks: Any) -> None:
        check_array("gt_masks", gt_masks)
        expected = (*gt_labels.shape, *self._covered(outputs))
        if gt_masks.shape != expected:
            raise ValueError(
                f"gt_masks must have shape {expected}, the last two of them those of mask_feats "
                f"times {self.strides[0]}; got {gt_masks.shape}"
            )

    def _loss_mask(
        self, outputs: HeadOutputs, targets: HeadTargets, gt_masks: jax.Array, axis_name: AxisName
    ) -> jax.Array:
        """The loss of the masks of the positives that get one."""
        metrics: Any = targets.metrics
        count = min(self.max_masks, metrics.shape[1])
        if not count * gt_masks.size:
            return jnp.zeros((), metrics.dtype) * self.loss_mask.loss_weight
        # Of equal metrics top_k takes those of the lowest index.
        best, places = jax.lax.top_k(jnp.where(targets.gt_inds > 0, metrics, -1), count)
        exists = best >= 0
        rows = jax.vmap(lambda x, i: x[i])(targets.gt_inds, places)
        total: Any = Criterion(self, {}, (), axis_name).total(exists.astype(metrics.dtype).sum())
        total = avg_factor_of_device(total, axis_name)
        stride = self.mask_loss_stride
        masks = gt_masks[:, :, stride // 2 :: stride, stride // 2 :: stride]

        def loss(logits: jax.Array, exists: jax.Array, rows: jax.Array) -> jax.Array:
            learnt = jax.vmap(lambda x, i: x[i])(masks, jnp.maximum(rows - 1, 0))
            learnt = jnp.where(exists[..., None, None], learnt.astype(logits.dtype), 0)
            logits = resized(logits, masks.shape[2:])
            flat = (x.reshape(-1, *x.shape[2:]) for x in (logits, learnt, exists))
            pred, target, weight = flat
            return self.loss_mask(pred, target, weight.astype(pred.dtype), total)

        values: jax.Array = self._map_masks(loss, outputs, places, exists, rows).sum()
        return values

    def _map_masks(
        self,
        function: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
        outputs: HeadOutputs,
        places: jax.Array,
        exists: jax.Array,
        rows: jax.Array,
    ) -> jax.Array:
        """What a function makes of logits (B, k, h, w), their `exists` and `rows`; chunk by chunk.

        Args:
          function: It is computed again for the gradient.
          outputs: The network's.
          places: (B, K) the points whose masks are meant.
          exists: (B, K) whether there is one.
          rows: (B, K) What the function has to know besides.

        Returns: (chunks, ...)
        """
        kernels: Any = outputs.kernel_preds
        feats: Any = outputs.mask_feats
        named = {f"kernel_preds[{i}]": x for i, x in enumerate(kernels)}
        dtype = compute_dtype(mask_feats=feats, **named)
        grid, feats = self._grid(outputs), feats.astype(dtype)
        count = places.shape[1]
        together = min(MASKS_TOGETHER, count)
        places, exists, rows = (
            jnp.pad(x, [(0, 0), (0, -count % together)]) for x in (places, exists, rows)
        )
        chosen = self._kernels_at(outputs, grid.level_sizes, places).astype(dtype)
        chosen = jnp.where(exists[..., None], chosen, 0)

        def at_places(x: Any) -> jax.Array:
            # A row for each image: XLA cannot follow a gather from what is not sharded.
            rows = jnp.broadcast_to(jnp.asarray(x, dtype)[None], (len(places), *x.shape))
            return jax.vmap(lambda x, i: x[i])(sharded_as(rows, places), places)

        points, strides = at_places(grid.priors), at_places(grid.strides)

        def in_chunks(x: jax.Array) -> jax.Array:
            chunks = x.shape[1] // together
            return jnp.moveaxis(x.reshape(x.shape[0], chunks, together, *x.shape[2:]), 1, 0)

        def of_chunk(chunk: tuple[jax.Array, ...]) -> jax.Array:
            kernels, points, strides, exists, rows = chunk
            return function(jax.vmap(self._logits)(feats, kernels, points, strides), exists, rows)

        # Keep the checkpoint. Without it the activations of all masks are kept for the gradient.
        run = jax.checkpoint(of_chunk, prevent_cse=False)
        return jax.lax.map(run, tuple(map(in_chunks, (chosen, points, strides, exists, rows))))

    def _kernels_at(
        self, outputs: HeadOutputs, level_sizes: tuple[int, ...], places: jax.Array
    ) -> jax.Array:
        """The convolutions' numbers (B, K, ...) of points; the levels are never made one array."""
        starts, found = np.cumsum((0, *level_sizes)).tolist(), None
        for start, size, rows in zip(
            starts, level_sizes, self._maps(outputs)["kernel_preds"], strict=False
        ):
            if not size:
                continue
            here = (places >= start) & (places < start + size)
            of_level = jax.vmap(lambda x, i: x[i])(rows, jnp.clip(places - start, 0, size - 1))
            of_level = jnp.where(here[..., None], of_level, 0)
            found = of_level if found is None else found + of_level
        assert found is not None
        return found

    def _logits(
        self, feats: jax.Array, kernels: jax.Array, points: jax.Array, strides: jax.Array
    ) -> jax.Array:
        """Logits (k, h, w) of one image's masks, at the cells of its features (h, w, channels)."""
        widths = self._widths()
        sizes = [size for part in self._sizes_of_layers() for size in part]
        parts = jnp.split(kernels, np.cumsum(sizes)[:-1].tolist(), axis=1)
        weights = [
            part.reshape(-1, wide, narrow)
            for part, (narrow, wide) in zip(parts, itertools.pairwise(widths), strict=False)
        ]
        biases = [part[:, :, None, None] for part in parts[len(weights) :]]
        cell = self.strides[0]
        # The two channels of the distance are products of one number each along y and along x.
        y, x = (
            (points[:, i, None] - cell * jnp.arange(size, dtype=points.dtype)[None])
            / (cell * strides[:, None])
            for i, size in ((1, feats.shape[0]), (0, feats.shape[1]))
        )
        first = weights[0]
        maps = jnp.einsum("kcp,hwp->kchw", first[:, :, 2:], feats, precision="highest")
        maps += first[:, :, 0, None, None] * x[:, None, None, :]
        maps += first[:, :, 1, None, None] * y[:, None, :, None] + biases[0]
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            maps = jax.nn.relu(maps)
            maps = jnp.einsum("kdc,kchw->kdhw", weight, maps, precision="highest") + bias
        return maps[:, 0]


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class RTMDetInsSepBNHead(RTMDetInsHead):
    """`RTMDetInsHead` with normalisation layers of each level, which the losses do not see.

    Source: mmdet's `RTMDetInsSepBNHead`
    """


def mask_centers(masks: Any, dtype: Any) -> jax.Array:
    """x, y of the centres of mass (..., 2) of bitmaps (..., H, W), in pixels; 0, 0 of empty ones.

    As in mmdet a pixel's place is its index, without a half.
    """
    rows, columns = masks.sum(-1, dtype=dtype), masks.sum(-2, dtype=dtype)
    area = jnp.maximum(columns.sum(-1), as_dtype(dtype, AREA_EPS))
    y, x = (
        jnp.tensordot(part, jnp.arange(part.shape[-1], dtype=dtype), 1, precision="highest")
        for part in (rows, columns)
    )
    return jnp.stack([x, y], axis=-1) / area[..., None]


def resized(logits: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Logits (B, k, h, w) at another size, bilinearly, with pixels' middles where they were."""
    shape = (*logits.shape[:2], *size)
    return jax.image.resize(logits, shape, "bilinear", precision=jax.lax.Precision.HIGHEST)
