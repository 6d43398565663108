"""Losses of boxes: overlaps, deltas, and distributions of sides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import visdet_jax as vj

from .case import AVG_FACTOR, Case, of_pairs, ours, random_logits, random_weight, row_count


def box_inputs(rng, scale, wide=False, classes=None):
    n = row_count(200_000, scale)
    low = rng.uniform(0, 500, (n, 2))
    target = np.concatenate([low, low + rng.uniform(40, 300, (n, 2))], -1)
    pred = target + rng.uniform(-15, 15, (n, 4))
    return pred.astype(np.float32), target.astype(np.float32), random_weight(rng, n)


def delta_inputs(rng, scale, wide=False, classes=None):
    n = row_count(200_000, scale)
    pred = rng.uniform(-100, 100, (n, 4)) if wide else rng.normal(0, 1, (n, 4))
    target = rng.normal(0, 1, (n, 4))
    weight = np.repeat(random_weight(rng, n)[:, None], 4, 1)
    return pred.astype(np.float32), target.astype(np.float32), weight


def distribution_inputs(rng, scale, wide=False, classes=None):
    n = row_count(200_000, scale)
    return (
        random_logits(rng, (n, 17), wide),
        rng.uniform(0, 15.9, n).astype(np.float32),
        random_weight(rng, n),
    )


def _pairs(xp, pred, target, eps=1e-6):
    """Overlap, union, and hull of boxes, in torch or jnp alike."""
    low, high = (xp.maximum, xp.minimum)
    size = (high(pred[:, 2:], target[:, 2:]) - low(pred[:, :2], target[:, :2])).clip(0)
    hull = low(pred[:, 2:], target[:, 2:]) - high(pred[:, :2], target[:, :2])
    overlap = size[:, 0] * size[:, 1]
    area1, area2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (pred, target))
    return overlap, area1 + area2 - overlap, hull


def _iou(xp, pred, target):
    overlap, union, _ = _pairs(xp, pred, target)
    return -xp.log((overlap / union.clip(1e-6)).clip(1e-6))


def _giou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    area = (hull[:, 0] * hull[:, 1]).clip(1e-6)
    return 1 - (overlap / union.clip(1e-6) - (area - union) / area)


def _distance(pred, target, hull):
    centers = ((target[:, :2] + target[:, 2:]) - (pred[:, :2] + pred[:, 2:])) ** 2 / 4
    return (centers[:, 0] + centers[:, 1]) / (hull[:, 0] ** 2 + hull[:, 1] ** 2 + 1e-6)


def _diou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    return 1 - (overlap / (union + 1e-6) - _distance(pred, target, hull))


def _ciou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    iou = overlap / (union + 1e-6)
    ratio1, ratio2 = (
        xp.arctan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + 1e-6)) for b in (pred, target)
    )
    v = 4 / np.pi**2 * (ratio2 - ratio1) ** 2
    alpha = (iou > 0.5) * v / (1 - iou + v)
    alpha = jax.lax.stop_gradient(alpha) if xp is jnp else alpha.detach()
    return 1 - (iou - (_distance(pred, target, hull) + alpha * v)).clip(-1, 1)


def _efficient(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    sides1, sides2 = (b[:, 2:] - b[:, :2] for b in (pred, target))
    sides = (sides1 - sides2) ** 2 / (hull**2 + 1e-7)
    return 1 - (overlap / (union + 1e-7) - _distance(pred, target, hull) - sides.sum(1))


def _mpdiou(xp, pred, target):
    overlap, union, _ = _pairs(xp, pred, target)
    corners = ((pred - target) ** 2).sum(1) / (800**2 + 1333**2)
    return 1 - (overlap / (union + 1e-7) - corners)


def _wasserstein(xp, pred, target):
    centers = ((pred[:, :2] + pred[:, 2:]) - (target[:, :2] + target[:, 2:])) ** 2 / 4
    sides = ((pred[:, 2:] - pred[:, :2]) - (target[:, 2:] - target[:, :2])) ** 2 / 4
    return 1 - xp.exp(-xp.sqrt((centers + sides).sum(1) + 1e-6) / 12.8)


def _l1(xp, pred, target):
    return abs(pred - target)


def _smooth_l1(xp, pred, target):
    d = abs(pred - target)
    return xp.where(d < 1, 0.5 * d * d, d - 0.5)


def _balanced_l1(xp, pred, target):
    d, b = abs(pred - target), np.e**3 - 1
    inner = 0.5 / b * (b * d + 1) * xp.log(b * d + 1) - 0.5 * d
    return xp.where(d < 1, inner, 1.5 * d + 1.5 / b - 0.5)


def plain_distribution(x, t, weight):
    left = t.astype(jnp.int32)
    log_p = jax.nn.log_softmax(x)
    ce = [-jnp.take_along_axis(log_p, i[:, None], 1)[:, 0] for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def torch_distribution(torch, x, t, weight):
    left = t.long()
    ce = [torch.nn.functional.cross_entropy(x, i, reduction="none") for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def _optax_huber(pred, target, weight):
    return (optax.huber_loss(pred, target) * weight).sum() / AVG_FACTOR


CASES = (
    of_pairs("IoU", vj.iou_loss, _iou, box_inputs),
    of_pairs("GIoU", vj.giou_loss, _giou, box_inputs),
    of_pairs("DIoU", vj.diou_loss, _diou, box_inputs),
    of_pairs("CIoU", vj.ciou_loss, _ciou, box_inputs),
    of_pairs("Efficient IoU", vj.efficient_iou_loss, _efficient, box_inputs),
    of_pairs(
        "MPDIoU",
        functools.partial(vj.mpdiou_loss, image_shape=(800, 1333)),
        _mpdiou,
        box_inputs,
    ),
    of_pairs("Wasserstein", vj.wasserstein_loss, _wasserstein, box_inputs),
    of_pairs("L1", vj.l1_loss, _l1, delta_inputs),
    of_pairs("smooth L1", vj.smooth_l1_loss, _smooth_l1, delta_inputs, optax=_optax_huber),
    of_pairs("balanced L1", vj.balanced_l1_loss, _balanced_l1, delta_inputs),
    Case(
        "distribution",
        distribution_inputs,
        ours(vj.distribution_focal_loss),
        plain_distribution,
        torch_distribution,
        rows_of=200_000,
    ),
)
