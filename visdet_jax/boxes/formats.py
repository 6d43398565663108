"""Formats of boxes, in pixels and in fractions of the image."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from visdet_jax.boxes._pairs import box_columns
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.elementary import clamp
from visdet_jax.core.jitted import jitted

BoxFormat = Literal["xyxy", "xywh", "cxcywh"]


@jitted
def convert_boxes(
    boxes: jax.Array, source: BoxFormat = "xyxy", target: BoxFormat = "cxcywh"
) -> jax.Array:
    """Boxes of one format in another.

    xyxy: two corners; xywh: the upper left corner and the size (COCO's files); cxcywh: the centre
    and the size (DETR). Pixels stay pixels, and fractions of the image stay fractions.

    Args:
      boxes: Boxes (..., 4) in the format `source`, in any unit.
      source: The format of `boxes`: "xyxy", "xywh" or "cxcywh".
      target: The format of the result, one of the same three.

    Returns: (..., 4), in the same unit.
    Raises: ValueError for another format or shape.
    """
    x, y, *rest = box_columns("boxes", boxes, compute_dtype(boxes=boxes))
    sides = []
    for start, end in zip((x, y), rest, strict=True):
        low = start - end / 2 if source == "cxcywh" else start
        size = end - start if source == "xyxy" else end
        high = end if source == "xyxy" else low + size
        if target == "xyxy":
            sides.append((low, high))
        elif target == "xywh":
            sides.append((low, size))
        else:
            sides.append((start if source == "cxcywh" else (low + high) / 2, size))
    return jnp.stack([*next(zip(*sides, strict=True)), *[size for _, size in sides]], axis=-1)


@jitted
def normalize_boxes(boxes: jax.Array, image_shape: jax.Array) -> jax.Array:
    """Boxes in pixels as fractions of the image's width and height.

    Args:
      boxes: Boxes (..., 4) in pixels, in any format that has x and widths in the even places, and
        y and heights in the odd ones.
      image_shape: (height, width) in pixels, or (B, 2) for boxes (B, N, 4).

    Returns: (..., 4), fractions.
    Raises: ValueError for other shapes.
    """
    boxes = boxes.astype(compute_dtype(boxes=boxes))
    return boxes / _extents(boxes, image_shape)


@jitted
def denormalize_boxes(boxes: jax.Array, image_shape: jax.Array) -> jax.Array:
    """Boxes as fractions of the image's width and height in pixels.

    Args:
      boxes: Boxes (..., 4) as fractions, in any format that `normalize_boxes` takes.
      image_shape: (height, width) in pixels, or (B, 2) for boxes (B, N, 4).

    Returns: (..., 4), in pixels.
    Raises: ValueError for other shapes.
    """
    boxes = boxes.astype(compute_dtype(boxes=boxes))
    return boxes * _extents(boxes, image_shape)


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


def clip_to_image(boxes: jax.Array, max_shape: Any) -> jax.Array:
    """Boxes (..., 4) as x1, y1, x2, y2, with what lies outside the image moved to its border.

    `max_shape` is an image's shape, as `normalize_boxes` takes it, or None to clip nothing.
    """
    return boxes if max_shape is None else clamp(boxes, 0, _extents(boxes, max_shape))
