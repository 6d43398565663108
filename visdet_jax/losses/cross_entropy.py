"""Cross entropy over classes, over each class on its own, and over masks."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.checks import LOGITS, UNIT, Expected, Rule, classes
from visdet_jax.closed_form import closed_form
from visdet_jax.function import (
    check_labels,
    check_same_shape,
    class_mask,
    compute_dtype,
    jitted,
    warn,
)
from visdet_jax.module import Loss
from visdet_jax.numerics import logistic, logistic_of_slope
from visdet_jax.reduction import spread_weight, weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES
from visdet_jax.softmax import log_sum_exp, softmax

IGNORE_INDEX = -100  # torch's default


@jitted
def cross_entropy(
    pred,
    target,
    weight=None,
    *,
    class_weight=None,
    ignore_index=IGNORE_INDEX,
    avg_non_ignore=False,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of softmax(pred) with a class or with class probabilities.

    -w_y log softmax(pred)_y for a class y; -Σ_c w_c t_c log softmax(pred)_c for probabilities t;
    w is `class_weight` or 1. Classes are along axis 1.

    Args:
      pred: logits (N, C, ...).
      target: class indices (N, ...), or probabilities (N, C, ...). A negative index and
        `ignore_index` cost 0; an index of C or more makes the loss NaN: there is no such class.
      class_weight: (C,). The mean stays a plain mean, it is not divided by the class weights.
      ignore_index: an index that costs 0 (None: -100). Probabilities know none.
      avg_non_ignore: the mean is over the rows that are not ignored (0 if all are); over all
        entries of `target` where it holds probabilities, as in the reference.
    Returns: (N, ...) before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Murphy 2012, Machine Learning: A Probabilistic Perspective.
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred = pred.astype(dtype)
    classes = pred.shape[1]
    class_weight = _class_weight(class_weight, classes, dtype)
    rows = pred.shape[:1] + pred.shape[2:]
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
        count = target.size
        if weight is not None:
            weight = spread_weight(weight, rows)
        if class_weight is not None:
            target = target * class_weight.reshape((1, classes) + (1,) * (pred.ndim - 2))
        cross_entropy_of = _ce_with_probabilities
    else:
        check_labels("target", target, rows)
        ignored = (target < 0) | (
            target == (IGNORE_INDEX if ignore_index is None else ignore_index)
        )
        count = (~ignored).sum()
        weight = spread_weight(weight_without(ignored, weight, rows), rows).astype(dtype)
        if class_weight is not None:
            weight = weight * _weight_of(target, class_weight)
        weight = jnp.where((target >= classes) & (weight != 0), jnp.nan, weight)
        target = jnp.expand_dims(target, 1)
        cross_entropy_of = _ce_with_classes
    weight = None if weight is None else weight.astype(dtype)
    values = cross_entropy_of(weight, pred, target)
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = count
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _value_with_classes(pred, target, beside_slope=True):
    m, log_sum = log_sum_exp(pred, 1, beside_slope)
    index = jnp.clip(target, 0, pred.shape[1] - 1)
    own = jnp.take_along_axis(pred, index, axis=1, mode="promise_in_bounds")
    return (log_sum - (own - m)).squeeze(1)


def _slope_with_classes(pred, target):
    own = jnp.moveaxis(class_mask(target.squeeze(1), pred.shape[1]), -1, 1)
    return softmax(pred, axis=1) - own.astype(pred.dtype)


def _value_with_probabilities(pred, target, beside_slope=True):
    m, log_sum = log_sum_exp(pred, 1, beside_slope)
    return (target * (log_sum - (pred - m))).sum(1)


def _slope_with_probabilities(pred, target):
    return softmax(pred, axis=1) * target.sum(1, keepdims=True) - target


_ce_with_classes = closed_form(
    _value_with_classes,
    _slope_with_classes,
    axis=1,
    alone=functools.partial(_value_with_classes, beside_slope=False),
)
_ce_with_probabilities = closed_form(
    _value_with_probabilities,
    _slope_with_probabilities,
    axis=1,
    alone=functools.partial(_value_with_probabilities, beside_slope=False),
)


@jitted
def binary_cross_entropy(
    pred,
    target,
    weight=None,
    *,
    class_weight=None,
    ignore_index=IGNORE_INDEX,
    avg_non_ignore=False,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of sigmoid(pred), each class on its own.

    -w t log sigmoid(pred) - (1 - t) log(1 - sigmoid(pred)); t is the one-hot form of class
    indices, or the target itself; w is `class_weight` or 1, on positives only.

    Args:
      pred: logits (..., C), or any shape with a target of the same shape.
      target: class indices (...), C or more for background (t = 0), or values of pred's shape in
        [0, 1]. What is negative or equals `ignore_index` costs 0: a row of indices, an entry of
        values.
      weight: (...) or pred's shape.
      class_weight: (C,), the weight of positives of each class.
      ignore_index: see target (None: -100).
      avg_non_ignore: the mean is over the entries of pred that are not ignored (0 if all are).
    Returns: values of pred's shape, before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    """
    dtype = compute_dtype(pred=pred, target=target)
    pred = pred.astype(dtype)
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
    else:
        check_labels("target", target, pred.shape[:-1])
        target = target[..., None]
    ignored = (target < 0) | (target == (IGNORE_INDEX if ignore_index is None else ignore_index))
    weight = weight_without(ignored, weight, pred.shape).astype(dtype)
    if class_weight is not None:
        class_weight = _class_weight(class_weight, pred.shape[-1] if pred.ndim > 1 else 1, dtype)
        class_weight = class_weight.reshape((1,) * (pred.ndim - 1) + class_weight.shape)
    values = _bce(weight, pred, target, class_weight)
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = jnp.broadcast_to(~ignored, pred.shape).sum()
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _shares(pred, target, class_weight):
    """What the positive and the negative side of an entry count for."""
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = class_mask(target[..., 0], pred.shape[-1]).astype(pred.dtype)
    return target if class_weight is None else class_weight * target, 1 - target


def _bce_value(pred, target, class_weight):
    positive, negative = _shares(pred, target, class_weight)
    _, _, tail = logistic(pred)
    of_positive, of_negative = jnp.maximum(-pred, 0), jnp.maximum(pred, 0)
    if class_weight is None:
        return positive * of_positive + negative * of_negative + tail
    return positive * (of_positive + tail) + negative * (of_negative + tail)


def _bce_slope(pred, target, class_weight):
    positive, negative = _shares(pred, target, class_weight)
    p, not_p, _ = logistic_of_slope(pred)
    return negative * p - positive * not_p


_bce = closed_form(_bce_value, _bce_slope)


@jitted
def mask_cross_entropy(
    pred, target, label, weight=None, *, class_weight=None, reduction="mean", avg_factor=None
):
    """Binary cross entropy of each object's mask of its own class.

    BCE(pred[i, label[i]], target[i]) × class_weight[label[i]], every pixel a value.

    Args:
      pred: mask logits (N, C, ...), C = 1 for masks that know no class.
      target: masks (N, ...) in [0, 1].
      label: class indices (N,). A negative one costs 0, one of C or more makes the loss NaN.
      weight: (N,) or (N, ...).
      class_weight: (C,).
    Returns: (N, ...), before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for labels that are floats.
    He et al. 2017 (Mask R-CNN), https://arxiv.org/abs/1703.06870
    """
    dtype = compute_dtype(pred=pred, target=target)
    pixels = pred.shape[:1] + pred.shape[2:]
    if pred.ndim < 2 or target.shape != pixels:
        raise ValueError(
            f"pred (N, C, ...) and target (N, ...) do not fit, got {pred.shape} and {target.shape}"
        )
    check_labels("label", label, pred.shape[:1])
    classes = pred.shape[1]
    label = label.reshape(label.shape + (1,) * (pred.ndim - 2))
    index = jnp.expand_dims(jnp.clip(label, 0, classes - 1), 1)
    own = jnp.take_along_axis(pred, index, axis=1).squeeze(1).astype(dtype)
    weight = spread_weight(weight_without(label < 0, weight, pixels), pixels).astype(dtype)
    if class_weight is not None:
        weight = weight * _weight_of(label, _class_weight(class_weight, classes, dtype))
    weight = jnp.where((label >= classes) & (weight != 0), jnp.nan, weight)
    values = _bce(weight, own, target.astype(dtype), None)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _class_weight(class_weight, classes, dtype):
    if class_weight is None:
        return None
    if class_weight.shape != (classes,):
        raise ValueError(f"class_weight must have shape ({classes},), got {class_weight.shape}")
    return class_weight.astype(dtype)


def _weight_of(label, class_weight):
    # Not class_weight[label], which fails on explicitly sharded labels, nor one_hot @ class_weight,
    # which TPUs and GPUs round to bfloat16 or TF32.
    own = jax.nn.one_hot(label, len(class_weight), dtype=class_weight.dtype)
    return (own * class_weight.reshape((1,) * label.ndim + class_weight.shape)).sum(-1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CrossEntropyLoss(Loss):
    """Flax shim of `cross_entropy`, `binary_cross_entropy` (`use_sigmoid`) and
    `mask_cross_entropy` (`use_mask`).

    A call may override `ignore_index`. With masks the third argument is their classes, as in the
    reference; `label=` says so, and makes the third argument a weight. A single number as
    `class_weight` is every class's; `bg_cls_weight` is that of the last, softmax's background, as
    in the configs of DETR.
    """

    use_sigmoid: bool = False
    use_mask: bool = False
    class_weight: float | tuple[float, ...] | None = None
    bg_cls_weight: float | None = None
    ignore_index: int | None = None
    avg_non_ignore: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.use_sigmoid and self.use_mask:
            self.refuse("use_sigmoid and use_mask exclude each other")
        if self.bg_cls_weight is not None and (self.use_sigmoid or self.use_mask):
            self.refuse("bg_cls_weight is softmax's: there is no background class without it")
        if self.use_mask and self.ignore_index is not None:
            self.refuse("use_mask knows no ignore_index; give such masks weight 0")
        if self.ignore_index is not None and self.reduction == "mean" and not self.avg_non_ignore:
            warn(
                f"{type(self).__name__}: ignored labels count in the mean; "
                "avg_non_ignore=True leaves them out, as torch's own cross entropy does"
            )

    def expects(self, pred, target, weight=None, *args, label=None, **options):
        if self.use_mask and label is None:
            label, weight = weight, None  # the third argument, as in `compute`
        return super().expects(pred, target, weight, *args, label=label, **options)

    def rules(self, pred, target, *, ignore_index=None, label=None, **extra):
        arguments = [Expected("pred", pred, LOGITS)]
        if self.use_mask:
            masks = Expected("target", target, UNIT)
            return [*arguments, masks, Expected("label", label, classes(pred.shape[1] - 1))]
        if ignore_index is None:
            ignore_index = IGNORE_INDEX if self.ignore_index is None else self.ignore_index
        if target.ndim < pred.ndim:
            channels = pred.shape[-1 if self.use_sigmoid else 1]
            # With sigmoids every channel is a class, and the index after them background.
            last = channels if self.use_sigmoid else channels - 1
            labels = classes(last, ignore_index, background=self.use_sigmoid)
            return [*arguments, Expected("target", target, labels)]
        scores = UNIT
        if self.use_sigmoid:
            scores = Rule(
                lambda x: UNIT.bad(x) & (x != -1) & (x != ignore_index),
                f"must be in [0, 1], or -1 or {ignore_index} to be ignored",
                ignored=lambda x: (x == -1) | (x == ignore_index),
            )
        return [*arguments, Expected("target", target, scores)]

    def compute(self, pred, target, weight, *, ignore_index=None, label=None, **reduce):
        class_weight = self._class_weight(pred)
        if self.use_mask:
            if ignore_index is not None:
                self.refuse("use_mask knows no ignore_index; give such masks weight 0")
            if label is None:
                label, weight = weight, None
            if label is None:
                self.refuse("use_mask needs the masks' class indices: loss(pred, target, label)")
            return mask_cross_entropy(
                pred, target, label, weight, class_weight=class_weight, **reduce
            )
        if label is not None:
            self.refuse("label= belongs to use_mask=True")
        function = binary_cross_entropy if self.use_sigmoid else cross_entropy
        return function(
            pred,
            target,
            weight,
            class_weight=class_weight,
            ignore_index=self.ignore_index if ignore_index is None else ignore_index,
            avg_non_ignore=self.avg_non_ignore,
            **reduce,
        )

    def _class_weight(self, pred):
        """(C,) or None."""
        if self.class_weight is None and self.bg_cls_weight is None:
            return None
        weight = jnp.asarray(1.0 if self.class_weight is None else self.class_weight)
        if weight.ndim == 0:
            axis = -1 if self.use_sigmoid else 1
            weight = jnp.full(pred.shape[axis] if pred.ndim > 1 else 1, weight)
        return weight if self.bg_cls_weight is None else weight.at[-1].set(self.bg_cls_weight)
