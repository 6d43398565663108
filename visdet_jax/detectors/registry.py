"""The registries of the heads and of what their configs nest: priors, coders, assigners."""

from visdet_jax.module import Config, Loss
from visdet_jax.registry import LOSSES, Registry

# What a head's config says about the network that precedes the losses.
NETWORK_KEYS = (
    "in_channels",
    "feat_channels",
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
HEADS = Registry("head", parts={Loss: LOSSES, Config: TASK_UTILS}, ignored=NETWORK_KEYS)
