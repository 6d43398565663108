"""From configs to heads, and to what their configs nest: priors, coders, assigners."""

from typing import Any

from visdet_jax.core.fields import field_types
from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.names import misspelt
from visdet_jax.losses.loss import Loss
from visdet_jax.registry import LOSSES, Registry, as_dict, is_config

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
    "share_conv",
    "exp_on_reg",
    "with_objectness",
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
    "inner_channels",
    "end_level",
    "use_depthwise",
    "num_dcn",
    "anchor_type",
    "gradient_mul",
    "bbox_norm_type",
    "num_ffn_fcs",
    "num_heads",
    "feedforward_channels",
    "hidden_channels",
    "dropout",
    "ffn_act_cfg",
    "dynamic_conv_cfg",
    "proposal_feature_channel",
    "out_channels",
    "num_queries",
    "pixel_decoder",
    "enforce_decoder_input_project",
    "transformer_decoder",
    "positional_encoding",
    "num_transformer_feat_level",
)

# The heads that a whole model's config may have.
_HEADS_OF_MODELS = (
    "rpn_head",
    "roi_head",
    "bbox_head",
    "mask_head",
    "panoptic_head",
    "semantic_head",
)

TASK_UTILS = Registry("task util")
TASK_UTILS.parts = {FrozenModule: TASK_UTILS}  # For an assigner's costs.
# The branches of a second stage. Their base class is known where they are: see heads/bbox_head.py.
BRANCHES = Registry(
    "branch of a RoI head", parts={Loss: LOSSES, FrozenModule: TASK_UTILS}, ignored=NETWORK_KEYS
)
HEADS = Registry("head", parts={Loss: LOSSES, FrozenModule: TASK_UTILS}, ignored=NETWORK_KEYS)


def build_head(bbox_head: Any, train_cfg: Any = None, test_cfg: Any = None) -> Any:
    """The head of a config such as mmdet's `bbox_head`, and of its `train_cfg` and `test_cfg`.

      >>> head = build_head(dict(type="FCOSHead", num_classes=80, in_channels=256))

    Args:
      bbox_head: A head's config; see `Registry.build`. Losses and other parts in it may be configs
        or objects. Keys of the network (`NETWORK_KEYS`) have no effect. The criteria of RT-DETR,
        D-FINE, DEIM and RF-DETR take the keys of their projects too: weight_dict, losses, matcher.
      train_cfg: More keys of the head: assigner, sampler, allowed_border, pos_weight. Its `debug`
        has no effect. None takes the `train_cfg` that `bbox_head` itself may hold. A head without
        an assigner, such as FCOS's, does not read it. Of a cascade a list, one for each stage.
      test_cfg: Which predictions become detections, for heads that have `detect`. None takes the
        `test_cfg` that `bbox_head` itself may hold.

    Returns: a `Head`, or the head of a second stage.
    Raises: ValueError, TypeError as `Registry.build`; ValueError for a key that stands in both.
    """
    if not is_config(bbox_head):
        return HEADS.build(bbox_head)
    settings = as_dict(bbox_head)
    own = settings.pop("train_cfg", None)
    training = own if train_cfg is None else train_cfg
    if "type" not in settings:
        if "bbox_head" in settings:
            raise ValueError("the config holds a bbox_head: write build_head(**config)")
        return HEADS.build(settings)
    if settings.keys() & set(_HEADS_OF_MODELS) and not str(settings["type"]).endswith("Head"):
        raise ValueError(f"{settings['type']} is a whole model: write build_detector(config)")
    cls = HEADS.find(settings["type"], settings.get("_scope_"))
    if test_cfg is not None:
        settings["test_cfg"] = test_cfg
    if from_project := getattr(cls, "from_project", None):
        settings = from_project(settings)
    if from_mmdet := getattr(cls, "from_mmdet", None):
        return HEADS.build(from_mmdet(settings, training))
    if training is not None and "assigner" in field_types(cls):
        settings = with_training(settings, training)
    return HEADS.build(settings)


def with_training(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
    """A head's config with the keys of its `train_cfg`.

    Raises: ValueError for a key that stands in both.
    """
    settings = dict(settings)
    for key, value in ({} if train_cfg is None else as_dict(train_cfg)).items():
        if key in settings:
            raise ValueError(f"{key} stands in the head's config and in its train_cfg")
        if key != "debug":
            settings[key] = value
    return settings


def build_detector(model: Any) -> dict[str, Any]:
    """The heads of a whole model's config, by the names that they have in it.

      >>> heads = build_detector(config["model"])
      >>> rpn, roi = heads["rpn_head"], heads["roi_head"]

    Each head gets its part of `train_cfg` and `test_cfg`: `rpn`, `rpn_proposal` and `rcnn` of a
    detector with two stages, the whole of one with one. Backbone and neck have no effect. The model
    in a config's `detector` (of semi-supervised training) is the one that is meant.

    Args:
      model: The `model` dict of a config of mmdet or visdet, or anything else with `keys()` and
        `[]`.

    Returns: the heads by name: `bbox_head`; or `rpn_head`, `roi_head`. A tuple of heads where the
      config has a list.
    Raises: TypeError for what is no config; ValueError for a model without a head, for a misspelt
      key, and for heads that do not build: the error says for each of them why.
    """
    if not is_config(model):
        raise TypeError(f"build_detector takes a model's config, got {model!r}")
    keys = model.keys()
    if "detector" in keys:
        return build_detector(model["detector"])
    if "model" in keys:
        raise ValueError("build_detector takes the model of a config: write config['model']")
    known = ("train_cfg", "test_cfg", *_HEADS_OF_MODELS)
    for key in keys:
        if key not in known and (meant := misspelt(key, known)):
            raise ValueError(f"build_detector: a model has no key {key!r}. Did you mean {meant!r}?")
    configs = {name: model[name] for name in _HEADS_OF_MODELS if name in keys and model[name]}
    if not configs:
        raise ValueError(
            f"build_detector: a model must have one of {', '.join(_HEADS_OF_MODELS)}, got the keys "
            f"{', '.join(keys)}"
        )
    training = _part(model, "train_cfg")
    testing = _part(model, "test_cfg")
    two_stages = "roi_head" in configs or "rpn_head" in configs
    heads, problems = {}, []
    for name, config in configs.items():
        train_cfg, test_cfg = training, testing
        if two_stages:
            part = {"rpn_head": "rpn", "roi_head": "rcnn"}.get(name, name)
            train_cfg, test_cfg = _part(training, part), _part(testing, part)
        try:
            if name == "rpn_head":
                config = _first_stage(config, _part(training, "rpn_proposal"))
            heads[name] = _build(config, train_cfg, test_cfg)
        except (TypeError, ValueError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise ValueError("build_detector: " + "; ".join(problems))
    return heads


def _first_stage(config: Any, proposals: Any) -> Any:
    """The config of an `rpn_head`, with its part of `train_cfg` if there is one.

    The head of a detector with one stage gives way to its own form as a first stage.
    """
    config = as_dict(config)
    if proposals is not None:
        config["rpn_proposal"] = proposals
    if "type" in config:
        cls = HEADS.find(config["type"], config.pop("_scope_", None))
        config["type"] = HEADS[own] if (own := getattr(cls, "rpn_head", None)) else cls
    return config


def _build(config: Any, train_cfg: Any, test_cfg: Any) -> Any:
    """A head, or for a list of configs a tuple of heads, each with its entry of the other lists."""
    if not isinstance(config, list | tuple):
        return build_head(config, train_cfg, test_cfg)

    def of(settings: Any, number: int) -> Any:
        return settings[number] if isinstance(settings, list | tuple) else settings

    return tuple(build_head(x, of(train_cfg, i), of(test_cfg, i)) for i, x in enumerate(config))


def _part(config: Any, name: str) -> Any:
    """A key's value; None where the config is None or has no such key."""
    return config[name] if is_config(config) and name in config.keys() else None  # noqa: SIM118
