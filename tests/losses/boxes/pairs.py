"""Pairs of boxes for the tests of the losses of boxes, and what these tests ask of a loss."""

import jax
import numpy as np

import visdet_jax as v


def boxes(seed, n=32, least=5.0):
    """Boxes (n, 4) in an image of 100 pixels, with sides from `least` to 50."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 50, (n, 2)), rng.uniform(least, 50, (n, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def near(target, seed=0, sigma=5.0):
    """Boxes that overlap with `target`, more or less."""
    noise = np.random.default_rng(seed).normal(0, sigma, target.shape)
    return target + noise.astype(np.float32)


def centred(sizes, centre=(40, 60)):
    """Boxes of these sizes around one centre."""
    half, centre = np.asarray(sizes, np.float32) / 2, np.float32(centre)
    return np.concatenate([centre - half, centre + half], 1)


# 16 pairs that overlap, some of them by more than half.
TARGET = boxes(0, 16, least=10.0)
PRED = near(TARGET)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def values(loss, pred=PRED, target=TARGET, **config):
    """The loss of each pair."""
    return np.asarray(loss(pred, target, reduction="none", **config))


def gradient(loss, pred=PRED, target=TARGET, **config):
    """The gradient of each pair's loss by pred."""
    return np.asarray(jax.grad(lambda p: loss(p, target, reduction="sum", **config))(pred))


def iou(pred=PRED, target=TARGET):
    """The IoU of each pair."""
    return 1 - values(v.iou_loss, pred, target, mode="linear", eps=0.0)
