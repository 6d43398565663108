"""How mmyolo writes the configs of its heads: what all of them share."""

from collections.abc import Mapping
from typing import Any

from visdet_jax.detectors.registry import with_training
from visdet_jax.registry import as_dict, is_config

NUM_CLASSES = {"num_classes": "num_classes"}


def from_mmyolo(
    settings: dict[str, Any], train_cfg: Any, fields: Mapping[str, str] = NUM_CLASSES
) -> dict[str, Any]:
    """The keys of a head's config, with those that mmyolo has in its `head_module` or leaves out.

    `IoULoss` without a scope is mmyolo's. `yolox_style` of `test_cfg` has no effect.

    Args:
      settings: The config; it is not changed.
      train_cfg: See `with_training`.
      fields: The keys of `head_module` that the head needs, and the fields that they are here.

    Raises: ValueError for a key that stands twice.
    """
    settings = with_training(settings, train_cfg)
    module = as_dict(settings.pop("head_module", None) or {})
    for key, name in fields.items():
        if key in module:
            if name in settings:
                raise ValueError(f"{name} stands in the head's config and in its head_module")
            settings[name] = module[key]
    for name, loss in settings.items():
        if name.startswith("loss_") and is_config(loss):
            settings[name] = {"_scope_": "mmyolo"} | as_dict(loss)
    if is_config(settings.get("test_cfg")):
        settings["test_cfg"] = as_dict(settings["test_cfg"])
        settings["test_cfg"].pop("yolox_style", None)
    return settings


def without_points(head: Any, settings: dict[str, Any], offset: float) -> dict[str, Any]:
    """The keys without `prior_generator`, of a class of heads that makes its own points.

    Raises: ValueError for points that are not `offset` strides from the corners of the cells, and
      for other strides than the head's.
    """
    points = as_dict(settings.get("prior_generator") or {})
    strides = tuple(settings.get("strides", head.strides))
    if points.get("offset", offset) != offset or tuple(points.get("strides", strides)) != strides:
        raise ValueError(
            f"{head.__name__}: prior_generator must have offset {offset} and strides {strides}, "
            f"got {points}"
        )
    return {key: value for key, value in settings.items() if key != "prior_generator"}
