"""KFIoU: overlap of rotated boxes as Gaussians that a Kalman filter merges."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from visdet_jax.boxes._gaussians import half_sides, kalman_root_det, pair_of_boxes
from visdet_jax.boxes._pairs import Columns, columns
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.hyperparameters import Number, Positive
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import FINITE, ROTATED_BOXES, Expected
from visdet_jax.losses.boxes.box_loss import check_boxes, weight_of_boxes
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import smooth_l1_loss
from visdet_jax.reduction import Reduction, weight_reduce_loss, zero_where_unweighted
from visdet_jax.registry import LOSSES


@jitted
def kfiou_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    pred_decode: jax.Array,
    targets_decode: jax.Array,
    fun: Literal["none", "ln", "exp"] = "none",
    beta: Positive = 1 / 9,
    eps: Positive = 1e-6,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Smooth L1 of the centres' deltas, plus one minus the KFIoU of the decoded boxes.

    The second term is 1 - KFIoU (fun "none"), -log(KFIoU + eps) ("ln") or exp(1 - KFIoU) - 1
    ("exp"), with KFIoU = V / (V1 + V2 - V + eps). V1 and V2 are the boxes' areas, and
    V = 4 √max(det(P (P + T)⁻¹ T), eps) is that of the product of their Gaussians. P and T are the
    covariances of pred and target, whose standard deviations are half the sides, and both Gaussians
    are taken as if they were at one place.

    KFIoU is at most 1/3: equal boxes cost 2/3, log 3 or e^⅔ - 1. It stays so here where V is at its
    floor. mmrotate gives any number there, NaN too, for boxes below 0.02 pixels squared.

    Args:
      pred, target: Deltas (..., 5), of which only the first two are read, the centre's.
      weight: (...), or (..., 5), of which the mean of the five counts.
      pred_decode, targets_decode: The boxes that the deltas stand for, (..., 5): centre x, y (not
        read), width and height in pixels, which are clamped to [1e-7, 1e7], and angle in radians.
      fun: What is taken of the KFIoU: "none", "ln" or "exp".
      beta: Where the parabola of the smooth L1 ends, in the deltas' unit, above 0. Smaller values
        come closer to L1.
      eps: The least determinant, also added to what is divided by and to what the logarithm is
        taken of, above 0. Larger values weaken the loss of smaller boxes.
      reduction: "mean", "sum" or "none"; see `weight_reduce_loss`.
      avg_factor: Divides the sum in place of the number of boxes; see `weight_reduce_loss`.

    Returns: (...), at least 0, reduced as `weight_reduce_loss` says.
    Raises: ValueError for another fun, and where shapes differ or do not end in 5.
    Source: Yang et al. 2022, https://arxiv.org/abs/2201.12558; mmrotate's `KFLoss`.
    """
    dtype = compute_dtype(
        pred=pred, target=target, pred_decode=pred_decode, targets_decode=targets_decode
    )
    check_boxes(pred, target, 5, "rotated boxes")
    for name, boxes in (("pred_decode", pred_decode), ("targets_decode", targets_decode)):
        if boxes.shape != pred.shape:
            raise ValueError(f"{name} must have pred's shape {pred.shape}, got {boxes.shape}")
    arrays = [x.astype(dtype) for x in (pred, target, pred_decode, targets_decode)]
    if weight is not None:
        weight = weight_of_boxes(pred, weight)
        arrays = [zero_where_unweighted(x, weight) for x in arrays]
    pred, target, pred_boxes, target_boxes = arrays
    beta, eps = as_dtype(dtype, beta, eps)
    centres = smooth_l1_loss(pred[..., :2], target[..., :2], beta=beta, reduction="none").sum(-1)
    kfiou = _kfiou(columns(pred_boxes), columns(target_boxes), eps)
    if fun == "ln":
        shapes = -jnp.log(kfiou + eps)
    else:
        shapes = jnp.expm1(1 - kfiou) if fun == "exp" else 1 - kfiou
    return weight_reduce_loss(clamp_min(centres + shapes, 0), weight, reduction, avg_factor)


def _kfiou(boxes1: Columns, boxes2: Columns, eps: Any) -> jax.Array:
    pair = pair_of_boxes(half_sides(boxes1), half_sides(boxes2))
    root, floor = kalman_root_det(pair), jnp.sqrt(eps)
    merged = 4 * clamp_min(root, floor)
    others = 4 * pair.root_det1 + 4 * pair.root_det2 - merged + eps
    # Above its floor `merged` is at most a third of `others`. At its floor it may be any multiple.
    return merged / jnp.where(root < floor, jnp.maximum(others, 3 * merged), others)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class KFLoss(Loss, function=kfiou_loss):
    """Smooth L1 of the centres, plus one minus KFIoU: `kfiou_loss`.

    `pred_decode=` and `targets_decode=` are keywords of the call, and so are `beta` and `eps`, as
    in mmrotate.
    """

    fun: str = "none"

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        deltas = [Expected("pred", pred, FINITE), Expected("target", target, FINITE)]
        decoded = [
            Expected(name, extra[name], ROTATED_BOXES)
            for name in ("pred_decode", "targets_decode")
            if name in extra
        ]
        return deltas + decoded
