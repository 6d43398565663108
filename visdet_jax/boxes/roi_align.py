"""RoI align: what a feature map holds in each of several regions, at one size."""

from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import columns
from visdet_jax.core.checks import check_array
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Count, Positive, Range
from visdet_jax.core.jitted import jitted

Precision = Literal["highest", "high", "default"]
Size = Count | tuple[Count, Count]


@jitted(static=("output_size", "sampling_ratio", "chunk"))
def roi_align(
    features: jax.Array,
    rois: jax.Array,
    valid: jax.Array | None = None,
    *,
    output_size: Size,
    spatial_scale: Positive = 1.0,
    sampling_ratio: Annotated[int, Range(0)] = 0,
    aligned: bool = True,
    chunk: Count = 32,
    precision: Precision = "highest",
) -> jax.Array:
    """The mean of a feature map in each bin of each region, by bilinear samples.

    A region is split into h × w bins. A bin is the mean of g × g samples that are spread evenly in
    it, g being `sampling_ratio`, or ceil(side of the region / number of bins) along each axis
    where that is 0. A sample interpolates between the four nearest cells; up to one cell outside
    the map it is the border's, and beyond that 0.

    The weights of a sample are a product of one along y and one along x, and so are those of a
    bin. So a region is A_y · features · A_xᵀ, two matrix products, with A_y (h, H) and A_x (w, W).
    Nothing is gathered or scattered, in the gradient neither. The price are H · W · C · h
    multiplications a region, whatever its size: on a CPU many regions of large maps take long.

    Memory: chunk · (h · W · C) floats for each image, beside features and result; the gradient
    also keeps the weights, R · (h · H + w · W). The features of the regions, (R, H, W, C), are
    never made.

    The gradient flows to the features; none flows to the regions, as in mmcv.

    Args:
      features: (..., H, W, C), channels last.
      rois: (..., R, 4) as x1, y1, x2, y2, in pixels, with the leading axes of `features`: so many
        regions of each image. With as many slots for each image nothing has to be gathered, as a
        list (R, 5) with the index of the image would ask for.
      valid: (..., R) False for padding, of which nothing is read and whose result is 0. None pads
        none. Regions that are not finite count as padding too.
      output_size: The number of bins (h, w), or one number for both, at least 1.
      spatial_scale: Cells per pixel, above 0: 1 / stride of the feature map.
      sampling_ratio: The number g of samples of a bin along each axis, at least 0. 0 takes as many
        as the bin has cells, rounded up, so that every cell in a region is read; for a region
        longer than two feature maps, as many as for one that long.
      aligned: Whether cell (0, 0) has its centre at half a cell, as is right. False has it at 0, as
        the first implementations, and counts a side below one cell as one.
      chunk: How many regions are computed together, at least 1. Larger numbers take more memory,
        and less time on an accelerator.
      precision: Of the matrix products, as in `jax.lax.dot_general`: "default" is several times
        faster than "highest" on TPUs, which then round to bfloat16, and on GPUs, to TF32.

    Returns: (..., R, h, w, C) in the type of `features`, computed in float32, or in float64 for
      float64 features.
    Raises: ValueError for shapes that do not fit.
    Source: He et al. 2017, https://arxiv.org/abs/1703.06870; mmcv's `RoIAlign` with
      pool_mode="avg".
    """
    check_array("features", features)
    check_array("rois", rois)
    if features.ndim < 3:
        raise ValueError(f"features must have shape (..., H, W, C), got {features.shape}")
    if rois.ndim != features.ndim - 1 or rois.shape[-1] != 4:
        raise ValueError(
            "rois must have shape (..., R, 4) with the leading axes of features, "
            f"got {rois.shape} for features {features.shape}"
        )
    if rois.shape[:-2] != features.shape[:-3]:
        raise ValueError(
            f"rois must have the leading axes of features, {features.shape[:-3]}, got {rois.shape}"
        )
    if valid is None:
        valid = jnp.ones_like(rois[..., 0], bool)
    check_array("valid", valid)
    if valid.shape != rois.shape[:-1]:
        raise ValueError(f"valid must have shape {rois.shape[:-1]}, got {valid.shape}")
    dtype = compute_dtype(features=features)
    bins = as_pair(output_size)
    rois = jax.lax.stop_gradient(jnp.asarray(rois)).astype(dtype)
    scale = as_dtype(dtype, spatial_scale)

    def of_image(features: jax.Array, rois: jax.Array, valid: jax.Array) -> jax.Array:
        height, width, channels = features.shape
        if not (len(rois) and features.size):
            return jnp.zeros((len(rois), *bins, channels), features.dtype)
        exists = valid & jnp.isfinite(rois).all(1)
        x1, y1, x2, y2 = columns(jnp.where(exists[:, None], rois, 0) * scale)
        wide = features.astype(dtype)

        def of_region(region: tuple[jax.Array, ...]) -> jax.Array:
            x1, y1, x2, y2, exists = region
            along_y = bin_weights(y1, y2, height, bins[0], sampling_ratio, aligned)
            along_x = bin_weights(x1, x2, width, bins[1], sampling_ratio, aligned)
            along_y = jnp.where(exists, along_y, 0)
            rows = jnp.einsum("ph,hwc->pwc", along_y, wide, precision=precision)
            found = jnp.einsum("qw,pwc->pqc", along_x, rows, precision=precision)
            return found.astype(features.dtype)

        return jax.lax.map(of_region, (x1, y1, x2, y2, exists), batch_size=min(chunk, len(rois)))

    for _ in features.shape[:-3]:
        of_image = jax.vmap(of_image)
    return of_image(jnp.asarray(features), rois, jnp.asarray(valid).astype(bool))


def bin_weights(
    low: jax.Array, high: jax.Array, size: int, bins: int, sampling_ratio: int, aligned: bool
) -> jax.Array:
    """The weights (bins, size) by which the cells of an axis make the bins of a region's side.

    Each row sums to 1 where the region lies inside. A side that is negative, or 0 where `aligned`
    and `sampling_ratio` is 0, has weights of 0.

    Args:
      low, high: Where the region begins and ends, in cells.
      size: The number of cells.
      bins: The number of bins.
      sampling_ratio, aligned: See `roi_align`.
    """
    dtype = low.dtype
    length = high - low
    start = low - as_dtype(dtype, 0.5) if aligned else low
    length = length if aligned else jnp.maximum(length, 1)
    step = length / bins
    if sampling_ratio:
        samples = jnp.int32(sampling_ratio)
    else:
        # Of a float32, as in mmcv also for float64: whether it rounds up must not depend on it.
        most = 2 * -(-size // bins)
        samples = jnp.ceil(step.astype(jnp.float32)).clip(0, most).astype(jnp.int32)
    samples = jnp.where(length < 0, 0, samples)
    divisor = jnp.maximum(samples, 1).astype(dtype)
    begin = start + jnp.arange(bins).astype(dtype) * step
    cells = jnp.arange(size).astype(dtype)

    def add_sample(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, total = state
        at = begin + (number.astype(dtype) + as_dtype(dtype, 0.5)) * step / divisor
        on_map = (at >= -1) & (at <= size)
        # Of a point on the map, the weight of a cell is a hat around it.
        distance = jnp.abs(at.clip(0, size - 1)[:, None] - cells[None])
        return number + 1, total + jnp.where(on_map[:, None], jnp.maximum(1 - distance, 0), 0)

    # One sample after the other: all at once would be `samples` times the memory, and how many the
    # largest region needs is not known when the program is compiled.
    # Keep these `where` whose sides are equal, and no `fori_loop`: inside `shard_map` and over
    # explicit meshes the state of a loop has to be spread over the devices from its start on.
    varies = samples > 0
    start = jnp.where(varies, 0, samples), jnp.where(varies, jnp.zeros((bins, size), dtype), 0)
    _, total = jax.lax.while_loop(lambda state: state[0] < samples, add_sample, start)
    return total / divisor


def as_pair(size: Any) -> tuple[int, int]:
    """(h, w) of one number for both, or of a pair."""
    if isinstance(size, tuple):
        if len(size) != 2:
            raise ValueError(f"output_size must be a number or (height, width), got {size}")
        return size
    return size, size
