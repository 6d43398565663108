"""Losses of classes, on the logits of every prior."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import visdet_jax as vj

from .case import (
    AVG_FACTOR,
    Case,
    bce,
    ours,
    random_labels,
    random_logits,
    random_weight,
    row_count,
    weighed,
)


def sparse_inputs(n, classes):
    """Logits, class indices with background, weights."""

    def make(rng, scale, wide=False, classes=classes):
        rows = row_count(n, scale)
        labels = random_labels(rng, rows, classes, 0.5 if wide else 0.01)
        return random_logits(rng, (rows, classes), wide), labels, random_weight(rng, rows)

    return make


def foreground_inputs(n, classes):
    """Logits, class indices without background, weights."""

    def make(rng, scale, wide=False, classes=classes):
        rows = row_count(n, scale)
        labels = rng.integers(classes, size=rows).astype(np.int32)
        return random_logits(rng, (rows, classes), wide), labels, random_weight(rng, rows)

    return make


def scored_inputs(n, classes):
    """Logits, class indices with background, IoUs, weights."""

    def make(rng, scale, wide=False, classes=classes):
        logits, labels, weight = sparse_inputs(n, classes)(rng, scale, wide, classes)
        scores = np.where(labels < classes, rng.uniform(0.3, 1, labels.shape), 0)
        return logits, labels, scores.astype(np.float32), weight

    return make


def dense_quality_inputs(n, classes):
    """Logits, an IoU at the class of each positive and 0 elsewhere, weights."""

    def make(rng, scale, wide=False, classes=classes):
        logits, labels, scores, _ = scored_inputs(n, classes)(rng, scale, wide, classes)
        target = (np.arange(classes) == labels[:, None]) * scores[:, None]
        return logits, target.astype(np.float32)

    return make


def multilabel_inputs(n, classes):
    """Logits and 0 or 1, weights."""

    def make(rng, scale, wide=False, classes=classes):
        rows = row_count(n, scale)
        target = rng.uniform(size=(rows, classes)) < 0.03
        logits = random_logits(rng, (rows, classes), wide)
        return logits, target.astype(np.float32), random_weight(rng, rows)

    return make


def plain_focal(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    p = jax.nn.sigmoid(x)
    miss = (1 - p) * t + p * (1 - t)
    return weighed((0.25 * t + 0.75 * (1 - t)) * miss**2 * bce(x, t), weight)


def optax_focal(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    return weighed(optax.sigmoid_focal_loss(x, t, alpha=0.25, gamma=2.0), weight)


def plain_quality_focal(x, labels, scores, weight):
    t = jax.nn.one_hot(labels, x.shape[1]) * scores[:, None]
    return weighed(jnp.abs(t - jax.nn.sigmoid(x)) ** 2 * bce(x, t), weight)


def plain_varifocal(x, t):
    focal = jnp.where(t > 0, t, 0.75 * jnp.abs(jax.nn.sigmoid(x) - t) ** 2)
    return (focal * bce(x, t)).sum() / AVG_FACTOR


def plain_softmax(x, labels, weight):
    log_p = jax.nn.log_softmax(x)
    return -(jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0] * weight).sum() / AVG_FACTOR


def optax_softmax(x, labels, weight):
    values = optax.softmax_cross_entropy_with_integer_labels(x, labels)
    return (values * weight).sum() / AVG_FACTOR


def plain_sigmoid(x, labels, weight):
    return weighed(bce(x, jax.nn.one_hot(labels, x.shape[1])), weight)


def optax_sigmoid(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    return weighed(optax.sigmoid_binary_cross_entropy(x, t), weight)


def plain_softmax_focal(x, labels, weight):
    log_p = jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** 2 * log_p * weight).sum() / AVG_FACTOR


def plain_matchability(x, labels, scores, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    p = jax.lax.stop_gradient(jax.nn.sigmoid(x))
    values = bce(x, t * scores[:, None] ** 2) * (p**2 * (1 - t) + t)
    return weighed(values, weight)


def _asymmetric(xp, x, t, weight):
    """As its authors write it, without gradient through the focusing weight."""
    p = jax.nn.sigmoid(x) if xp is jnp else x.sigmoid()
    q = (1 - p + 0.05).clip(max=1)
    values = t * xp.log(p.clip(min=1e-8)) + (1 - t) * xp.log(q.clip(min=1e-8))
    focal = (1 - p * t - q * (1 - t)) ** (t + 4 * (1 - t))
    focal = jax.lax.stop_gradient(focal) if xp is jnp else focal.detach()
    return -weighed(values * focal, weight)


def torch_one_hot(torch, labels, classes):
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def torch_bce(torch, x, t):
    return torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")


def torch_focal(torch, x, labels, weight):
    t = torch_one_hot(torch, labels, x.shape[1])
    p = x.sigmoid()
    miss = (1 - p) * t + p * (1 - t)
    focal = (0.25 * t + 0.75 * (1 - t)) * miss**2
    return weighed(torch_bce(torch, x, t) * focal, weight)


def torch_quality_focal(torch, x, labels, scores, weight):
    p = x.sigmoid()
    values = torch_bce(torch, x, torch.zeros_like(x)) * p**2
    rows = torch.nonzero(labels < x.shape[1]).squeeze(1)
    classes = labels[rows].long()
    miss = (scores[rows] - p[rows, classes]).abs() ** 2
    values[rows, classes] = torch_bce(torch, x[rows, classes], scores[rows]) * miss
    return (values.sum(1) * weight).sum() / AVG_FACTOR


def torch_varifocal(torch, x, t):
    positive = t > 0
    focal = t * positive + 0.75 * (x.sigmoid() - t).abs() ** 2 * ~positive
    return (torch_bce(torch, x, t) * focal).sum() / AVG_FACTOR


def torch_softmax(torch, x, labels, weight):
    values = torch.nn.functional.cross_entropy(x, labels.long(), reduction="none")
    return (values * weight).sum() / AVG_FACTOR


def torch_sigmoid(torch, x, labels, weight):
    return weighed(torch_bce(torch, x, torch_one_hot(torch, labels, x.shape[1])), weight)


def torch_softmax_focal(torch, x, labels, weight):
    cost = torch.nn.functional.cross_entropy(x, labels.long(), reduction="none")
    return ((1 - torch.exp(-cost)) ** 2 * cost * weight).sum() / AVG_FACTOR


def torch_matchability(torch, x, labels, scores, weight):
    t = torch_one_hot(torch, labels, x.shape[1])
    focal = x.sigmoid().detach() ** 2 * (1 - t) + t
    return weighed(torch_bce(torch, x, t * scores[:, None] ** 2) * focal, weight)


def ours_of_scores(function):
    """`ours` where the target is (label, score)."""
    return lambda x, labels, scores, weight: ours(function)(x, (labels, scores), weight)


CASES = (
    Case(
        "focal",
        sparse_inputs(100_000, 80),
        ours(vj.sigmoid_focal_loss),
        plain_focal,
        torch_focal,
        optax_focal,
        rows_of=100_000,
    ),
    Case(
        "quality focal",
        scored_inputs(40_000, 80),
        ours_of_scores(vj.quality_focal_loss),
        plain_quality_focal,
        torch_quality_focal,
        rows_of=40_000,
    ),
    Case(
        "varifocal",
        dense_quality_inputs(40_000, 80),
        ours(vj.varifocal_loss),
        plain_varifocal,
        torch_varifocal,
        rows_of=40_000,
    ),
    Case(
        "softmax 81",
        foreground_inputs(100_000, 81),
        ours(vj.cross_entropy),
        plain_softmax,
        torch_softmax,
        optax_softmax,
        rows_of=100_000,
    ),
    Case(
        "softmax 1204",
        foreground_inputs(8_000, 1204),
        ours(vj.cross_entropy),
        plain_softmax,
        torch_softmax,
        optax_softmax,
    ),
    Case(
        "sigmoid",
        sparse_inputs(100_000, 80),
        ours(vj.binary_cross_entropy),
        plain_sigmoid,
        torch_sigmoid,
        optax_sigmoid,
        rows_of=100_000,
    ),
    Case(
        "matchability",
        scored_inputs(40_000, 80),
        ours_of_scores(vj.matchability_aware_loss),
        plain_matchability,
        torch_matchability,
        rows_of=40_000,
    ),
    Case(
        "asymmetric",
        multilabel_inputs(40_000, 80),
        ours(vj.asymmetric_loss),
        functools.partial(_asymmetric, jnp),
        _asymmetric,
        rows_of=40_000,
    ),
    Case(
        "softmax focal",
        foreground_inputs(100_000, 81),
        ours(vj.softmax_focal_loss),
        plain_softmax_focal,
        torch_softmax_focal,
        rows_of=100_000,
    ),
)
