"""Cases of losses of masks and heatmaps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import visdet_jax as vj

from .case import AVG_FACTOR, Case, Inputs, bce, ours, random_logits, row_count


def mask_inputs(rng: np.random.Generator, scale: float, wide: bool = False) -> Inputs:
    """Logits of a mask for each class, target masks, and class indices."""
    count = row_count(256, scale)
    logits = random_logits(rng, (count, 80, 28, 28), wide)
    masks = (rng.uniform(size=(count, 28, 28)) < 0.5).astype(np.float32)
    return logits, masks, rng.integers(80, size=count).astype(np.int32)


def heatmap_inputs(rng: np.random.Generator, scale: float, wide: bool = False) -> Inputs:
    """Probabilities, and targets with a few peaks of 1."""
    shape = (8, max(int(80 * scale), 1), 128, 128)
    logits = random_logits(rng, shape, wide)
    # Sigmoids of the logits, clipped as CenterNet does.
    pred = np.clip(1 / (1 + np.exp(-logits.astype(np.float64))), 1e-4, 1 - 1e-4)
    target = rng.uniform(size=shape) ** 8
    target[rng.uniform(size=shape) < 1e-3] = 1
    return pred.astype(np.float32), target.astype(np.float32)


def dice_inputs(rng: np.random.Generator, scale: float, wide: bool = False) -> Inputs:
    """Logits of masks, target masks, and weights."""
    count = row_count(300, scale)
    masks = (rng.uniform(size=(count, 128, 128)) < 0.3).astype(np.float32)
    return random_logits(rng, (count, 128, 128), wide), masks, np.ones(count, np.float32)


def plain_mask(x: jax.Array, masks: jax.Array, labels: jax.Array) -> jax.Array:
    return bce(x[jnp.arange(len(x)), labels], masks).mean()


def plain_heatmap(p: jax.Array, t: jax.Array) -> jax.Array:
    positive = -jnp.log(p + 1e-12) * (1 - p) ** 2 * (t == 1)
    negative = -jnp.log(1 - p + 1e-12) * p**2 * (1 - t) ** 4
    return (positive + negative).sum() / AVG_FACTOR


def plain_dice(x: jax.Array, t: jax.Array, weight: jax.Array) -> jax.Array:
    p, t = jax.nn.sigmoid(x).reshape(len(x), -1), t.reshape(len(x), -1)
    overlap = (p * t).sum(1)
    dice = 2 * overlap / ((p * p).sum(1) + 1e-3 + (t * t).sum(1) + 1e-3)
    return ((1 - dice) * weight).sum() / AVG_FACTOR


def torch_mask(torch: Any, x: Any, masks: Any, labels: Any) -> Any:
    own = x[torch.arange(len(x)), labels.long()]
    return torch.nn.functional.binary_cross_entropy_with_logits(own, masks)


def torch_heatmap(torch: Any, p: Any, t: Any) -> Any:
    positive = -(p + 1e-12).log() * (1 - p).pow(2) * t.eq(1)
    negative = -(1 - p + 1e-12).log() * p.pow(2) * (1 - t).pow(4)
    return (positive + negative).sum() / AVG_FACTOR


def torch_dice(torch: Any, x: Any, t: Any, weight: Any) -> Any:
    p, t = x.sigmoid().flatten(1), t.flatten(1)
    dice = 2 * (p * t).sum(1) / ((p * p).sum(1) + 1e-3 + (t * t).sum(1) + 1e-3)
    return ((1 - dice) * weight).sum() / AVG_FACTOR


CASES = (
    Case("masks", mask_inputs, vj.mask_cross_entropy, plain_mask, torch_mask),
    Case("heatmap", heatmap_inputs, ours(vj.gaussian_focal_loss), plain_heatmap, torch_heatmap),
    Case("dice", dice_inputs, ours(vj.dice_loss_with_logits), plain_dice, torch_dice),
)
