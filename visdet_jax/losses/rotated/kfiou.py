"""KFIoU: overlap of rotated boxes as Gaussians that a Kalman filter merges."""

from dataclasses import dataclass

import jax.numpy as jnp

from visdet_jax.boxes._gaussians import box_pair, half_sides, kalman_root
from visdet_jax.boxes._pairs import columns
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min
from visdet_jax.core.jitted import errors_named, jitted
from visdet_jax.core.rules import FINITE, ROTATED_BOXES, Expected
from visdet_jax.losses.boxes._box_loss import check_boxes, weight_of_boxes
from visdet_jax.losses.loss import Loss
from visdet_jax.losses.regression.smooth_l1 import smooth_l1_loss
from visdet_jax.losses.rotated._rotated_loss import check_choice
from visdet_jax.reduction import weight_reduce_loss, zero_where_unweighted
from visdet_jax.registry import LOSSES

KF_FUNS = ("none", "ln", "exp")


@jitted
def kfiou_loss(
    pred,
    target,
    weight=None,
    *,
    pred_decode,
    targets_decode,
    fun="none",
    beta=1 / 9,
    eps=1e-6,
    reduction="mean",
    avg_factor=None,
):
    """Smooth L1 of the centres' deltas, plus one minus the KFIoU of the decoded boxes.

    Σ over x, y of smooth L1, plus 1 - KFIoU (none), -log(KFIoU + eps) (ln) or
    exp(1 - KFIoU) - 1 (exp), with KFIoU = V / (V1 + V2 - V + eps). V1 and V2 are the boxes' areas,
    and V = 4 √max(det(P (P + T)⁻¹ T), eps) that of the product of their Gaussians of covariances
    P and T, whose standard deviations are half the sides, both as if at one place.

    KFIoU is at most 1/3: equal boxes cost 2/3, log 3 or e^⅔ - 1. It stays so here where V is
    its floor; there the reference gives any number for areas below .02 pixels squared, NaN too.

    Args:
      pred, target: deltas (..., 5), of which the first two count, the centre's. Weights: (...)
        or (..., 5), the latter by its mean.
      pred_decode, targets_decode: the boxes they stand for, (..., 5): centre x, y (not used),
        width and height in pixels, clamped to [1e-7, 1e7], and angle in radians.
      fun: "none", "ln" or "exp".
      beta: of the smooth L1; > 0.
      eps: floor of the determinant, and added to what is divided by and to the logarithm's
        argument; > 0.
    Returns: (...), before the weight and the reduction.
    Raises: ValueError for another fun, where shapes differ or do not end in 5.
    Yang et al. 2022, https://arxiv.org/abs/2201.12558; mmrotate's `KFLoss`.
    """
    check_choice("fun", fun, KF_FUNS)
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
    pred, target, *boxes = arrays
    beta, eps = as_dtype(dtype, beta, eps)
    centres = smooth_l1_loss(pred[..., :2], target[..., :2], beta=beta, reduction="none").sum(-1)
    kfiou = _kfiou(columns(boxes[0]), columns(boxes[1]), eps)
    if fun == "ln":
        apart = -jnp.log(kfiou + eps)
    else:
        apart = jnp.expm1(1 - kfiou) if fun == "exp" else 1 - kfiou
    return weight_reduce_loss(clamp_min(centres + apart, 0), weight, reduction, avg_factor)


def _kfiou(boxes1, boxes2, eps):
    pair = box_pair(half_sides(boxes1), half_sides(boxes2))
    root, floor = kalman_root(pair), jnp.sqrt(eps)
    merged = 4 * clamp_min(root, floor)
    rest = 4 * pair.root1 + 4 * pair.root2 - merged + eps
    # Above its floor `merged` is a third of `rest` at most, below it may be anything.
    return merged / jnp.where(root < floor, jnp.maximum(rest, 3 * merged), rest)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class KFLoss(Loss):
    """Flax shim of `kfiou_loss`; `pred_decode=` and `targets_decode=` are keywords of the call.

    So are `beta` and `eps`, as in the reference.
    """

    fun: str = "none"

    def __post_init__(self):
        super().__post_init__()
        with errors_named(type(self).__name__):
            check_choice("fun", self.fun, KF_FUNS)

    def rules(self, pred, target, **extra):
        return [
            Expected("pred", pred, FINITE),
            Expected("target", target, FINITE),
            Expected("pred_decode", extra["pred_decode"], ROTATED_BOXES),
            Expected("targets_decode", extra["targets_decode"], ROTATED_BOXES),
        ]

    def compute(self, pred, target, weight, *, pred_decode=None, targets_decode=None, **reduce):
        for name, boxes in (("pred_decode", pred_decode), ("targets_decode", targets_decode)):
            if boxes is None:
                raise self.value_error(f"{name} is missing: the decoded boxes, beside the deltas")
        return kfiou_loss(
            pred,
            target,
            weight,
            pred_decode=pred_decode,
            targets_decode=targets_decode,
            fun=self.fun,
            **reduce,
        )
