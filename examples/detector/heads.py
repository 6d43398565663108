"""From a detector's config to its heads, which have the losses."""

import copy
import dataclasses
import itertools
from typing import Any

import jax

from visdet_jax.detectors import (
    DenseHead,
    QueryHead,
    RTMDetInsHead,
    StandardRoIHead,
    build_detector,
)

from .config import ConfigError

# By their names in the config: `bbox_head`, or `rpn_head` and `roi_head` of two stages.
Heads = dict[str, DenseHead | QueryHead | StandardRoIHead]


def make_heads(model: dict[str, Any], num_classes: int, strides: list[int]) -> Heads:
    """The heads of a config, for the number of classes and the strides that suit the data."""
    model = copy.deepcopy(model)
    if "roi_head" in model:
        dense, roi = model["rpn_head"], model["roi_head"]
        branches = [roi[name] for name in ("bbox_head", "mask_head") if name in roi]
    else:
        dense = model["bbox_head"]
        branches = [dense.get("head_module", dense)]  # Of mmyolo's heads the former.
    for branch in branches:
        branch["num_classes"] = num_classes
    if "head_module" in dense:
        dense["head_module"]["featmap_strides"] = strides
    for points in ("anchor_generator", "prior_generator"):
        if points in dense:
            dense[points]["strides"] = strides
    if "regress_ranges" in dense:
        dense |= {"strides": strides, "regress_ranges": _ranges(dense, strides)}
    try:
        heads: Heads = build_detector(model)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{model['type']}: {error}") from error
    for head in heads.values():
        for name, state in head.init().items():
            if jax.tree.leaves(state):
                raise ConfigError(
                    f"{name} keeps running statistics, which this example does not support"
                )
    return heads


def has_masks(heads: Heads) -> bool:
    """Whether the detector predicts masks, and needs them for its training."""
    if isinstance(heads.get("bbox_head"), RTMDetInsHead):
        return True
    return getattr(heads.get("roi_head"), "mask_head", None) is not None


def with_slots(head: Any, count: int) -> Any:
    """The head with `count` slots for the detections of an image."""
    return dataclasses.replace(head, test_cfg=dataclasses.replace(head.test_cfg, max_per_img=count))


def _ranges(config: dict[str, Any], strides: list[int]) -> list[tuple[float, float]]:
    """FCOS's regress ranges for other strides: each ends at as many strides as in the config."""
    first, *_, last = config["regress_ranges"]
    end_in_strides = first[1] / config["strides"][0]
    edges = [first[0], *(end_in_strides * stride for stride in strides[:-1]), last[1]]
    return list(itertools.pairwise(edges))
