"""Classification: asymmetric loss, PolyLoss, softmax focal loss, Tversky loss, federated loss."""

import jax.numpy as jnp
import numpy as np

from adapters.base import Instead, adapts, differ
from visdet_jax import CrossEntropyLoss, build_loss, weight_reduce_loss
from visdet_jax import sigmoid_focal_loss as focal_loss
from visdet_jax import softmax_focal_loss as focal_loss_of_softmax


def asymmetric(config, pred, target, detached):
    config = {"disable_torch_grad_focal_loss": detached, **config}
    detached = config.pop("disable_torch_grad_focal_loss")
    loss = build_loss({"type": "AsymmetricLoss", "detached": detached, **config})
    return loss(pred, target, reduction_override="sum")


@adapts("asl.AsymmetricLoss")
def asymmetric_loss(config, pred, target):
    return asymmetric(config, pred, target, detached=True)


@adapts("asl.AsymmetricLossOptimized")
def asymmetric_loss_optimized(config, pred, target):
    return asymmetric(config, pred, target, detached=False)


@adapts("asl.ASLSingleLabel")
def asl_single_label(config, pred, target):
    return build_loss({"type": "ASLSingleLabel", **config})(pred, target)


@adapts("poly.Poly1CrossEntropyLoss", static=("num_classes",))
def poly_cross_entropy(config, pred, target):
    loss = CrossEntropyLoss(poly_epsilon=config.get("epsilon", 1.0))
    return loss(pred, target, reduction_override=config.get("reduction", "none"))


@adapts("poly.Poly1FocalLoss", static=("num_classes", "alpha"))
def poly_focal_loss(config, pred, target):
    alpha = config.get("alpha", 0.25)
    reduction = config.get("reduction", "none")
    value = focal_loss(
        jnp.moveaxis(pred, 1, -1),
        target,
        gamma=config.get("gamma", 2.0),
        alpha=None if alpha < 0 else alpha,
        poly_epsilon=config.get("epsilon", 1.0),
        reduction=reduction,
    )
    return jnp.moveaxis(value, -1, 1) if reduction == "none" else value


@adapts("kornia.SoftmaxFocalLoss", static=("ignore_index",))
def softmax_focal_loss(config, pred, target, weight=None):
    """(N, C, ...): ours of every class in turn, times a one-hot whose zeros are 1e-6."""
    channels = pred.shape[1]
    class_weight = jnp.ones(channels, pred.dtype) if weight is None else weight
    if "alpha" in config:
        alpha = config["alpha"]
        class_weight = class_weight * jnp.stack([1 - alpha] + [alpha] * (channels - 1))

    def of_class(c):
        labels = jnp.where(target == config.get("ignore_index", -100), -1, c)
        values = focal_loss_of_softmax(
            pred,
            labels,
            gamma=config.get("gamma", 2.0),
            class_weight=class_weight,
            reduction="none",
        )
        return jnp.where(target == c, values, 1e-6 * values)

    values = jnp.stack([of_class(c) for c in range(channels)], axis=1)
    return weight_reduce_loss(values, reduction=config.get("reduction", "none"))


@adapts("mmseg.TverskyLoss", static=("ignore_index",))
def tversky_loss(config, pred, target):
    return build_loss({"type": "TverskyLoss", **config})(pred, target)


@adapts("kornia.TverskyLoss", static=("ignore_index",))
def pooled_tversky_loss(config, pred, target):
    config = {"ignore_index": -100, **config}
    config.pop("eps", None)
    return build_loss({"type": "TverskyLoss", "smooth": 0.0, **config})(pred, target)


@adapts("detectron2.FederatedLoss")
def federated_loss(config, pred, target, class_mask=None):
    weight = None if class_mask is None else class_mask[None, :-1]
    loss = CrossEntropyLoss(use_sigmoid=True)
    return loss(pred[:, :-1], target, weight=weight, avg_factor=len(pred))


def by_class(config, inputs, _):
    """One minus each class's index, the mean over classes and images."""
    x, labels = inputs["pred"].astype(np.float64), inputs["target"]
    e = np.exp(x - x.max(1, keepdims=True))
    p = e / e.sum(1, keepdims=True)
    costs = []
    for image, label in zip(p, labels, strict=True):
        for c, of_class in enumerate(image):
            q, t = of_class[label >= 0], label[label >= 0] == c
            wrong = config["alpha"] * q[~t].sum() + config["beta"] * (1 - q[t]).sum()
            costs.append(wrong / (q[t].sum() + wrong) if wrong else 0.0)
    return {"out": np.mean(costs)}


def all_background(config, inputs, _):
    x = inputs["pred"][:, :-1].astype(np.float64)
    return {"out": np.logaddexp(0, x).sum() / len(x)}


differ(
    "a negative label is an ignored row",
    Instead(lambda config, inputs, outputs: {"out": np.zeros(len(inputs["target"]))}),
    "poly.Poly1CrossEntropyLoss",
    "neg_label",
)
differ(
    "a negative label is an ignored pixel",
    Instead(lambda config, inputs, outputs: {"out": np.float64(0)}),
    "mmseg.TverskyLoss",
    "neg_label",
)
differ(
    "a negative label is an ignored row",
    Instead(lambda config, inputs, outputs: {"out": np.float64(0)}),
    "detectron2.FederatedLoss",
    "neg",
)
differ(
    "an index of C or more is background, as in binary_cross_entropy",
    Instead(all_background),
    "detectron2.FederatedLoss",
    "oob",
)
differ(
    "Tversky's index of each class, not of all classes pooled, where FP = FN",
    Instead(by_class),
    "kornia.TverskyLoss",
    "half",
    "one",
    "a3b7",
    "a7b3",
    "eps",
    "ignore",
    "all_ignored",
    "extreme",
)
