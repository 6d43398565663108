"""Cross entropy over classes, and the shim of this, of sigmoids' and of masks'."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.jitted import jitted
from visdet_jax.core.rules import LOGITS, UNIT, Expected, Rule, classes
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses._class_targets import (
    IGNORE_INDEX,
    check_class_weight,
    class_mask,
    is_ignored,
    warn_of_ignored,
    weight_of_classes,
    weight_of_rows,
)
from visdet_jax.losses.classification.binary_cross_entropy import (
    binary_cross_entropy,
    mask_cross_entropy,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def cross_entropy(
    pred,
    target,
    weight=None,
    *,
    class_weight=None,
    ignore_index=IGNORE_INDEX,
    avg_non_ignore=False,
    label_smoothing=None,
    poly_epsilon=None,
    reduction="mean",
    avg_factor=None,
):
    """Cross entropy of softmax(pred) with a class or with class probabilities.

    -w_y log softmax(pred)_y for a class y; -Σ_c w_c t_c log softmax(pred)_c for probabilities t;
    w is `class_weight` or 1. Classes are along axis 1. With `label_smoothing` s the class, or the
    probabilities t, become (1 - s) t + s / C. With `poly_epsilon` each -log p above is
    -log p + poly_epsilon (1 - p): the first term of PolyLoss.

    Args:
      pred: logits (N, C, ...).
      target: class indices (N, ...), or probabilities (N, C, ...). A negative index and
        `ignore_index` cost 0; an index of C or more makes the loss NaN: there is no such class.
      class_weight: (C,). The mean stays a plain mean, it is not divided by the class weights.
      ignore_index: an index that costs 0 (None: -100). Probabilities know none.
      avg_non_ignore: the mean is over the rows that are not ignored (0 if all are); over all
        entries of `target` where it holds probabilities, as in the reference.
      label_smoothing: in [0, 1), None for none. Every class's term has its own class weight, as
        in torch.
      poly_epsilon: None adds nothing.
    Returns: (N, ...) before the weight and the reduction.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Murphy 2012, Machine Learning: A Probabilistic Perspective.
    Szegedy et al. 2016 (label smoothing), https://arxiv.org/abs/1512.00567
    Leng et al. 2022 (PolyLoss), https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred = pred.astype(dtype)
    classes = pred.shape[1]
    class_weight = check_class_weight(class_weight, classes, dtype)
    label_smoothing, poly_epsilon = (
        None if x is None else as_dtype(dtype, x) for x in (label_smoothing, poly_epsilon)
    )
    rows = pred.shape[:1] + pred.shape[2:]
    by_class = target.ndim != pred.ndim and label_smoothing is None
    if target.ndim == pred.ndim:
        check_same_shape(pred, target)
        target = target.astype(dtype)
        count = target.size
        weight = None if weight is None else spread_weight(weight, rows).astype(dtype)
    else:
        target = as_labels("target", target, rows)
        ignored = is_ignored(target, ignore_index)
        count = (~ignored).sum()
        own_weight = class_weight if by_class else None
        weight = weight_of_rows(target, ignored, weight, rows, classes, dtype, own_weight)
        target = jnp.expand_dims(target, 1) if by_class else _one_hot(target, pred)
    if by_class:
        values = _ce_with_classes(weight, pred, target, poly_epsilon)
    else:
        if label_smoothing is not None:
            target = (1 - label_smoothing) * target + label_smoothing / classes
        if class_weight is not None:
            target = target * class_weight.reshape((1, classes) + (1,) * (pred.ndim - 2))
        values = _ce_with_probabilities(weight, pred, target, poly_epsilon)
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = count
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _one_hot(labels, pred):
    return jnp.moveaxis(class_mask(labels, pred.shape[1]), -1, 1).astype(pred.dtype)


def _with_poly(cost, epsilon):
    """cost + epsilon (1 - p), where cost is -log p."""
    return cost if epsilon is None else cost - epsilon * jnp.expm1(-cost)


def _value_with_classes(pred, target, poly_epsilon, alone=False):
    m, log_sum = log_sum_exp(pred, 1, alone)
    index = jnp.clip(target, 0, pred.shape[1] - 1)
    own = jnp.take_along_axis(pred, index, axis=1, mode="promise_in_bounds")
    return _with_poly(log_sum - (own - m), poly_epsilon).squeeze(1)


def _derivative_with_classes(pred, target, poly_epsilon):
    p, own = softmax(pred, axis=1), _one_hot(target.squeeze(1), pred)
    if poly_epsilon is None:
        return p - own
    return (p - own) * (1 + poly_epsilon * (p * own).sum(1, keepdims=True))


def _value_with_probabilities(pred, target, poly_epsilon, alone=False):
    m, log_sum = log_sum_exp(pred, 1, alone)
    return (target * _with_poly(log_sum - (pred - m), poly_epsilon)).sum(1)


def _derivative_with_probabilities(pred, target, poly_epsilon):
    p = softmax(pred, axis=1)
    share = target if poly_epsilon is None else target * (1 + poly_epsilon * p)
    return p * share.sum(1, keepdims=True) - share


_ce_with_classes = closed_form(
    _value_with_classes,
    _derivative_with_classes,
    axis=1,
    has_alone=True,
)
_ce_with_probabilities = closed_form(
    _value_with_probabilities,
    _derivative_with_probabilities,
    axis=1,
    has_alone=True,
)


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
    label_smoothing: float | None = None
    poly_epsilon: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.use_sigmoid and self.use_mask:
            raise self.value_error("use_sigmoid and use_mask exclude each other")
        if self.bg_cls_weight is not None and (self.use_sigmoid or self.use_mask):
            raise self.value_error(
                "bg_cls_weight is softmax's: there is no background class without it"
            )
        if self.use_mask and self.ignore_index is not None:
            raise self.value_error("use_mask knows no ignore_index; give such masks weight 0")
        smoothing = self.label_smoothing
        if smoothing is not None:
            if self.use_sigmoid or self.use_mask:
                raise self.value_error("label_smoothing is softmax's")
            if not isinstance(smoothing, jax.Array) and not 0 <= smoothing < 1:
                raise self.value_error(f"label_smoothing must be in [0, 1), got {smoothing!r}")
        if self.use_mask and self.poly_epsilon is not None:
            raise self.value_error("use_mask knows no poly_epsilon")
        warn_of_ignored(self)

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
                raise self.value_error("use_mask knows no ignore_index; give such masks weight 0")
            if label is None:
                label, weight = weight, None
            if label is None:
                raise self.value_error(
                    "use_mask needs the masks' class indices: loss(pred, target, label)"
                )
            return mask_cross_entropy(
                pred, target, label, weight, class_weight=class_weight, **reduce
            )
        if label is not None:
            raise self.value_error("label= belongs to use_mask=True")
        options = {
            "class_weight": class_weight,
            "ignore_index": self.ignore_index if ignore_index is None else ignore_index,
            "avg_non_ignore": self.avg_non_ignore,
            "poly_epsilon": self.poly_epsilon,
            **reduce,
        }
        if self.use_sigmoid:
            return binary_cross_entropy(pred, target, weight, **options)
        smoothing = self.label_smoothing
        return cross_entropy(pred, target, weight, label_smoothing=smoothing, **options)

    def _class_weight(self, pred):
        """(C,) or None."""
        weight = self.class_weight
        if self.bg_cls_weight is not None and weight is None:
            weight = 1.0
        by_class = weight_of_classes(weight, pred, axis=-1 if self.use_sigmoid else 1)
        if by_class is None or self.bg_cls_weight is None:
            return by_class
        return by_class.at[-1].set(self.bg_cls_weight)
