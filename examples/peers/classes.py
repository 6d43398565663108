"""Cases of classification losses, on the logits of every prior."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import visdet_jax as vj

from .case import (
    AVG_FACTOR,
    Case,
    Inputs,
    JaxFunction,
    bce,
    ours,
    random_labels,
    random_logits,
    random_weight,
    row_count,
    weighted_mean,
)


def sparse_inputs(count: int, classes: int) -> Callable[..., Inputs]:
    """A function that returns logits, class indices with background, and weights."""

    def make(
        rng: np.random.Generator, scale: float, wide: bool = False, classes: int = classes
    ) -> Inputs:
        rows = row_count(count, scale)
        labels = random_labels(rng, rows, classes, 0.5 if wide else 0.01)
        return random_logits(rng, (rows, classes), wide), labels, random_weight(rng, rows)

    return make


def foreground_inputs(count: int, classes: int) -> Callable[..., Inputs]:
    """A function that returns logits, class indices without background, and weights."""

    def make(
        rng: np.random.Generator, scale: float, wide: bool = False, classes: int = classes
    ) -> Inputs:
        rows = row_count(count, scale)
        labels = rng.integers(classes, size=rows).astype(np.int32)
        return random_logits(rng, (rows, classes), wide), labels, random_weight(rng, rows)

    return make


def scored_inputs(count: int, classes: int) -> Callable[..., Inputs]:
    """A function that returns logits, class indices with background, IoUs, and weights."""

    def make(
        rng: np.random.Generator, scale: float, wide: bool = False, classes: int = classes
    ) -> Inputs:
        logits, labels, weight = sparse_inputs(count, classes)(rng, scale, wide, classes)
        scores = np.where(labels < classes, rng.uniform(0.3, 1, labels.shape), 0)
        return logits, labels, scores.astype(np.float32), weight

    return make


def dense_quality_inputs(count: int, classes: int) -> Callable[..., Inputs]:
    """A function that returns logits and dense targets.

    A target is the IoU of the row at its class, and 0 elsewhere.
    """

    def make(
        rng: np.random.Generator, scale: float, wide: bool = False, classes: int = classes
    ) -> Inputs:
        logits, labels, scores, _ = scored_inputs(count, classes)(rng, scale, wide, classes)
        target = (np.arange(classes) == labels[:, None]) * scores[:, None]
        return logits, target.astype(np.float32)

    return make


def multilabel_inputs(count: int, classes: int) -> Callable[..., Inputs]:
    """A function that returns logits, targets of 0 or 1 for each class, and weights."""

    def make(
        rng: np.random.Generator, scale: float, wide: bool = False, classes: int = classes
    ) -> Inputs:
        rows = row_count(count, scale)
        target = rng.uniform(size=(rows, classes)) < 0.03
        logits = random_logits(rng, (rows, classes), wide)
        return logits, target.astype(np.float32), random_weight(rng, rows)

    return make


def plain_focal(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(labels, x.shape[1])
    p = jax.nn.sigmoid(x)
    miss = (1 - p) * t + p * (1 - t)
    return weighted_mean((0.25 * t + 0.75 * (1 - t)) * miss**2 * bce(x, t), weight)


def optax_focal(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(labels, x.shape[1])
    return weighted_mean(optax.sigmoid_focal_loss(x, t, alpha=0.25, gamma=2.0), weight)


def plain_quality_focal(
    x: jax.Array, labels: jax.Array, scores: jax.Array, weight: jax.Array
) -> jax.Array:
    t = jax.nn.one_hot(labels, x.shape[1]) * scores[:, None]
    return weighted_mean(jnp.abs(t - jax.nn.sigmoid(x)) ** 2 * bce(x, t), weight)


def plain_varifocal(x: jax.Array, t: jax.Array) -> jax.Array:
    focal = jnp.where(t > 0, t, 0.75 * jnp.abs(jax.nn.sigmoid(x) - t) ** 2)
    return (focal * bce(x, t)).sum() / AVG_FACTOR


def plain_softmax(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(x)
    return -(jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0] * weight).sum() / AVG_FACTOR


def optax_softmax(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    values = optax.softmax_cross_entropy_with_integer_labels(x, labels)
    return (values * weight).sum() / AVG_FACTOR


def plain_sigmoid(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    return weighted_mean(bce(x, jax.nn.one_hot(labels, x.shape[1])), weight)


def optax_sigmoid(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    t = jax.nn.one_hot(labels, x.shape[1])
    return weighted_mean(optax.sigmoid_binary_cross_entropy(x, t), weight)


def plain_softmax_focal(x: jax.Array, labels: jax.Array, weight: jax.Array) -> jax.Array:
    log_p = jnp.take_along_axis(jax.nn.log_softmax(x), labels[:, None], 1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** 2 * log_p * weight).sum() / AVG_FACTOR


def plain_matchability(
    x: jax.Array, labels: jax.Array, scores: jax.Array, weight: jax.Array
) -> jax.Array:
    t = jax.nn.one_hot(labels, x.shape[1])
    p = jax.lax.stop_gradient(jax.nn.sigmoid(x))
    values = bce(x, t * scores[:, None] ** 2) * (p**2 * (1 - t) + t)
    return weighted_mean(values, weight)


def _asymmetric(xp: Any, x: Any, t: Any, weight: Any) -> Any:
    """The form of its authors, without gradient through the focusing weight; xp is jnp or torch."""
    p = jax.nn.sigmoid(x) if xp is jnp else x.sigmoid()
    q = (1 - p + 0.05).clip(max=1)
    values = t * xp.log(p.clip(min=1e-8)) + (1 - t) * xp.log(q.clip(min=1e-8))
    focal = (1 - p * t - q * (1 - t)) ** (t + 4 * (1 - t))
    focal = jax.lax.stop_gradient(focal) if xp is jnp else focal.detach()
    return -weighted_mean(values * focal, weight)


def torch_one_hot(torch: Any, labels: Any, classes: int) -> Any:
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def torch_bce(torch: Any, x: Any, t: Any) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")


def torch_focal(torch: Any, x: Any, labels: Any, weight: Any) -> Any:
    t = torch_one_hot(torch, labels, x.shape[1])
    p = x.sigmoid()
    miss = (1 - p) * t + p * (1 - t)
    focal = (0.25 * t + 0.75 * (1 - t)) * miss**2
    return weighted_mean(torch_bce(torch, x, t) * focal, weight)


def torch_quality_focal(torch: Any, x: Any, labels: Any, scores: Any, weight: Any) -> Any:
    p = x.sigmoid()
    values = torch_bce(torch, x, torch.zeros_like(x)) * p**2
    rows = torch.nonzero(labels < x.shape[1]).squeeze(1)
    classes = labels[rows].long()
    miss = (scores[rows] - p[rows, classes]).abs() ** 2
    values[rows, classes] = torch_bce(torch, x[rows, classes], scores[rows]) * miss
    return (values.sum(1) * weight).sum() / AVG_FACTOR


def torch_varifocal(torch: Any, x: Any, t: Any) -> Any:
    positive = t > 0
    focal = t * positive + 0.75 * (x.sigmoid() - t).abs() ** 2 * ~positive
    return (torch_bce(torch, x, t) * focal).sum() / AVG_FACTOR


def torch_softmax(torch: Any, x: Any, labels: Any, weight: Any) -> Any:
    values = torch.nn.functional.cross_entropy(x, labels.long(), reduction="none")
    return (values * weight).sum() / AVG_FACTOR


def torch_sigmoid(torch: Any, x: Any, labels: Any, weight: Any) -> Any:
    return weighted_mean(torch_bce(torch, x, torch_one_hot(torch, labels, x.shape[1])), weight)


def torch_softmax_focal(torch: Any, x: Any, labels: Any, weight: Any) -> Any:
    cost = torch.nn.functional.cross_entropy(x, labels.long(), reduction="none")
    return ((1 - torch.exp(-cost)) ** 2 * cost * weight).sum() / AVG_FACTOR


def torch_matchability(torch: Any, x: Any, labels: Any, scores: Any, weight: Any) -> Any:
    t = torch_one_hot(torch, labels, x.shape[1])
    focal = x.sigmoid().detach() ** 2 * (1 - t) + t
    return weighted_mean(torch_bce(torch, x, t * scores[:, None] ** 2) * focal, weight)


def ours_with_scores(function: JaxFunction) -> JaxFunction:
    """`ours` for a loss whose target is (label, score)."""
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
        ours_with_scores(vj.quality_focal_loss),
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
        ours_with_scores(vj.matchability_aware_loss),
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
