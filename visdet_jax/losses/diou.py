"""Overlap, distance and aspect ratio of pairs of boxes: DIoU and CIoU."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.losses.box_loss import BoxLoss, box_loss
from visdet_jax.numerics import clamp, clamp_min, divide
from visdet_jax.pairs import pair_geometry
from visdet_jax.registry import LOSSES


def _iou_and_distance(pair, eps):
    """IoU, and the squared distance of the centres over the hull's squared diagonal."""
    iou = divide(pair.overlap, pair.union + eps)
    diagonal2 = pair.hull_width**2 + pair.hull_height**2 + eps
    return iou, divide(pair.dx**2 + pair.dy**2, diagonal2)


def _angle_between(pair, eps):
    """arctan(w / h) of B less that of A, as one angle: arctan is slow on a CPU."""
    w1, h1, w2, h2 = pair.width1, pair.height1 + eps, pair.width2, pair.height2 + eps
    # arctan sees no difference between (w, h) and (-w, -h).
    w1, h1 = jnp.where(h1 < 0, -w1, w1), jnp.abs(h1)
    w2, h2 = jnp.where(h2 < 0, -w2, w2), jnp.abs(h2)
    sine, cosine = w2 * h1 - w1 * h2, h1 * h2 + w1 * w2
    return _arctan2(sine, cosine)


def _unit(y, x):
    """Both over the larger of them, and that; 0, 1 and 1 of nothing."""
    size = jnp.maximum(jnp.abs(x), jnp.abs(y))
    nothing = size < jnp.finfo(x.dtype).tiny
    size = jnp.where(nothing, 1, size)
    return y / size, jnp.where(nothing, 1, x / size), size


@jax.custom_jvp
def _arctan2(y, x):
    """The angle of (x, y) by half of it: arctan of one argument is the faster on a CPU."""
    y, x, _ = _unit(y, x)
    radius = jnp.sqrt(x * x + y * y)
    left = x < 0
    return 2 * jnp.arctan(jnp.where(left, radius - x, y) / jnp.where(left, y, radius + x))


@_arctan2.defjvp
def _arctan2_jvp(primals, tangents):
    dy, dx = tangents
    y, x, size = _unit(*primals)
    return _arctan2(*primals), (x * dy - y * dx) / ((x * x + y * y) * size)


@box_loss
def diou_loss(pred, target, *, eps=1e-6):
    """One minus the IoU of each pair of boxes, plus the distance of their centres.

    1 - IoU + d² / c², d between the centres, c the diagonal of the smallest box around both.

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to the union and to c², in pixels squared.
    Returns: (...), from 0 (equal) to 2 (far apart), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zheng et al. 2020, https://arxiv.org/abs/1911.08287
    """
    iou, distance = _iou_and_distance(pair_geometry(pred, target), eps)
    return 1 - (iou - distance)


@box_loss
def ciou_loss(pred, target, *, eps=1e-6):
    """`diou_loss` plus the difference of the boxes' aspect ratios.

    1 - IoU + d² / c² + alpha v, v = 4 / π² (arctan(w / h) of target - of pred)²,
    alpha = v / (1 - IoU + v) where IoU > 0.5, else 0.

    No gradient flows through alpha. The loss is at most 2. Equal boxes cost 0 (in the reference
    NaN in float32).

    Args:
      pred, target: boxes (..., 4) as x1, y1, x2, y2 in pixels. Weights: (...) or (..., 4), the
        latter by its mean.
      eps: added to the union and to c², in pixels squared, and to the heights, in pixels.
    Returns: (...), from 0 (equal) to 2 (far apart), before the weight and the reduction.
    Raises: ValueError where the shapes differ or do not end in 4.
    Zheng et al. 2021, https://arxiv.org/abs/2005.03572
    """
    pair = pair_geometry(pred, target)
    iou, distance = _iou_and_distance(pair, eps)
    v = (4 / math.pi**2) * _angle_between(pair, eps) ** 2
    # Rounding can lift the IoU of nearly equal boxes above 1.
    alpha = jnp.where(iou > 0.5, divide(v, clamp_min(1 - iou, 0) + v), 0)
    ciou = iou - (distance + jax.lax.stop_gradient(alpha) * v)
    return 1 - clamp(ciou, -1, 1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class DIoULoss(BoxLoss):
    """Flax shim of `diou_loss`."""

    eps: float = 1e-6

    def compute(self, pred, target, weight, **reduce):
        return diou_loss(pred, target, weight, eps=self.eps, **reduce)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CIoULoss(BoxLoss):
    """Flax shim of `ciou_loss`."""

    eps: float = 1e-6

    def compute(self, pred, target, weight, **reduce):
        return ciou_loss(pred, target, weight, eps=self.eps, **reduce)
