"""FCOS (Tian et al. 2019): points, the targets they learn, the losses and the detections."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import bbox_overlaps

from .data import IGNORED

CENTER_RADIUS = 1.5  # in strides: a point further from a box's centre is not its positive
REACH = 4  # in strides: a level takes the boxes whose farthest side is within reach


def make_points(
    image_shape: tuple[int, int], strides: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Point centres (P, 2) as x, y in pixels, level after level and row by row; strides (P,)."""
    height, width = image_shape
    points, point_strides = [], []
    for stride in strides:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride]
        points.append((np.stack([x.ravel(), y.ravel()], axis=-1) + 0.5) * stride)
        point_strides.append(np.full(x.size, stride))
    return (
        jnp.asarray(np.concatenate(points), jnp.float32),
        jnp.asarray(np.concatenate(point_strides), jnp.float32),
    )


def assign_targets(
    points: jax.Array,
    point_strides: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    num_classes: int,
) -> dict[str, jax.Array]:
    """What each of the P points of one image learns from its padded boxes (M, 4), labels (M,).

    A point is positive for the smallest box that contains it, has its centre near it and is of the
    level's size. Returns labels (P,) with `num_classes` for background, label_weights (P,), 0 in
    ignored regions, boxes (P, 4), and centerness (P,), 0 where the point is not positive.
    """
    x, y = points[:, 0, None], points[:, 1, None]
    x1, y1, x2, y2 = boxes.T
    sides = jnp.stack([x - x1, y - y1, x2 - x, y2 - y], axis=-1)  # (P, M, 4)
    inside = sides.min(axis=-1) > 0  # never in a padding row: its box has no area

    radius = CENTER_RADIUS * point_strides[:, None]
    off_center = jnp.maximum(jnp.abs(x - (x1 + x2) / 2), jnp.abs(y - (y1 + y2) / 2))
    farthest = sides.max(axis=-1)
    finest, coarsest = point_strides.min(), point_strides.max()
    reach = REACH * point_strides[:, None]
    lower = jnp.where(point_strides[:, None] == finest, 0, reach / 2)
    upper = jnp.where(point_strides[:, None] == coarsest, jnp.inf, reach)
    candidate = (
        (labels >= 0) & inside & (off_center < radius) & (lower < farthest) & (farthest <= upper)
    )

    areas = (x2 - x1) * (y2 - y1)
    chosen = jnp.where(candidate, areas, jnp.inf).argmin(axis=1)
    positive = candidate.any(axis=1)
    ignored = (inside & (labels == IGNORED)).any(axis=1) & ~positive

    left, top, right, bottom = jnp.take_along_axis(sides, chosen[:, None, None], axis=1)[:, 0].T
    ratio = (jnp.minimum(left, right) / jnp.maximum(left, right)) * (
        jnp.minimum(top, bottom) / jnp.maximum(top, bottom)
    )
    return {
        "labels": jnp.where(positive, labels[chosen], num_classes),
        "label_weights": jnp.where(ignored, 0.0, 1.0),
        "boxes": boxes[chosen],
        "centerness": jnp.sqrt(jnp.where(positive, ratio, 0.0)),
    }


def fcos_losses(
    outputs: dict[str, jax.Array],
    points: jax.Array,
    targets: dict[str, jax.Array],
    losses: dict[str, Callable],
) -> dict[str, jax.Array]:
    """The three losses of a batch by name, from outputs (B, P, ...) and targets (B, P, ...).

    Every point takes part in every call, and weight 0 takes it out: no shape depends on the data.
    """
    num_classes = outputs["logits"].shape[-1]
    logits = outputs["logits"].reshape(-1, num_classes)
    boxes = distances_to_boxes(points, outputs["distances"]).reshape(-1, 4)
    labels = targets["labels"].reshape(-1)
    centerness = targets["centerness"].reshape(-1)
    positive = (labels < num_classes).astype(jnp.float32)
    num_positives = jnp.maximum(positive.sum(), 1.0)
    return {
        "loss_cls": losses["loss_cls"](
            logits,
            labels,
            weight=targets["label_weights"].reshape(-1),
            avg_factor=num_positives,
        ),
        "loss_bbox": losses["loss_bbox"](
            boxes,
            targets["boxes"].reshape(-1, 4),
            weight=centerness,
            avg_factor=jnp.maximum(centerness.sum(), 1e-6),
        ),
        "loss_centerness": losses["loss_centerness"](
            outputs["centerness"].reshape(-1, 1),
            centerness[:, None],
            weight=positive,
            avg_factor=num_positives,
        ),
    }


def distances_to_boxes(points: jax.Array, distances: jax.Array) -> jax.Array:
    """Boxes (..., P, 4) of points (P, 2) and distances (..., P, 4) left, top, right, bottom."""
    return jnp.concatenate([points - distances[..., :2], points + distances[..., 2:]], axis=-1)


def decode(
    outputs: dict[str, jax.Array],
    points: jax.Array,
    image_shape: tuple[int, int],
    max_detections: int,
    iou_threshold: float = 0.5,
) -> dict[str, jax.Array]:
    """Detections of one image by falling score: boxes (K, 4), scores (K,), labels (K,).

    outputs are logits (P, C), distances (P, 4) and centerness (P,); K is static, and a detection
    that is none has score 0.
    """
    height, width = image_shape
    centerness = jax.nn.sigmoid(outputs["centerness"])[:, None]
    scores = jnp.sqrt(jax.nn.sigmoid(outputs["logits"]) * centerness)  # (P, C)
    scores, index = jax.lax.top_k(scores.ravel(), min(2 * max_detections, scores.size))
    point, labels = jnp.divmod(index, outputs["logits"].shape[-1])
    boxes = distances_to_boxes(points[point], outputs["distances"][point])
    boxes = jnp.clip(boxes, 0, jnp.array([width, height, width, height]))
    scores = jnp.where(nms(boxes, labels, iou_threshold), scores, 0.0)
    scores, order = jax.lax.top_k(scores, min(max_detections, len(scores)))
    return {"boxes": boxes[order], "scores": scores, "labels": labels[order]}


def nms(boxes: jax.Array, labels: jax.Array, iou_threshold: float) -> jax.Array:
    """Which boxes (K, 4), sorted by falling score, no better box of their label covers: (K,) bool.

    Greedy non-maximum suppression: a box falls if its IoU with a kept one is above the threshold.
    """
    covers = (bbox_overlaps(boxes, boxes) > iou_threshold) & (labels[:, None] == labels)

    def visit(i: jax.Array, kept: jax.Array) -> jax.Array:
        later = jnp.arange(len(boxes)) > i
        return kept & ~(kept[i] & covers[i] & later)

    return jax.lax.fori_loop(0, len(boxes), visit, jnp.ones(len(boxes), bool))
