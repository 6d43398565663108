"""From a head's boxes and scores to detections: the best of them, without duplicates."""

import jax
import jax.numpy as jnp

from visdet_jax import bbox_overlaps


def select(
    boxes: jax.Array, scores: jax.Array, max_detections: int, iou_threshold: float = 0.5
) -> dict[str, jax.Array]:
    """Detections of one image by falling score: boxes (K, 4), scores (K,), labels (K,).

    From boxes (N, 4) and the scores (N, C) of each class; K is static, and a detection that is none
    has score 0.
    """
    found = best(boxes, scores, 2 * max_detections)
    kept = nms(found["boxes"], found["labels"], iou_threshold)
    found["scores"] = jnp.where(kept, found["scores"], 0.0)
    _, order = jax.lax.top_k(found["scores"], min(max_detections, len(kept)))
    return {name: x[order] for name, x in found.items()}


def best(boxes: jax.Array, scores: jax.Array, max_detections: int) -> dict[str, jax.Array]:
    """The highest of all scores (N, C) and their boxes (N, 4), as `select` gives them."""
    highest, index = jax.lax.top_k(scores.ravel(), min(max_detections, scores.size))
    prior, labels = jnp.divmod(index, scores.shape[1])
    return {"boxes": boxes[prior], "scores": highest, "labels": labels}


def nms(boxes: jax.Array, labels: jax.Array, iou_threshold: float) -> jax.Array:
    """Which boxes (K, 4), sorted by falling score, no better box of their label covers: (K,) bool.

    Greedy non-maximum suppression: a box falls if its IoU with a kept one is above the threshold.
    """
    covers = (bbox_overlaps(boxes, boxes) > iou_threshold) & (labels[:, None] == labels)

    def visit(i: jax.Array, kept: jax.Array) -> jax.Array:
        later = jnp.arange(len(boxes)) > i
        return kept & ~(kept[i] & covers[i] & later)

    return jax.lax.fori_loop(0, len(boxes), visit, jnp.ones(len(boxes), bool))
