"""Cases of losses of boxes: overlaps, deltas, and distributions of sides."""

import functools
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
    case_of_pairs,
    ours,
    random_logits,
    random_weight,
    row_count,
)


def box_inputs(
    rng: np.random.Generator, scale: float, wide: bool = False, classes: int | None = None
) -> Inputs:
    """Predicted boxes near their targets, targets, and weights."""
    count = row_count(200_000, scale)
    low = rng.uniform(0, 500, (count, 2))
    target = np.concatenate([low, low + rng.uniform(40, 300, (count, 2))], -1)
    pred = target + rng.uniform(-15, 15, (count, 4))
    return pred.astype(np.float32), target.astype(np.float32), random_weight(rng, count)


def delta_inputs(
    rng: np.random.Generator, scale: float, wide: bool = False, classes: int | None = None
) -> Inputs:
    """Predicted deltas, target deltas, and a weight for each of them."""
    count = row_count(200_000, scale)
    pred = rng.uniform(-100, 100, (count, 4)) if wide else rng.normal(0, 1, (count, 4))
    target = rng.normal(0, 1, (count, 4))
    weight = np.repeat(random_weight(rng, count)[:, None], 4, 1)
    return pred.astype(np.float32), target.astype(np.float32), weight


def distribution_inputs(
    rng: np.random.Generator, scale: float, wide: bool = False, classes: int | None = None
) -> Inputs:
    """Logits of 17 bins, targets within the bins, and weights."""
    count = row_count(200_000, scale)
    return (
        random_logits(rng, (count, 17), wide),
        rng.uniform(0, 15.9, count).astype(np.float32),
        random_weight(rng, count),
    )


def _areas(xp: Any, pred: Any, target: Any) -> tuple[Any, Any, Any]:
    """The areas of overlap and union, and width and height of the enclosing box; xp as below."""
    low = xp.maximum(pred[:, :2], target[:, :2])
    high = xp.minimum(pred[:, 2:], target[:, 2:])
    size = (high - low).clip(0)
    enclosing = xp.maximum(pred[:, 2:], target[:, 2:]) - xp.minimum(pred[:, :2], target[:, :2])
    overlap = size[:, 0] * size[:, 1]
    area1, area2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (pred, target))
    return overlap, area1 + area2 - overlap, enclosing


# Formulas of pairs of boxes or deltas (N, 4), where xp is jnp or torch.


def _iou(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, _ = _areas(xp, pred, target)
    return -xp.log((overlap / union.clip(1e-6)).clip(1e-6))


def _giou(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, enclosing = _areas(xp, pred, target)
    enclosing_area = (enclosing[:, 0] * enclosing[:, 1]).clip(1e-6)
    return 1 - (overlap / union.clip(1e-6) - (enclosing_area - union) / enclosing_area)


def _distance(pred: Any, target: Any, enclosing: Any) -> Any:
    centers = ((target[:, :2] + target[:, 2:]) - (pred[:, :2] + pred[:, 2:])) ** 2 / 4
    return (centers[:, 0] + centers[:, 1]) / (enclosing[:, 0] ** 2 + enclosing[:, 1] ** 2 + 1e-6)


def _diou(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, enclosing = _areas(xp, pred, target)
    return 1 - (overlap / (union + 1e-6) - _distance(pred, target, enclosing))


def _ciou(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, enclosing = _areas(xp, pred, target)
    iou = overlap / (union + 1e-6)
    ratio1, ratio2 = (
        xp.arctan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + 1e-6)) for b in (pred, target)
    )
    v = 4 / np.pi**2 * (ratio2 - ratio1) ** 2
    alpha = (iou > 0.5) * v / (1 - iou + v)
    alpha = jax.lax.stop_gradient(alpha) if xp is jnp else alpha.detach()
    return 1 - (iou - (_distance(pred, target, enclosing) + alpha * v)).clip(-1, 1)


def _efficient(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, enclosing = _areas(xp, pred, target)
    sides1, sides2 = (b[:, 2:] - b[:, :2] for b in (pred, target))
    sides = (sides1 - sides2) ** 2 / (enclosing**2 + 1e-7)
    return 1 - (overlap / (union + 1e-7) - _distance(pred, target, enclosing) - sides.sum(1))


def _mpdiou(xp: Any, pred: Any, target: Any) -> Any:
    overlap, union, _ = _areas(xp, pred, target)
    corners = ((pred - target) ** 2).sum(1) / (800**2 + 1333**2)
    return 1 - (overlap / (union + 1e-7) - corners)


def _wasserstein(xp: Any, pred: Any, target: Any) -> Any:
    centers = ((pred[:, :2] + pred[:, 2:]) - (target[:, :2] + target[:, 2:])) ** 2 / 4
    sides = ((pred[:, 2:] - pred[:, :2]) - (target[:, 2:] - target[:, :2])) ** 2 / 4
    return 1 - xp.exp(-xp.sqrt((centers + sides).sum(1) + 1e-6) / 12.8)


def _l1(xp: Any, pred: Any, target: Any) -> Any:
    return abs(pred - target)


def _smooth_l1(xp: Any, pred: Any, target: Any) -> Any:
    d = abs(pred - target)
    return xp.where(d < 1, 0.5 * d * d, d - 0.5)


def _balanced_l1(xp: Any, pred: Any, target: Any) -> Any:
    d, b = abs(pred - target), np.e**3 - 1
    inner = 0.5 / b * (b * d + 1) * xp.log(b * d + 1) - 0.5 * d
    return xp.where(d < 1, inner, 1.5 * d + 1.5 / b - 0.5)


def plain_distribution(x: jax.Array, t: jax.Array, weight: jax.Array) -> jax.Array:
    left = t.astype(jnp.int32)
    log_p = jax.nn.log_softmax(x)
    ce = [-jnp.take_along_axis(log_p, i[:, None], 1)[:, 0] for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def torch_distribution(torch: Any, x: Any, t: Any, weight: Any) -> Any:
    left = t.long()
    ce = [torch.nn.functional.cross_entropy(x, i, reduction="none") for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def _optax_huber(pred: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    return (optax.huber_loss(pred, target) * weight).sum() / AVG_FACTOR


CASES = (
    case_of_pairs("IoU", vj.iou_loss, _iou, box_inputs),
    case_of_pairs("GIoU", vj.giou_loss, _giou, box_inputs),
    case_of_pairs("DIoU", vj.diou_loss, _diou, box_inputs),
    case_of_pairs("CIoU", vj.ciou_loss, _ciou, box_inputs),
    case_of_pairs("Efficient IoU", vj.efficient_iou_loss, _efficient, box_inputs),
    case_of_pairs(
        "MPDIoU",
        functools.partial(vj.mpdiou_loss, image_shape=(800, 1333)),
        _mpdiou,
        box_inputs,
    ),
    case_of_pairs("Wasserstein", vj.wasserstein_loss, _wasserstein, box_inputs),
    case_of_pairs("L1", vj.l1_loss, _l1, delta_inputs),
    case_of_pairs("smooth L1", vj.smooth_l1_loss, _smooth_l1, delta_inputs, optax=_optax_huber),
    case_of_pairs("balanced L1", vj.balanced_l1_loss, _balanced_l1, delta_inputs),
    Case(
        "distribution",
        distribution_inputs,
        ours(vj.distribution_focal_loss),
        plain_distribution,
        torch_distribution,
        rows_of=200_000,
    ),
)
