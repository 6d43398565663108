"""Masks at points: what maps hold at them, and which points are the least certain."""

import functools
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.hyperparameters import Count, Range
from visdet_jax.core.jitted import jitted

Mode = Literal["bilinear", "nearest"]
Padding = Literal["zeros", "border"]

# How many points of a map are computed together on a TPU, each with weights of a whole row and a
# whole column of the map.
POINTS_TOGETHER = 1024


@jitted
def sample_points(
    images: jax.Array,
    points: jax.Array,
    indices: jax.Array | None = None,
    *,
    mode: Mode = "bilinear",
    padding: Padding = "zeros",
) -> jax.Array:
    """What maps hold at points.

    Cell (i, j) of a map is the square from (j / W, i / H) to ((j + 1) / W, (i + 1) / H), and its
    value is that of its middle. A point has the values of the four nearest middles, by bilinear
    interpolation, or the value of the nearest one.

    The gradient flows to the maps, summed in float32 for half floats; none flows to the points.

    Memory: beside the arguments and the result, a few numbers for each point; for the gradient the
    points are kept. Maps are read where they lie, also bools and bytes: no float copy is made.

    Args:
      images: (..., H, W), or (..., M, H, W) with `indices`: floats, integers or bools.
      points: (..., P, 2) as x, y in fractions of the map, with the leading axes of `images`; or
        (..., N, P, 2) with `indices`.
      indices: (..., N) integers of any width: which of the M maps each row of points reads, 0 for
        the first. One out of range reads the nearest that there is. None: each map has its own row.
      mode: "bilinear", or "nearest": of two that are equally near, the even one.
      padding: What lies beyond the middles of the cells at the edge: "zeros", so that values fade
        out towards the edge of the map and half a cell beyond it, or "border", the cells at the
        edge.

    Returns: (..., P), or (..., N, P) with `indices`: float32, and float64 where maps or points are.
    Raises: ValueError for shapes that do not fit, TypeError for `indices` that are no integers.
    Source: torch's `grid_sample` with align_corners=False; mmcv's `point_sample`.
    """
    dtype = compute_dtype(images=images, points=points)
    images, rows = _as_rows(images, indices)
    _check_points("points", points, rows.shape if indices is not None else rows.shape[:-1])
    points = sharded_as(jax.lax.stop_gradient(jnp.asarray(points)).astype(dtype), images)
    points = points.reshape(*rows.shape, *points.shape[-2:])
    read = functools.partial(_read, mode=mode, padding=padding)
    for _ in images.shape[:-3]:
        read = jax.vmap(read)
    values: jax.Array = read(images, rows, points)
    return values if indices is not None else values.squeeze(-2)


def _as_rows(images: Any, indices: Any) -> tuple[jax.Array, jax.Array]:
    """Maps (..., M, H, W), and which of them each row of points reads (..., N).

    Without indices M and N are 1. Raises: ValueError, TypeError for what does not fit.
    """
    check_array("images", images)
    images = jnp.asarray(images)
    if images.ndim < 2 + (indices is not None):
        axes = "(..., H, W)" if indices is None else "(..., M, H, W) with indices"
        raise ValueError(f"maps must have shape {axes}, got {images.shape}")
    if indices is None:
        images = images[..., None, :, :]
        return images, sharded_as(jnp.zeros(images.shape[:-2], jnp.int32), images)
    indices = as_labels("indices", indices)
    if indices.ndim != images.ndim - 2 or indices.shape[:-1] != images.shape[:-3]:
        raise ValueError(
            f"indices must have the leading axes of maps {images.shape} and one more, got "
            f"{indices.shape}"
        )
    return images, sharded_as(indices.clip(0, max(images.shape[-3] - 1, 0)), images)


def _check_points(name: str, points: Any, leading: tuple[int, ...], count: Any = "P") -> None:
    """Raises unless points are (*leading, count, 2), or of any count where none is given."""
    check_array(name, points)
    expected = (*leading, points.shape[-2] if count == "P" and points.ndim > 1 else count, 2)
    if points.shape != expected:
        shape = ", ".join(map(str, (*leading, count, 2)))
        raise ValueError(f"{name} must have shape ({shape}), got {points.shape}")


def _read(
    images: jax.Array, rows: jax.Array, points: jax.Array, mode: Mode, padding: Padding
) -> jax.Array:
    """What maps (M, H, W) hold at points (N, P, 2), each row (N,) of which reads one map."""
    _, height, width = images.shape
    if not images.size:
        return jnp.zeros(points.shape[:-1], points.dtype)
    half = as_dtype(points.dtype, 0.5)
    x, y = points[..., 0] * width - half, points[..., 1] * height - half
    if padding == "border":
        x, y = x.clip(0, width - 1), y.clip(0, height - 1)
    if mode == "nearest":
        return _interpolate(images, rows, jnp.round(x), jnp.round(y), 1)
    return _interpolate(images, rows, x, y, 2)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _interpolate(
    images: jax.Array, rows: jax.Array, x: jax.Array, y: jax.Array, cells: int
) -> jax.Array:
    """The values of maps (M, H, W) at coordinates (N, P) in cells, between 2 cells of each axis.

    With 1 cell, of whole coordinates. Beyond the edge it is 0.
    """
    return jax.lax.platform_dependent(
        images,
        rows,
        x,
        y,
        tpu=_by_products,
        default=functools.partial(_by_gathers, cells=cells),
    )


@_interpolate.defjvp
def _interpolate_jvp(cells: int, primals: Any, tangents: Any) -> Any:
    _, rows, x, y = primals
    # Keep the checkpoint. Without it eight numbers for each point are kept in place of two.
    by_windows = jax.checkpoint(functools.partial(_by_windows, cells=cells))
    tangent = jax.lax.platform_dependent(
        tangents[0].astype(x.dtype), rows, x, y, tpu=_by_products, default=by_windows
    )
    return _interpolate(*primals, cells), tangent


def _corners(at: jax.Array, size: int, cells: int) -> tuple[jax.Array, list[jax.Array]]:
    """The first of the cells that a coordinate is between, and the weight of each.

    A cell beyond the edge has no weight: the first cell is moved to where all exist, of which there
    are no more than the axis has.
    """
    cells = min(cells, size)
    first = jnp.floor(at).clip(0, size - cells)
    return first, [jnp.maximum(1 - jnp.abs(at - first - i), 0) for i in range(cells)]


def _by_gathers(
    images: jax.Array, rows: jax.Array, x: jax.Array, y: jax.Array, cells: int
) -> jax.Array:
    """`_interpolate` by a gather for each cell of a point: a few nanoseconds each on a CPU."""
    height, width = images.shape[-2:]
    (top, along_y), (left, along_x) = _corners(y, height, cells), _corners(x, width, cells)
    first = top.astype(jnp.int32) * width + left.astype(jnp.int32)
    flat = images.reshape(images.shape[0], height * width)
    total = jnp.zeros_like(x)
    for i, weight_y in enumerate(along_y):
        for j, weight_x in enumerate(along_x):
            values = flat.at[rows[:, None], first + (i * width + j)].get(mode="clip")
            total += weight_y * weight_x * values.astype(x.dtype)
    return total


def _by_windows(
    images: jax.Array, rows: jax.Array, x: jax.Array, y: jax.Array, cells: int
) -> jax.Array:
    """`_interpolate` by one gather of a point's cells together.

    Keep it for the derivative. Its transpose is one scatter; that of a gather for each cell are
    four, which take 2.5 times as long (50 maps of 256 x 256, 12 544 points each, CPU, jax 0.10.2).
    """
    height, width = images.shape[-2:]
    (top, along_y), (left, along_x) = _corners(y, height, cells), _corners(x, width, cells)
    rows = jnp.broadcast_to(rows[:, None], x.shape)
    starts = jnp.stack([rows, top.astype(jnp.int32), left.astype(jnp.int32)], axis=-1)
    axes = jax.lax.GatherDimensionNumbers(
        offset_dims=(2, 3), collapsed_slice_dims=(0,), start_index_map=(0, 1, 2)
    )
    windows = jax.lax.gather(images, starts, axes, (1, len(along_y), len(along_x)), mode="clip")
    weights = jnp.stack(along_y, -1)[..., :, None] * jnp.stack(along_x, -1)[..., None, :]
    return (windows * weights).sum((-1, -2))


def _by_products(images: jax.Array, rows: jax.Array, x: jax.Array, y: jax.Array) -> jax.Array:
    """`_interpolate` by matrix products: the weights of all cells along y, then those along x.

    Keep it for TPUs, where gathers and scatters are loops over the points.
    """
    height, width = images.shape[-2:]
    # Bools and bytes are exact in bfloat16, so that fewer passes leave 16 bits of the weights.
    narrow = images.dtype.itemsize == 1
    precision = jax.lax.Precision.HIGH if narrow else jax.lax.Precision.HIGHEST

    def weights(at: jax.Array, size: int) -> jax.Array:
        return jnp.maximum(1 - jnp.abs(at - jnp.arange(size).astype(at.dtype)), 0)

    def of_row(row: tuple[jax.Array, ...]) -> jax.Array:
        image, x, y = row

        # Without the checkpoint the weights of all cells are kept for the gradient.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def of_point(point: tuple[jax.Array, jax.Array]) -> jax.Array:
            x, y = point
            found = jnp.matmul(weights(y, height), image.astype(x.dtype), precision=precision)
            return (found * weights(x, width)).sum()

        return jax.lax.map(of_point, (x, y), batch_size=min(POINTS_TOGETHER, len(x)))

    if not x.size:
        return jnp.zeros_like(x)
    if jnp.issubdtype(images.dtype, jnp.floating):
        return jax.lax.map(of_row, (images[rows], x, y))
    return jax.lax.map(lambda row: of_row((images[row[0]], *row[1:])), (rows, x, y))


@jitted(static=("num_points", "oversample_ratio", "importance_ratio", "chunk"))
def uncertain_points(
    key: jax.Array | None,
    logits: jax.Array,
    indices: jax.Array | None = None,
    *,
    num_points: Count,
    oversample_ratio: Annotated[float, Range(1)],
    importance_ratio: Annotated[float, Range(0, 1)],
    padding: Padding = "zeros",
    candidates: jax.Array | None = None,
    rest: jax.Array | None = None,
    chunk: Count = 8,
) -> jax.Array:
    """Points of masks that are learnt: mostly those where the prediction is the least certain.

    There are C = ⌊num_points · oversample_ratio⌋ uniform candidates. Those
    k = ⌊num_points · importance_ratio⌋ with the least |logit| are taken, of equal ones any, and
    num_points - k more are uniform.

    No gradient flows through it. Memory: a few numbers for each candidate of `chunk` rows, beside
    the arguments and the result.

    Args:
      key: A `jax.random.key`. None where `candidates` and `rest` are given.
      logits: Predicted masks (..., H, W), or (..., M, H, W) with `indices`.
      indices: (..., N) which of the M masks each row of points is for; see `sample_points`.
      num_points: How many points a row has, at least 1. Larger numbers compare more of a mask.
      oversample_ratio: Candidates for each point, at least 1. Larger values bring the points nearer
        to where the prediction is not certain.
      importance_ratio: The part of the points that is chosen, in [0, 1]. With 0 all are uniform.
      padding: What lies beyond the edge of a mask; see `sample_points`.
      candidates: (..., C, 2), or (..., N, C, 2) with `indices`: the candidates as x, y in fractions
        of the mask, in place of a draw.
      rest: (..., num_points - k, 2), or (..., N, num_points - k, 2): the other points.
      chunk: With `indices`: how many of the N rows are computed together, at least 1. Larger
        numbers take more memory, and less time on an accelerator.

    Returns: (..., num_points, 2), or (..., N, num_points, 2), as x, y in fractions of the mask, the
      chosen ones first; float32, and float64 where `logits` are.
    Raises: ValueError for shapes that do not fit, and for a key that is missing.
    Source: Kirillov et al. 2020 (PointRend), https://arxiv.org/abs/1912.08193; mmdet's
      `get_uncertain_point_coords_with_randomness`.
    """
    dtype = compute_dtype(pred=logits)
    chosen = int(num_points * importance_ratio)
    counts = {"candidates": int(num_points * oversample_ratio), "rest": num_points - chosen}
    given = {"candidates": candidates, "rest": rest}
    logits, rows = _as_rows(jax.lax.stop_gradient(logits), indices)
    shape = rows.shape if indices is not None else rows.shape[:-1]
    draws: dict[str, Any] = {}
    for name, points in given.items():
        if points is None:
            continue
        _check_points(name, points, shape, counts[name])
        points = sharded_as(jnp.asarray(points).astype(dtype), logits)
        draws[name] = points.reshape(*rows.shape, *points.shape[-2:])
    if len(draws) < len(given):
        if key is None:
            raise ValueError("key must be given, or both candidates and rest")
        draws["key"] = sharded_as(jax.random.split(key, rows.shape), rows)

    def of_image(logits: jax.Array, rows: jax.Array, draws: dict[str, Any]) -> jax.Array:
        def of_row(row: tuple[jax.Array, dict[str, Any]]) -> jax.Array:
            index, draws = row
            if "key" in draws:
                keys = jax.random.split(draws["key"])
                draws = {
                    name: jax.random.uniform(key, (counts[name], 2), dtype)
                    for name, key in zip(given, keys, strict=True)
                } | draws
            points = draws["candidates"]
            values = _read(logits, index[None], points[None], "bilinear", padding)
            return jnp.concatenate([_least(jnp.abs(values[0]), points, chosen), draws["rest"]])

        return jax.lax.map(of_row, (rows, draws), batch_size=min(chunk, len(rows)))

    for _ in logits.shape[:-3]:
        of_image = jax.vmap(of_image)
    points = of_image(logits, rows, draws)
    return points if indices is not None else points.squeeze(-3)


def _least(values: jax.Array, points: jax.Array, count: int) -> jax.Array:
    """The points (count, 2) of those (C, 2) whose values (C,) are the least."""
    by_sort, by_top_k = (functools.partial(f, count=count) for f in (_by_sort, _by_top_k))
    return jax.lax.platform_dependent(values, points, tpu=by_sort, default=by_top_k)


def _by_top_k(values: jax.Array, points: jax.Array, count: int) -> jax.Array:
    _, places = jax.lax.top_k(-values, count)
    return points.at[places].get(mode="clip")


def _by_sort(values: jax.Array, points: jax.Array, count: int) -> jax.Array:
    """Keep it for TPUs, where a gather is a loop: the points are sorted with their values."""
    _, x, y = jax.lax.sort((values, points[:, 0], points[:, 1]), num_keys=1, is_stable=False)
    return jnp.stack([x[:count], y[:count]], axis=-1)
