"""Boxes (..., 4), given as x1, y1, x2, y2 in pixels: overlaps, formats and coders."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.function import as_dtype, compute_dtype, jitted
from visdet_jax.numerics import clamp, clamp_min, divide
from visdet_jax.pairs import Columns, pair_geometry

OVERLAP_MODES = ("iou", "iof", "giou")
BOX_FORMATS = ("xyxy", "xywh", "cxcywh")
# Of a prior's side: what a box's side is at least taken for, where its logarithm is needed.
MIN_SIDE = 1e-6


def overlaps(
    boxes1: jax.Array | Columns, boxes2: jax.Array | Columns, mode: str, eps: jax.Array | float
) -> jax.Array:
    """IoU, IoF or GIoU of boxes (..., 4) that broadcast; see `bbox_overlaps`."""
    pair = pair_geometry(boxes1, boxes2)
    union = jnp.maximum(pair.area1 if mode == "iof" else pair.union, eps)
    iou = divide(pair.overlap, union)
    if mode != "giou":
        return iou
    hull = jnp.maximum(pair.hull_width * pair.hull_height, eps)
    return iou - divide(hull - union, hull)


@jitted
def bbox_overlaps(
    bboxes1: jax.Array,
    bboxes2: jax.Array,
    mode: str = "iou",
    is_aligned: bool = False,
    eps: float = 1e-6,
) -> jax.Array:
    """Overlap of boxes, of each pair or of each with each.

    iou: |A ∩ B| / |A ∪ B|; iof: |A ∩ B| / |A|; giou: iou - (|C| - |A ∪ B|) / |C| with C the
    smallest box around both.

    Args:
      bboxes1: (..., m, 4) as x1, y1, x2, y2 in pixels.
      bboxes2: (..., n, 4), with the same leading axes; the same shape where aligned.
      mode: "iou", "iof" or "giou".
      is_aligned: the i-th against the i-th, instead of each against each.
      eps: floor of the areas that are divided by, in pixels squared.
    Returns: (..., m, n), or (..., m) where aligned; float32, float64 for float64 boxes.
    Raises: ValueError for another mode and for shapes that do not fit.
    Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630; mmdet's `bbox_overlaps`.
    """
    if mode not in OVERLAP_MODES:
        raise ValueError(f"mode must be one of {', '.join(OVERLAP_MODES)}; got {mode!r}")
    dtype = compute_dtype(bboxes1=bboxes1, bboxes2=bboxes2)
    shapes = f"got {bboxes1.shape} and {bboxes2.shape}"
    for boxes in (bboxes1, bboxes2):
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise ValueError(f"boxes must have shape (..., n, 4), {shapes}")
    if is_aligned and bboxes1.shape != bboxes2.shape:
        raise ValueError(f"aligned boxes must have the same shape, {shapes}")
    if bboxes1.shape[:-2] != bboxes2.shape[:-2]:
        raise ValueError(f"boxes must have the same leading axes, {shapes}")
    bboxes1, bboxes2 = bboxes1.astype(dtype), bboxes2.astype(dtype)
    if not is_aligned:
        bboxes1, bboxes2 = bboxes1[..., :, None, :], bboxes2[..., None, :, :]
    return overlaps(bboxes1, bboxes2, mode, as_dtype(dtype, eps))


@jitted
def convert_boxes(boxes: jax.Array, source: str = "xyxy", target: str = "cxcywh") -> jax.Array:
    """Boxes of one format in another.

    xyxy: two corners; xywh: the upper left corner and the size (COCO's files); cxcywh: the centre
    and the size (DETR). Pixels stay pixels, and normalised boxes normalised.

    Args:
      boxes: (..., 4).
      source, target: "xyxy", "xywh" or "cxcywh".
    Raises: ValueError for another format or shape.
    """
    for name, given in (("source", source), ("target", target)):
        if given not in BOX_FORMATS:
            raise ValueError(f"{name} must be one of {', '.join(BOX_FORMATS)}; got {given!r}")
    x, y, *rest = _columns("boxes", boxes, compute_dtype(boxes=boxes))
    sides = []
    for at, end in zip((x, y), rest, strict=True):
        low = at - end / 2 if source == "cxcywh" else at
        size = end - at if source == "xyxy" else end
        high = end if source == "xyxy" else low + size
        if target == "xyxy":
            sides.append((low, high))
        elif target == "xywh":
            sides.append((low, size))
        else:
            sides.append((at if source == "cxcywh" else (low + high) / 2, size))
    return jnp.stack([*next(zip(*sides, strict=True)), *[size for _, size in sides]], axis=-1)


@jitted
def normalize_boxes(boxes: jax.Array, image_shape: jax.Array) -> jax.Array:
    """Boxes in pixels as fractions of the image's width and height.

    Args:
      boxes: (..., 4), of any format: x and widths in the even places, y and heights in the odd.
      image_shape: (height, width) in pixels, or (B, 2) for boxes (B, N, 4).
    Raises: ValueError for other shapes.
    """
    boxes = boxes.astype(compute_dtype(boxes=boxes))
    return boxes / _extents(boxes, image_shape)


@jitted
def denormalize_boxes(boxes: jax.Array, image_shape: jax.Array) -> jax.Array:
    """Boxes as fractions of the image's width and height in pixels; see `normalize_boxes`."""
    boxes = boxes.astype(compute_dtype(boxes=boxes))
    return boxes * _extents(boxes, image_shape)


@jitted
def bbox2delta(
    priors: jax.Array,
    boxes: jax.Array,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
) -> jax.Array:
    """What a prior has to learn to become its box: `delta2bbox`'s inverse.

    ((gx - px) / pw, (gy - py) / ph, log(gw / pw), log(gh / ph)), less `means`, over `stds`, with
    p the prior's centre and size and g the box's.

    Args:
      priors, boxes: (..., 4) that broadcast, in pixels.
    Returns: (..., 4), finite for boxes without area too: a side counts as 1e-6 of the prior's.
    Raises: ValueError for other shapes.
    Girshick et al. 2014, https://arxiv.org/abs/1311.2524
    """
    dtype = compute_dtype(priors=priors, boxes=boxes)
    px, py, pw, ph = _columns("priors", convert_boxes(priors), dtype)
    gx, gy, gw, gh = _columns("boxes", convert_boxes(boxes), dtype)
    deltas = (
        divide(gx - px, pw),
        divide(gy - py, ph),
        jnp.log(clamp_min(divide(gw, pw), MIN_SIDE)),
        jnp.log(clamp_min(divide(gh, ph), MIN_SIDE)),
    )
    scaled = [
        (delta - as_dtype(dtype, mean)) / as_dtype(dtype, std)
        for delta, mean, std in zip(deltas, means, stds, strict=True)
    ]
    return jnp.stack(scaled, axis=-1)


@jitted
def delta2bbox(
    priors: jax.Array,
    deltas: jax.Array,
    means: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    stds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0),
    max_shape: jax.Array | None = None,
    wh_ratio_clip: float = 16 / 1000,
    add_ctr_clamp: bool = False,
    ctr_clamp: float = 32.0,
) -> jax.Array:
    """Priors moved and scaled by what was predicted for them: `bbox2delta`'s inverse.

    Args:
      priors, deltas: (..., 4) that broadcast; priors in pixels.
      max_shape: (height, width), or (B, 2) for boxes (B, N, 4), to which the boxes are clipped.
      wh_ratio_clip: a side changes at most by this factor or its inverse.
      add_ctr_clamp: centres move by at most `ctr_clamp` pixels, and sides may shrink at will.
    Returns: (..., 4) in pixels.
    Raises: ValueError for other shapes.
    Girshick et al. 2014, https://arxiv.org/abs/1311.2524; mmdet's `delta2bbox`.
    """
    dtype = compute_dtype(priors=priors, deltas=deltas)
    px, py, pw, ph = _columns("priors", convert_boxes(priors), dtype)
    dx, dy, dw, dh = (
        delta * as_dtype(dtype, std) + as_dtype(dtype, mean)
        for delta, std, mean in zip(_columns("deltas", deltas, dtype), stds, means, strict=True)
    )
    dx, dy = dx * pw, dy * ph
    top = jnp.abs(jnp.log(as_dtype(dtype, wh_ratio_clip)))
    low = -top
    if add_ctr_clamp:
        reach = as_dtype(dtype, ctr_clamp)
        dx, dy = clamp(dx, -reach, reach), clamp(dy, -reach, reach)
        low = as_dtype(dtype, -jnp.inf)
    x, y = px + dx, py + dy
    w, h = pw * jnp.exp(clamp(dw, low, top)), ph * jnp.exp(clamp(dh, low, top))
    return _clip(jnp.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=-1), max_shape)


@jitted
def bbox2distance(
    points: jax.Array, boxes: jax.Array, max_dis: jax.Array | None = None, eps: float = 0.1
) -> jax.Array:
    """Distances from points to the sides of their boxes: left, top, right, bottom.

    Args:
      points: (..., 2) as x, y; boxes: (..., 4); both in one unit, and they broadcast.
      max_dis: for targets of a distribution over the bins 0 to max_dis: the distances are then
        clipped to [0, max_dis - eps].
    Returns: (..., 4), negative where a point is outside its box, without max_dis.
    Raises: ValueError for other shapes.
    """
    dtype = compute_dtype(points=points, boxes=boxes)
    x, y = _columns("points", points, dtype, 2)
    x1, y1, x2, y2 = _columns("boxes", boxes, dtype)
    distances = jnp.stack([x - x1, y - y1, x2 - x, y2 - y], axis=-1)
    if max_dis is None:
        return distances
    return clamp(distances, 0, as_dtype(dtype, max_dis) - as_dtype(dtype, eps))


@jitted
def distance2bbox(
    points: jax.Array, distances: jax.Array, max_shape: jax.Array | None = None
) -> jax.Array:
    """Boxes (..., 4) around points (..., 2) by the distances (..., 4) to their sides.

    All in one unit; `max_shape` as in `delta2bbox`. `bbox2distance`'s inverse.
    """
    dtype = compute_dtype(points=points, distances=distances)
    x, y = _columns("points", points, dtype, 2)
    left, top, right, bottom = _columns("distances", distances, dtype)
    return _clip(jnp.stack([x - left, y - top, x + right, y + bottom], axis=-1), max_shape)


@jitted
def integral(pred: jax.Array) -> jax.Array:
    """The mean of a distribution over the bins 0 to n: Σ k softmax(pred)_k.

    Args:
      pred: logits of the bins (..., n + 1).
    Returns: (...), in bins.
    Li et al. 2020, https://arxiv.org/abs/2006.04388
    """
    dtype = compute_dtype(pred=pred)
    # A sum and not a product of matrices, which accelerators round to bfloat16 or TF32.
    bins = jax.lax.broadcasted_iota(dtype, pred.shape, pred.ndim - 1)
    return (jax.nn.softmax(pred.astype(dtype), axis=-1) * bins).sum(-1)


@jitted
def centerness_target(distances: jax.Array) -> jax.Array:
    """How central a point lies in its box: √(min(l, r) / max(l, r) · min(t, b) / max(t, b)).

    Args:
      distances: (..., 4), left, top, right, bottom, in any unit.
    Returns: (...), 1 in the centre, 0 on the border and outside.
    Tian et al. 2019, https://arxiv.org/abs/1904.01355
    """
    dtype = compute_dtype(distances=distances)
    left, top, right, bottom = _columns("distances", distances, dtype)
    low, high = jnp.minimum, jnp.maximum
    inside = low(low(left, right), low(top, bottom)) > 0
    ratio = divide(low(left, right), high(left, right)) * divide(
        low(top, bottom), high(top, bottom)
    )
    return jnp.where(inside, jnp.sqrt(jnp.where(inside, ratio, 1)), 0)


def _columns(name: str, x: jax.Array, dtype: Any, count: int = 4) -> list[jax.Array]:
    """The columns of (..., count): three times faster on a CPU than slices of several."""
    if x.ndim == 0 or x.shape[-1] != count:
        raise ValueError(f"{name} must have shape (..., {count}), got {x.shape}")
    return [x[..., i].astype(dtype) for i in range(count)]


def _extents(boxes: jax.Array, image_shape: Any) -> jax.Array:
    """(width, height, width, height) of the image, or of each image, with the boxes' axes."""
    shape = jnp.asarray(image_shape).astype(boxes.dtype)
    leading = shape.shape[:-1]
    if (
        shape.shape[-1:] != (2,)
        or boxes.shape[-1:] != (4,)
        or boxes.shape[: len(leading)] != leading
        or len(leading) >= boxes.ndim
    ):
        raise ValueError(
            "an image's shape must be (height, width), or an array (B, 2) for boxes (B, N, 4); "
            f"got {shape.shape} for boxes {boxes.shape}"
        )
    height, width = shape[..., 0], shape[..., 1]
    extents = jnp.stack([width, height, width, height], axis=-1)
    return extents.reshape(*leading, *[1] * (boxes.ndim - 1 - len(leading)), 4)


def _clip(boxes: jax.Array, max_shape: Any) -> jax.Array:
    return boxes if max_shape is None else clamp(boxes, 0, _extents(boxes, max_shape))
