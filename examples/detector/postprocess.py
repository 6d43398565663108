"""From a head's boxes and scores to detections: the best of them, without duplicates."""

import jax
import jax.numpy as jnp

from visdet_jax import bbox_overlaps


def select(
    boxes: jax.Array, scores: jax.Array, max_detections: int, iou_threshold: float = 0.5
) -> dict[str, jax.Array]:
    """The detections of one image, in order of descending score.

    Args:
      boxes: (N, 4), as (x1, y1, x2, y2).
      scores: (N, C), of each box and class.
      max_detections: The number K of detections.
      iou_threshold: A box is left out if its IoU with a better box of its class is larger.

    Returns: boxes (K, 4), scores (K,) and labels (K,). Rows that are no detection have score 0.
    """
    candidates = best(boxes, scores, 2 * max_detections)
    kept = nms(candidates["boxes"], candidates["labels"], iou_threshold)
    candidates["scores"] = jnp.where(kept, candidates["scores"], 0.0)
    _, order = jax.lax.top_k(candidates["scores"], min(max_detections, len(kept)))
    return {name: rows[order] for name, rows in candidates.items()}


def best(boxes: jax.Array, scores: jax.Array, max_detections: int) -> dict[str, jax.Array]:
    """The highest of all scores (N, C) and their boxes (N, 4), in the form of `select`."""
    highest, index = jax.lax.top_k(scores.ravel(), min(max_detections, scores.size))
    row, labels = jnp.divmod(index, scores.shape[1])
    return {"boxes": boxes[row], "scores": highest, "labels": labels}


def nms(boxes: jax.Array, labels: jax.Array, iou_threshold: float) -> jax.Array:
    """Greedy non-maximum suppression: which boxes are kept, (K,) bool.

    A box is left out if its IoU with a better box of its label, which is kept, is above the
    threshold.

    Args:
      boxes: (K, 4), in order of descending score.
      labels: (K,).
      iou_threshold: In [0, 1].
    """
    suppresses = (bbox_overlaps(boxes, boxes) > iou_threshold) & (labels[:, None] == labels)

    def visit(i: jax.Array, kept: jax.Array) -> jax.Array:
        later = jnp.arange(len(boxes)) > i
        return kept & ~(kept[i] & suppresses[i] & later)

    return jax.lax.fori_loop(0, len(boxes), visit, jnp.ones(len(boxes), bool))
