"""Losses under `vmap`: losses of each image of a padded batch, and a sweep over gamma and alpha.

    python examples/vmap_losses.py

Each of the two is one compiled program. No shape depends on the number of boxes in an image.
"""

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import build_loss, sigmoid_focal_loss

CLASSES = 3

Array = jax.Array | np.ndarray
Batch = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_batch(images: int = 4, anchors: int = 64, boxes: int = 8, seed: int = 0) -> Batch:
    """Logits, labels, predicted and target boxes of a few images, and the boxes' weights.

    The images hold 0, 2, 4, ... boxes. The rows after these are NaN and have weight 0.
    """
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 1, (images, anchors, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES + 1, (images, anchors))  # CLASSES itself is background
    corner, size = rng.uniform(0, 80, (2, images, boxes, 2))
    target = np.concatenate([corner, corner + 5 + size / 4], -1).astype(np.float32)
    pred = target + rng.normal(0, 3, target.shape).astype(np.float32)
    real = np.arange(boxes) < 2 * np.arange(images)[:, None]
    pred[~real] = target[~real] = np.nan  # Padding may hold anything, since its weight is 0.
    return logits, labels, pred, target, real.astype(np.float32)


def losses_per_image(
    logits: Array, labels: Array, pred: Array, target: Array, real: Array
) -> dict[str, jax.Array]:
    """Each loss of each image, (images,), divided by the image's number of boxes."""
    loss_cls = build_loss({"type": "FocalLoss"})
    loss_bbox = build_loss({"type": "GIoULoss", "loss_weight": 2.0})

    def losses_of_image(
        logits: jax.Array, labels: jax.Array, pred: jax.Array, target: jax.Array, real: jax.Array
    ) -> dict[str, jax.Array]:
        boxes = jnp.maximum(real.sum(), 1)
        return {
            "loss_cls": loss_cls(logits, labels, avg_factor=boxes),
            "loss_bbox": loss_bbox(pred, target, real, avg_factor=boxes),
        }

    return jax.jit(jax.vmap(losses_of_image))(logits, labels, pred, target, real)


def sweep(logits: Array, labels: Array, gammas: Array, alphas: Array) -> jax.Array:
    """The focal loss of the batch for each gamma (rows) and each alpha (columns)."""

    def focal(gamma: jax.Array, alpha: jax.Array) -> jax.Array:
        return sigmoid_focal_loss(logits, labels, gamma=gamma, alpha=alpha)

    over_alpha = jax.vmap(focal, in_axes=(None, 0))
    return jax.jit(jax.vmap(over_alpha, in_axes=(0, None)))(gammas, alphas)


def main() -> None:
    """Print the losses of each image, and the table of the sweep."""
    logits, labels, pred, target, real = make_batch()
    losses = losses_per_image(logits, labels, pred, target, real)
    print("image  boxes  loss_cls  loss_bbox")
    for i, boxes in enumerate(real.sum(1)):
        print(f"{i:5d}{boxes:7.0f}{losses['loss_cls'][i]:10.4f}{losses['loss_bbox'][i]:11.4f}")

    gammas, alphas = jnp.array([0.0, 1.0, 2.0, 4.0]), jnp.array([0.25, 0.5, 0.75])
    table = sweep(logits, labels, gammas, alphas)
    print("\nfocal loss by gamma (down) and alpha (across)")
    print("       " + "".join(f"{alpha:9.2f}" for alpha in alphas))
    for gamma, row in zip(gammas, table, strict=True):
        print(f"{gamma:7.1f}" + "".join(f"{value:9.5f}" for value in row))


if __name__ == "__main__":
    main()
