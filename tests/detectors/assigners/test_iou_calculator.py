"""The `iou_calculator` of assigners' configs."""

import pytest

from visdet_jax.detectors import TASK_UTILS, BboxOverlaps2D


def test_it_is_built_inside_the_configs_of_assigners():
    config = {"type": "ATSSAssigner", "topk": 9, "iou_calculator": {"type": "BboxOverlaps2D"}}
    assert TASK_UTILS.build(config).iou_calculator == BboxOverlaps2D()
    with pytest.raises(ValueError, match="BboxOverlaps2D has no key 'scale'"):
        TASK_UTILS.build({**config, "iou_calculator": {"type": "BboxOverlaps2D", "scale": 2.0}})
    with pytest.raises(TypeError, match="ATSSAssigner: iou_calculator must be BboxOverlaps2D"):
        TASK_UTILS.build({**config, "iou_calculator": {"type": "PseudoSampler"}})
