"""From a detector's config to its head, which has the losses."""

import copy
import itertools
from typing import Any

import jax

from visdet_jax.detectors import DenseHead, DETRHead, build_head

from .config import ConfigError


def make_head(model: dict[str, Any], num_classes: int, strides: list[int]) -> DenseHead | DETRHead:
    """The head of a config, for the number of classes and the strides that suit the data."""
    config = {**copy.deepcopy(model["bbox_head"]), "num_classes": num_classes}
    if "anchor_generator" in config:
        config["anchor_generator"]["strides"] = strides
    elif "regress_ranges" in config:
        config |= {"strides": strides, "regress_ranges": _ranges(config, strides)}
    try:
        head = build_head(config, model.get("train_cfg"))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{model['type']}: {error}") from error
    for name, state in head.init().items():
        if jax.tree.leaves(state):
            raise ConfigError(
                f"{name} keeps running statistics, which this example does not support"
            )
    return head


def _ranges(config: dict[str, Any], strides: list[int]) -> list[tuple[float, float]]:
    """FCOS's regress ranges for other strides: each ends at as many strides as in the config."""
    first, *_, last = config["regress_ranges"]
    end_in_strides = first[1] / config["strides"][0]
    edges = [first[0], *(end_in_strides * stride for stride in strides[:-1]), last[1]]
    return list(itertools.pairwise(edges))
