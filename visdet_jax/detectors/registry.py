"""From configs to heads, and to what their configs nest: priors, coders, assigners."""

from typing import Any

from visdet_jax.core.fields import field_types
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.losses.loss import Loss
from visdet_jax.registry import LOSSES, Registry, is_config

# What a head's config says about the network that precedes the losses.
NETWORK_KEYS = (
    "in_channels",
    "embed_dims",
    "feat_channels",
    "num_reg_fcs",
    "num_pred_layer",
    "share_pred_layer",
    "as_two_stage",
    "stacked_convs",
    "pred_kernel_size",
    "conv_cfg",
    "conv_bias",
    "dcn_on_last_conv",
    "norm_cfg",
    "act_cfg",
    "cls_predictor_cfg",
    "centerness_on_reg",
    "init_cfg",
    "test_cfg",
)

TASK_UTILS = Registry("task util")
TASK_UTILS.parts = {FrozenModule: TASK_UTILS}  # an assigner's costs
HEADS = Registry("head", parts={Loss: LOSSES, FrozenModule: TASK_UTILS}, ignored=NETWORK_KEYS)


def build_head(bbox_head: Any, train_cfg: Any = None) -> Any:
    """The head of a config such as mmdet's `bbox_head`, and its `train_cfg`.

    What stands in `train_cfg` (assigner, sampler, allowed_border, pos_weight) are keys of the head
    itself; `debug` has no effect, as keys of the network have none (`NETWORK_KEYS`). A `bbox_head`
    may hold its `train_cfg`. A head without an assigner, FCOS's, heeds none.

    Example:
      >>> head = build_head(dict(type="FCOSHead", num_classes=80, in_channels=256))
    Raises: ValueError or TypeError, as `Registry.build`.
    """
    if not is_config(bbox_head):
        return HEADS.build(bbox_head)
    settings = {key: bbox_head[key] for key in bbox_head.keys()}  # noqa: SIM118 (no iteration)
    own = settings.pop("train_cfg", None)
    training = own if train_cfg is None else train_cfg
    kind = settings.get("type")
    cls = HEADS[kind] if isinstance(kind, str) else kind
    if training is not None and isinstance(cls, type) and "assigner" in field_types(cls):
        for key in training.keys():  # noqa: SIM118
            if key in settings:
                raise ValueError(f"{key} stands in the head's config and in its train_cfg")
            if key != "debug":
                settings[key] = training[key]
    return HEADS.build(settings)
