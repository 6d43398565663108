"""Cases of losses of rotated boxes as Gaussians."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import visdet_jax as vj

from .case import AVG_FACTOR, Case, Inputs, case_of_pairs, ours, random_weight, row_count


def rotated_inputs(
    rng: np.random.Generator, scale: float, wide: bool = False, classes: int | None = None
) -> Inputs:
    """Predicted boxes (cx, cy, w, h, angle) near their targets, targets, and weights."""
    count = row_count(200_000, scale)
    parts = [
        rng.uniform(0, 500, (count, 2)),
        rng.uniform(40, 300, (count, 2)),
        rng.uniform(-2, 2, (count, 1)),
    ]
    target = np.concatenate(parts, 1)
    pred = target + rng.uniform(-1, 1, (count, 5)) * [15, 15, 15, 15, 0.3]
    return pred.astype(np.float32), target.astype(np.float32), random_weight(rng, count)


def covariance(xp: Any, boxes: Any, divisor: float) -> tuple[Any, Any, Any]:
    """The entries xx, yy and xy of covariances with the variances side² / divisor.

    xp is jnp or torch.
    """
    along, across = boxes[:, 2] ** 2 / divisor, boxes[:, 3] ** 2 / divisor
    cos, sin = xp.cos(boxes[:, 4]), xp.sin(boxes[:, 4])
    return (
        along * cos**2 + across * sin**2,
        along * sin**2 + across * cos**2,
        (along - across) * cos * sin,
    )


def plain_kld(pred: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    (a1, b1, c1), (a2, b2, c2) = covariance(jnp, pred, 4), covariance(jnp, target, 4)
    det1, det2 = a1 * b1 - c1 * c1, a2 * b2 - c2 * c2
    dx, dy = pred[:, 0] - target[:, 0], pred[:, 1] - target[:, 1]
    apart = (b1 * dx * dx + a1 * dy * dy - 2 * c1 * dx * dy) / det1
    trace = (b1 * a2 + a1 * b2 - 2 * c1 * c2) / det1
    divergence = (apart + trace + jnp.log(det1) - jnp.log(det2)) / 2 - 1
    distance = jnp.log1p(jnp.sqrt(divergence.clip(1e-7)))
    return ((1 - 1 / (1 + distance)) * weight).sum() / AVG_FACTOR


def torch_kld(torch: Any, pred: Any, target: Any, weight: Any) -> Any:
    """With products of 2 × 2 matrices, as in mmrotate."""

    def gaussian(boxes: Any) -> tuple[Any, Any]:
        sides, angle = boxes[:, 2:4].clamp(1e-7, 1e7), boxes[:, 4]
        cos, sin = torch.cos(angle), torch.sin(angle)
        turn = torch.stack([cos, -sin, sin, cos], -1).reshape(-1, 2, 2)
        spread = torch.diag_embed(sides / 2).square()
        return boxes[:, :2], turn.bmm(spread).bmm(turn.permute(0, 2, 1))

    (centre1, sigma1), (centre2, sigma2) = gaussian(pred), gaussian(target)
    a, b, c, d = sigma1[:, 0, 0], sigma1[:, 0, 1], sigma1[:, 1, 0], sigma1[:, 1, 1]
    det1, det2 = sigma1.det(), sigma2.det()
    inverse = torch.stack([d, -b, -c, a], -1).reshape(-1, 2, 2) / det1[:, None, None]
    offset = (centre1 - centre2)[:, :, None]
    apart = offset.permute(0, 2, 1).bmm(inverse).bmm(offset).reshape(-1)
    trace = inverse.bmm(sigma2).diagonal(dim1=-2, dim2=-1).sum(-1)
    divergence = (apart + trace + det1.log() - det2.log()) / 2 - 1
    distance = torch.log1p(divergence.clamp(1e-7).sqrt())
    return ((1 - 1 / (1 + distance)) * weight).sum() / AVG_FACTOR


def _probiou(xp: Any, pred: Any, target: Any, eps: float = 1e-7) -> Any:
    """The form of ultralytics."""
    (a1, b1, c1), (a2, b2, c2) = covariance(xp, pred, 12), covariance(xp, target, 12)
    dx, dy = target[:, 0] - pred[:, 0], pred[:, 1] - target[:, 1]
    a, b, c = a1 + a2, b1 + b2, c1 + c2
    det = a * b - c * c
    apart = (a * dy * dy + b * dx * dx) / (det + eps) / 4 + c * dx * dy / (det + eps) / 2
    root = xp.sqrt((a1 * b1 - c1 * c1).clip(0) * (a2 * b2 - c2 * c2).clip(0))
    distance = (apart + xp.log(det / (4 * root + eps) + eps) / 2).clip(eps, 100)
    return xp.sqrt(1 - xp.exp(-distance) + eps)


CASES = (
    Case(
        "KLD",
        rotated_inputs,
        ours(functools.partial(vj.gd_loss, loss_type="kld", tau=1.0)),
        plain_kld,
        torch_kld,
        rows_of=200_000,
    ),
    case_of_pairs("ProbIoU", vj.probiou_loss, _probiou, rotated_inputs),
)
