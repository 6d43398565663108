"""From configs to heads, and to what their configs nest: priors, coders, assigners."""

from typing import Any

from visdet_jax.core.fields import field_types
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.losses.loss import Loss
from visdet_jax.registry import LOSSES, Registry, is_config

# Keys of a head's config that are about the network before the losses. They have no effect.
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
    "num_convs",
    "bbox_roi_extractor",
    "mask_roi_extractor",
    "shared_head",
    "roi_feat_size",
    "fc_out_channels",
    "conv_out_channels",
    "conv_kernel_size",
    "num_fcs",
    "num_shared_convs",
    "num_shared_fcs",
    "num_cls_convs",
    "num_cls_fcs",
    "num_reg_convs",
    "with_avg_pool",
    "with_cls",
    "with_reg",
    "reg_predictor_cfg",
    "upsample_cfg",
    "predictor_cfg",
)

TASK_UTILS = Registry("task util")
TASK_UTILS.parts = {FrozenModule: TASK_UTILS}  # For an assigner's costs.
# The branches of a second stage. Their base class is known where they are: see heads/bbox_head.py.
BRANCHES = Registry(
    "branch of a RoI head", parts={Loss: LOSSES, FrozenModule: TASK_UTILS}, ignored=NETWORK_KEYS
)
HEADS = Registry("head", parts={Loss: LOSSES, FrozenModule: TASK_UTILS}, ignored=NETWORK_KEYS)


def build_head(bbox_head: Any, train_cfg: Any = None) -> Any:
    """The head of a config such as mmdet's `bbox_head`, and of its `train_cfg`.

      >>> head = build_head(dict(type="FCOSHead", num_classes=80, in_channels=256))

    Args:
      bbox_head: A head's config; see `Registry.build`. Losses and other parts in it may be configs
        or objects. Keys of the network (`NETWORK_KEYS`) have no effect.
      train_cfg: More keys of the head: assigner, sampler, allowed_border, pos_weight. Its `debug`
        has no effect. None takes the `train_cfg` that `bbox_head` itself may hold. A head without
        an assigner, such as FCOS's, does not read it.

    Returns: a `Head`.
    Raises: ValueError, TypeError as `Registry.build`; ValueError for a key that stands in both.
    """
    if not is_config(bbox_head):
        return HEADS.build(bbox_head)
    # Through keys() alone: a config need not be iterable.
    settings = {key: bbox_head[key] for key in bbox_head.keys()}  # noqa: SIM118
    own = settings.pop("train_cfg", None)
    training = own if train_cfg is None else train_cfg
    if training is None or "type" not in settings:
        return HEADS.build(settings)
    if "assigner" in field_types(HEADS.find(settings["type"], settings.get("_scope_"))):
        for key in training.keys():  # noqa: SIM118
            if key in settings:
                raise ValueError(f"{key} stands in the head's config and in its train_cfg")
            if key != "debug":
                settings[key] = training[key]
    return HEADS.build(settings)
