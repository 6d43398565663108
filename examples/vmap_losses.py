"""Losses under `vmap`: one loss per image of a padded batch, and a sweep over gamma and alpha.

    python examples/vmap_losses.py

Both run in one compiled program each; nothing depends on how many boxes an image holds.
"""

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import build_loss, sigmoid_focal_loss

CLASSES = 3


def make_batch(images: int = 4, anchors: int = 64, boxes: int = 8, seed: int = 0):
    """Logits, labels and boxes of a few images; the images hold 0, 2, 4, ... boxes, then NaN."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-2, 1, (images, anchors, CLASSES)).astype(np.float32)
    labels = rng.integers(0, CLASSES + 1, (images, anchors))  # CLASSES itself is background
    corner, size = rng.uniform(0, 80, (2, images, boxes, 2))
    target = np.concatenate([corner, corner + 5 + size / 4], -1).astype(np.float32)
    pred = target + rng.normal(0, 3, target.shape).astype(np.float32)
    real = np.arange(boxes) < 2 * np.arange(images)[:, None]
    pred[~real] = target[~real] = np.nan  # padding may hold anything: its weight is 0
    return logits, labels, pred, target, real.astype(np.float32)


def losses_per_image(logits, labels, pred, target, real):
    """(images,) of each loss, normalized by the image's own number of boxes."""
    loss_cls = build_loss({"type": "FocalLoss"})
    loss_bbox = build_loss({"type": "GIoULoss", "loss_weight": 2.0})

    def of_one_image(logits, labels, pred, target, real):
        boxes = jnp.maximum(real.sum(), 1)
        return {
            "loss_cls": loss_cls(logits, labels, avg_factor=boxes),
            "loss_bbox": loss_bbox(pred, target, real, avg_factor=boxes),
        }

    return jax.jit(jax.vmap(of_one_image))(logits, labels, pred, target, real)


def sweep(logits, labels, gammas, alphas):
    """The batch's focal loss for each gamma (rows) and each alpha (columns)."""

    def focal(gamma, alpha):
        return sigmoid_focal_loss(logits, labels, gamma=gamma, alpha=alpha)

    over_alpha = jax.vmap(focal, in_axes=(None, 0))
    return jax.jit(jax.vmap(over_alpha, in_axes=(0, None)))(gammas, alphas)


def main():
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
