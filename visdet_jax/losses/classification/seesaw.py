"""Seesaw loss, for classes of very different frequency."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.closed_form import closed_form
from visdet_jax.core.devices import reduce_mean, reduce_sum
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp_min, divide
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Count, NonNegative, Number
from visdet_jax.core.jitted import jitted
from visdet_jax.core.one_hot import entry_at, is_at
from visdet_jax.core.rules import LOGITS, Expected, classes
from visdet_jax.core.softmax import log_sum_exp, softmax
from visdet_jax.losses._class_targets import class_mask, minus_log_p, weight_of_labels
from visdet_jax.losses.classification.accuracy import masked_accuracy
from visdet_jax.losses.classification.cross_entropy import cross_entropy
from visdet_jax.losses.loss import StatefulLoss
from visdet_jax.reduction import Reduction, weight_reduce_loss, weight_without
from visdet_jax.registry import LOSSES


@exportable
class SeesawState(NamedTuple):
    """What seesaw loss remembers.

    cum_samples: (num_classes + 1,) the number of samples of each class so far, background last.
      In float32, as in mmdet: exact up to 2^24 = 16.8 million samples of a class; beyond them a
      batch's single sample is rounded away, beyond 2^25 its two, and so on. The counts of one
      batch are integers.
    """

    cum_samples: jax.Array


@jitted
def seesaw_statistics(
    state: SeesawState,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> SeesawState:
    """The next state of `seesaw_loss`: the rows of each class are added.

    Args:
      state: The state before this batch.
      target: Class indices (N,). One outside [0, num_classes] is not counted.
      weight: (N,). A row of weight 0 is not counted.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: the next state.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    """
    (cum_samples,) = state
    target = as_labels("target", target)
    if target.ndim != 1:
        raise ValueError(f"target must have shape (N,), got {target.shape}")
    counts = weight_without(target < 0, weight, target.shape) != 0
    is_class = class_mask(target, len(cum_samples))
    # Integers: float32 would lose single rows of a batch beyond 2^24.
    samples = reduce_sum((is_class & counts[:, None]).sum(0), axis_name)
    return SeesawState(cum_samples + samples.astype(cum_samples.dtype))


@jitted
def seesaw_ce_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    cum_samples: jax.Array,
    p: NonNegative = 0.8,
    q: NonNegative = 2.0,
    eps: NonNegative = 0.01,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
) -> jax.Array:
    """Cross entropy that punishes rare classes less for the samples of frequent ones.

    -log(e^z_y / (e^z_y + Σ_{j≠y} M_j C_j e^z_j)), with y the row's class and s = softmax(z).
    Mitigation M_j = min(1, n_j / n_y)^p, with n the counts, at least 1, is for a rarer class j.
    Compensation C_j = max(1, s_j / max(s_y, eps))^q is where j is mistaken for y. Both are
    constants to the gradient.

    Args:
      pred: Logits (N, C).
      target: Class indices (N,). A negative index costs 0, one of C or more makes the loss NaN.
      weight: (N,).
      cum_samples: (C,), the number of samples of each class so far.
      p: Exponent of mitigation, at least 0. With larger values a rare class is punished less for
        the samples of frequent ones; 0 switches mitigation off.
      q: Exponent of compensation, at least 0. With larger values a class is punished more where
        it is mistaken for the row's; 0 switches compensation off. With p = q = 0 the loss is
        cross entropy.
      eps: Least score s_y of the row's class that is divided by, at least 0. Larger values limit
        compensation.

    Returns: (N,), reduced as `weight_reduce_loss` says.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Wang et al. 2021, https://arxiv.org/abs/2008.10032
    """
    dtype = compute_dtype(pred=pred)
    if pred.ndim != 2 or cum_samples.shape != pred.shape[1:]:
        raise ValueError(
            f"pred (N, C) and cum_samples (C,) do not fit, got {pred.shape} and {cum_samples.shape}"
        )
    rows, classes = pred.shape[:1], pred.shape[1]
    target = as_labels("target", target, rows)
    weight = weight_of_labels(target, target < 0, weight, rows, classes, dtype)
    values = _seesaw_values(weight, pred.astype(dtype), target, cum_samples, p, q, eps)
    return weight_reduce_loss(values, None, reduction, avg_factor)


def _seesaw_values(
    weight: jax.Array,
    pred: jax.Array,
    target: jax.Array,
    cum_samples: jax.Array,
    p: Number,
    q: Number,
    eps: Number,
) -> jax.Array:
    """The weighted values (N,); channels of pred beyond those of `cum_samples` are left out."""
    log_n = jnp.log(clamp_min(jax.lax.stop_gradient(cum_samples).astype(pred.dtype), 1))
    log_n = jnp.pad(log_n, (0, pred.shape[1] - log_n.size), constant_values=-jnp.inf)
    numbers = as_dtype(pred.dtype, p, q, eps)
    values: jax.Array = _seesaw(weight, pred, target[:, None], log_n, *numbers)
    return values


def _seesaw_logits(
    pred: jax.Array, label: jax.Array, log_n: jax.Array, p: Any, q: Any, eps: Any
) -> jax.Array:
    """The logits plus log(M_j C_j), a constant to the gradient by pred, in all classes but y.

    They are -inf in channels whose log_n is. With the slice of the other channels in its place
    every program has one array of pred's shape more, and classes could not be sharded.
    """
    # In log space nothing overflows, and p and q may be traced.
    is_class = log_n[None] > -jnp.inf
    pred, log_n = jnp.where(is_class, pred, -jnp.inf), jnp.where(is_class, log_n[None], 0)
    constant = jax.lax.stop_gradient(pred)
    m, log_sum = log_sum_exp(constant, 1, alone=True)
    log_s = (constant - m) - log_sum
    log_s_own = entry_at(constant, label, 1, minus=m) - log_sum
    mitigation = p * jnp.minimum(log_n - entry_at(log_n, label, 1), 0)
    compensation = q * jnp.maximum(log_s - jnp.maximum(log_s_own, jnp.log(eps)), 0)
    own = is_at(label, pred, 1)
    return pred + jnp.where(own, 0, mitigation + compensation)


def _value(pred: jax.Array, label: jax.Array, *others: Any, alone: bool = False) -> jax.Array:
    return minus_log_p(_seesaw_logits(pred, label, *others), label, alone).squeeze(1)


def _derivative(pred: jax.Array, label: jax.Array, *others: Any) -> jax.Array:
    own = is_at(label, pred, 1).astype(pred.dtype)
    return softmax(_seesaw_logits(pred, label, *others), axis=1) - own


_seesaw = closed_form(_value, _derivative, axis=1, has_alone=True)


@jitted
def seesaw_loss(
    pred: jax.Array,
    target: jax.Array,
    weight: jax.Array | None = None,
    *,
    state: SeesawState,
    p: NonNegative = 0.8,
    q: NonNegative = 2.0,
    eps: NonNegative = 0.01,
    reduction: Reduction = "mean",
    avg_factor: Number | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> dict[str, jax.Array]:
    """Seesaw loss of the class, and cross entropy of object against background.

    `seesaw_ce_loss` over the rows that are no background, their mean over those of them that have
    a weight other than 0; `cross_entropy` of the last two channels over all rows.

    Args:
      pred: Logits (N, C + 2): classes, object, background.
      target: Class indices (N,), C for background. A negative index costs 0, one above C makes
        the loss of objectness NaN.
      weight: (N,).
      state: `SeesawState` of `seesaw_statistics`, this batch included.
      p, q, eps: As in `seesaw_ce_loss`.
      axis_name: The mesh axis, or axes, whose devices hold parts of the batch.

    Returns: a dict of `loss_cls_objectness` and `loss_cls_classes`, each reduced from (N,); the
      latter is 0 in rows of background.
    Raises: ValueError where shapes do not fit, TypeError for class indices that are floats.
    Source: Wang et al. 2021, https://arxiv.org/abs/2008.10032
    """
    (cum_samples,) = state
    classes = len(cum_samples) - 1
    dtype = compute_dtype(pred=pred)
    if pred.ndim != 2 or pred.shape[1] != classes + 2:
        raise ValueError(f"pred must have shape (N, {classes + 2}), got {pred.shape}")
    rows = pred.shape[:1]
    target = as_labels("target", target, rows)
    background = jnp.where(target > classes, 2, (target == classes).astype(jnp.int32))
    loss_of_objectness = cross_entropy(
        _last_two(pred),
        jnp.where(target < 0, -1, background),
        weight,
        reduction=reduction,
        avg_factor=avg_factor,
    )
    is_object = (target >= 0) & (target < classes)
    weight = weight_without(~is_object, weight, rows).astype(dtype)
    of_classes = cum_samples[:classes], p, q, eps
    values = _seesaw_values(weight, pred.astype(dtype), target, *of_classes)
    if reduction == "mean" and avg_factor is None:
        objects = reduce_mean((weight != 0).sum().astype(values.dtype), axis_name)
        loss_of_classes = divide(values.sum(), objects)
    else:
        loss_of_classes = weight_reduce_loss(values, None, reduction, avg_factor)
    return {"loss_cls_objectness": loss_of_objectness, "loss_cls_classes": loss_of_classes}


def _last_two(pred: jax.Array) -> jax.Array:
    """The logits of object and background (N, 2)."""
    if jax.typeof(pred).sharding.spec[1] is None:
        return pred[:, -2:]
    # Two channels cannot be spread over more devices, so they become whole on each.
    columns = (pred.shape[1] - jnp.full((1, 1), i, jnp.int32) for i in (2, 1))
    return jnp.concatenate([entry_at(pred, column, 1) for column in columns], axis=1)


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class SeesawLoss(StatefulLoss, function=(seesaw_ce_loss, seesaw_loss)):
    """Seesaw loss: `seesaw_loss`, after `seesaw_statistics`.

    The weight may be called `label_weights`, as in mmdet.

    Args:
      use_sigmoid: Must be False.
      num_classes: Number of foreground classes, at least 1.
      return_dict: Gives both losses by name; their sum otherwise.
    """

    use_sigmoid: bool = False
    p: float = 0.8
    q: float = 2.0
    num_classes: Count = 1203
    eps: float = 1e-2
    return_dict: bool = True

    custom_cls_channels: ClassVar[bool] = True
    custom_activation: ClassVar[bool] = True
    custom_accuracy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_sigmoid:
            raise self.value_error("use_sigmoid must be False: there is no sigmoid form")

    def init(self) -> SeesawState:
        return SeesawState(jnp.zeros(self.num_classes + 1))

    def rules(self, pred: jax.Array, target: Any, **extra: Any) -> list[Expected]:
        labels = classes(self.num_classes, background=True)
        return [Expected("pred", pred, LOGITS), Expected("target", target, labels)]

    def step(
        self,
        state: SeesawState,
        pred: jax.Array,
        target: jax.Array,
        weight: jax.Array | None,
        *,
        label_weights: jax.Array | None = None,
        axis_name: str | tuple[str, ...] | None = None,
        **reduce: Any,
    ) -> tuple[Any, SeesawState]:
        batch = target, self.one_of(weight=weight, label_weights=label_weights)
        state = seesaw_statistics(state, *batch, axis_name=axis_name)
        options = self.settings | reduce | {"axis_name": axis_name}
        losses = seesaw_loss(pred, *batch, state=state, **options)
        if self.return_dict:
            return losses, state
        return losses["loss_cls_classes"] + losses["loss_cls_objectness"], state

    def get_cls_channels(self, num_classes: int) -> int:
        """The channels of a classifier of `num_classes` classes: object and background besides."""
        if num_classes != self.num_classes:
            raise self.value_error(f"built for {self.num_classes} classes, asked for {num_classes}")
        return num_classes + 2

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores (..., C + 1) of classes and background, of outputs (..., C + 2).

        The softmax over the classes times the probability of an object, and that of none.
        """
        classes, objectness = self._classes_and_objectness(cls_score)
        objectness = jax.nn.softmax(objectness, axis=-1)
        classes = jax.nn.softmax(classes, axis=-1) * objectness[..., :1]
        return jnp.concatenate([classes, objectness[..., 1:]], axis=-1)

    def get_accuracy(
        self, cls_score: jax.Array, labels: jax.Array, rows: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """Top-1 accuracies in percent: `acc_objectness`, and `acc_classes` over the objects.

        Args:
          cls_score: Outputs of the classifier (N, C + 2).
          labels: Class indices (N,), C for background.
          rows: (N,) False for rows that do not count. None is all True.
        """
        classes, objectness = self._classes_and_objectness(cls_score)
        labels = as_labels("labels", labels)
        is_background = (labels == self.num_classes).astype(jnp.int32)
        rows = jnp.ones_like(labels, bool) if rows is None else rows
        is_object = rows & (labels < self.num_classes)
        return {
            "acc_objectness": masked_accuracy(objectness, is_background, rows),
            "acc_classes": masked_accuracy(classes, labels, is_object),
        }

    def _classes_and_objectness(self, cls_score: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The logits of the classes, and those of object and background."""
        if cls_score.shape[-1] != self.num_classes + 2:
            raise self.value_error(
                f"outputs must have {self.num_classes + 2} channels: {cls_score.shape}"
            )
        return cls_score[..., :-2], cls_score[..., -2:]
