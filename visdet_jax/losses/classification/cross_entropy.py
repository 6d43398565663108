"""Cross entropy over classes, and the class of all cross entropies: of softmax, sigmoids, masks."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels, check_same_shape
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.dtypes import as_dtype_or_none, compute_dtype
from visdet_jax.core.hyperparameters import Finite, FractionBelowOne, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import is_at
from visdet_jax.core.rules import LOGITS, UNIT, Expected, Rule, classes
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses._class_targets import (
    IGNORE_INDEX,
    ClassWeight,
    check_class_weight,
    is_ignored,
    minus_log_p,
    warn_of_ignored,
    weight_of_classes,
    weight_of_labels,
)
from visdet_jax.losses.classification.binary_cross_entropy import (
    binary_cross_entropy,
    mask_cross_entropy,
)
from visdet_jax.losses.loss import Loss
from visdet_jax.reduction import Reduction, spread_weight, weight_reduce_loss
from visdet_jax.registry import LOSSES


@jitted
def cross_entropy(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    class_weight: ClassWeight | None = None,
    ignore_index: jax.Array | int | None = IGNORE_INDEX,
    avg_non_ignore: bool = False,
    label_smoothing: FractionBelowOne | None = None,
    poly_epsilon: Finite | None = None,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy of softmax(pred) with a class or with class probabilities.

    -w_y log softmax(pred)_y for a class y; -Σ_c w_c t_c log softmax(pred)_c for probabilities t;
    w is `class_weight` or 1. Classes are along axis 1. With `label_smoothing` s the class, or the
    probabilities t, become (1 - s) t + s / C. With `poly_epsilon` each -log p above is
    -log p + poly_epsilon (1 - p): the first term of PolyLoss.

    Args:
      pred: Logits (N, C, ...).
      target: Class indices (N, ...), or probabilities (N, C, ...). A negative index and
        `ignore_index` cost 0; an index of C or more makes the loss NaN: there is no such class.
      weight: (N, ...), or its leading part such as (N,).
      class_weight: (C,), the weight of each class, at least 0; None is 1. The mean stays a plain
        mean, it is not divided by the class weights.
      ignore_index: An index that costs 0. None is -100. Probabilities have none.
      avg_non_ignore: The mean is over the rows that are not ignored (0 if all are); over all
        entries of `target` where it holds probabilities, as in mmdet.
      label_smoothing: The part of the target that is spread evenly over all classes, in [0, 1).
        Larger values ask for less certain predictions; None is none. Every class's term has its own
        class weight, as in torch.
      poly_epsilon: Factor of PolyLoss's first term. Larger values penalise what is not yet certain
        more; None adds nothing.

    Returns: (N, ...), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Murphy 2012, Machine Learning: A Probabilistic Perspective; label smoothing: Szegedy et
      al. 2016, https://arxiv.org/abs/1512.00567; PolyLoss: Leng et al. 2022,
      https://arxiv.org/abs/2204.12511
    """
    dtype = compute_dtype(pred=pred, target=target)
    if pred.ndim < 2:
        raise ValueError(f"pred must have shape (N, C, ...), got {pred.shape}")
    pred = pred.astype(dtype)
    rows, channels = pred.shape[:1] + pred.shape[2:], pred.shape[1]
    class_weight = check_class_weight(class_weight, channels, dtype)
    label_smoothing = as_dtype_or_none(dtype, label_smoothing)
    poly_epsilon = as_dtype_or_none(dtype, poly_epsilon)
    has_labels = target.ndim != pred.ndim
    count: jax.Array | int
    if has_labels:
        target = as_labels("target", target, rows)
        ignored = is_ignored(target, ignore_index)
        count = (~ignored).sum()
        of_label = class_weight if label_smoothing is None else None
        weight = weight_of_labels(target, ignored, weight, rows, channels, dtype, of_label)
    else:
        check_same_shape(pred, target)
        target, count = target.astype(dtype), target.size
        weight = None if weight is None else spread_weight(weight, rows).astype(dtype)
    if has_labels and label_smoothing is None:
        values = _ce_with_labels(weight, pred, jnp.expand_dims(target, 1), poly_epsilon)
    else:
        if has_labels:
            target = is_at(jnp.expand_dims(target, 1), pred, axis=1).astype(dtype)
        if label_smoothing is not None:
            target = (1 - label_smoothing) * target + label_smoothing / channels
        if class_weight is not None:
            target = target * class_weight.reshape((1, channels) + (1,) * (pred.ndim - 2))
        values = _ce_with_probabilities(weight, pred, target, poly_epsilon)
    if avg_non_ignore and reduction == "mean" and avg_factor is None:
        avg_factor = count
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _with_poly_term(cost: jax.Array, poly_epsilon: Any) -> jax.Array:
    """cost + poly_epsilon (1 - p), where the cost is -log p."""
    return cost if poly_epsilon is None else cost - poly_epsilon * jnp.expm1(-cost)


def _value_with_labels(
    pred: jax.Array, label: jax.Array, poly_epsilon: Any, alone: bool = False
) -> jax.Array:
    return _with_poly_term(minus_log_p(pred, label, alone), poly_epsilon).squeeze(1)


def _derivative_with_labels(pred: jax.Array, label: jax.Array, poly_epsilon: Any) -> jax.Array:
    own = is_at(label, pred, axis=1).astype(pred.dtype)
    p = softmax(pred, axis=1)
    if poly_epsilon is None:
        return p - own
    return (p - own) * (1 + poly_epsilon * (p * own).sum(1, keepdims=True))


def _value_with_probabilities(
    pred: jax.Array, target: jax.Array, poly_epsilon: Any, alone: bool = False
) -> jax.Array:
    m, log_sum = log_sum_exp(pred, 1, alone)
    return (target * _with_poly_term(log_sum - (pred - m), poly_epsilon)).sum(1)


def _derivative_with_probabilities(
    pred: jax.Array, target: jax.Array, poly_epsilon: Any
) -> jax.Array:
    p = softmax(pred, axis=1)
    # What d(log p) is multiplied by: t, and with the polynomial term more.
    factor = target if poly_epsilon is None else target * (1 + poly_epsilon * p)
    return p * factor.sum(1, keepdims=True) - factor


_ce_with_labels = closed_form(_value_with_labels, _derivative_with_labels, axis=1, has_alone=True)
_ce_with_probabilities = closed_form(
    _value_with_probabilities, _derivative_with_probabilities, axis=1, has_alone=True
)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CrossEntropyLoss(Loss, function=(cross_entropy, binary_cross_entropy, mask_cross_entropy)):
    """Cross entropy of a softmax, of sigmoids or of masks.

    It is `cross_entropy`, or with `use_sigmoid` `binary_cross_entropy`, or with `use_mask`
    `mask_cross_entropy`.

    A call may override `ignore_index`. With masks the third argument of a call is their class
    indices, as in mmdet; `label=` names them, and then the third argument is the weight.

    Args:
      use_sigmoid: Takes each class on its own.
      use_mask: Takes masks, each object's of its own class.
      class_weight: A number for each class, or one number for all classes, at least 0; None is 1.
        With `use_sigmoid` it is the weight of positives only. The mean stays a plain mean, it is
        not divided by the class weights.
      bg_cls_weight: Weight of the last class, softmax's background, at least 0, as in the configs
        of DETR. None gives it the weight that `class_weight` has.
      ignore_index: A label that costs 0; None is -100. Masks have none, nor do probabilities with a
        softmax.
    """

    use_sigmoid: bool = False
    use_mask: bool = False
    class_weight: float | tuple[float, ...] | None = None
    bg_cls_weight: NonNegative | None = None
    ignore_index: int | None = None
    avg_non_ignore: bool = False
    label_smoothing: float | None = None
    poly_epsilon: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_sigmoid and self.use_mask:
            raise self.value_error("use_sigmoid and use_mask exclude each other")
        if self.use_sigmoid or self.use_mask:
            for name in ("bg_cls_weight", "label_smoothing"):
                if getattr(self, name) is not None:
                    raise self.value_error(
                        f"{name} is softmax's, which use_sigmoid and use_mask replace"
                    )
        self._raise_for_ignored_masks(self.ignore_index)
        if self.use_mask and self.poly_epsilon is not None:
            raise self.value_error("use_mask takes no poly_epsilon")
        warn_of_ignored(self)

    def expects(
        self,
        pred: jax.Array,
        target: Any,
        weight: jax.Array | None = None,
        *args: Any,
        label: jax.Array | None = None,
        **options: Any,
    ) -> list[Expected]:
        label, weight = self._label_and_weight(label, weight)
        return super().expects(pred, target, weight, *args, label=label, **options)

    def rules(
        self,
        pred: jax.Array,
        target: jax.Array,
        *,
        ignore_index: int | None = None,
        label: jax.Array | None = None,
        **extra: Any,
    ) -> list[Expected]:
        logits = Expected("pred", pred, LOGITS)
        if self.use_mask:
            labels = classes(pred.shape[1] - 1)
            return [logits, Expected("target", target, UNIT), Expected("label", label, labels)]
        ignore_index = self.ignore_index if ignore_index is None else ignore_index
        ignore_index = IGNORE_INDEX if ignore_index is None else ignore_index
        if target.ndim < pred.ndim:
            channels = pred.shape[-1 if self.use_sigmoid else 1]
            # With sigmoids every channel is a class, and the index after them background.
            last = channels if self.use_sigmoid else channels - 1
            rule = classes(last, ignore_index, background=self.use_sigmoid)
        elif self.use_sigmoid:
            rule = Rule(
                lambda x: UNIT.bad(x) & (x != -1) & (x != ignore_index),
                f"must be in [0, 1], or -1 or {ignore_index} to be ignored",
                ignored=lambda x: (x == -1) | (x == ignore_index),
            )
        else:
            rule = UNIT
        return [logits, Expected("target", target, rule)]

    def compute(
        self,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        ignore_index: int | None = None,
        label: jax.Array | None = None,
        **reduce: Any,
    ) -> jax.Array:
        class_weight = self.weight_of_classes(pred)
        label, weight = self._label_and_weight(label, weight)
        if self.use_mask:
            self._raise_for_ignored_masks(ignore_index)
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

    def _label_and_weight(
        self, label: jax.Array | None, weight: jax.Array | None
    ) -> tuple[jax.Array | None, jax.Array | None]:
        """The labels of masks, which are a call's third argument, and the weight."""
        return (weight, None) if self.use_mask and label is None else (label, weight)

    def weight_of_classes(self, pred: jax.Array) -> jax.Array | None:
        """The weight (C,) of each class of logits, or None where all are 1."""
        weight = self.class_weight
        if self.bg_cls_weight is not None and weight is None:
            weight = 1.0
        by_class = weight_of_classes(weight, pred, axis=-1 if self.use_sigmoid else 1)
        if by_class is None or self.bg_cls_weight is None:
            return by_class
        return by_class.at[-1].set(self.bg_cls_weight)

    def _raise_for_ignored_masks(self, ignore_index: int | None) -> None:
        if self.use_mask and ignore_index is not None:
            raise self.value_error("use_mask takes no ignore_index; give such masks weight 0")
