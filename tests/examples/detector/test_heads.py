"""Heads from configs, for the classes and strides of the data."""

import pytest

from detector import heads
from detector.config import DETECTORS, read_model

pytestmark = pytest.mark.example


def test_the_head_has_the_strides_and_classes_of_the_data():
    head = heads.make_head(read_model("fcos", {}), 3, [8, 16, 32])
    assert head.num_classes == 3
    assert head.strides == (8, 16, 32)
    assert head.regress_ranges == ((-1, 32), (32, 64), (64, 1e8))
    head = heads.make_head(read_model("gfl", {}), 3, [8, 16, 32])
    assert head.strides == (8, 16, 32)
    # The strides and classes of the configs are those of the built-in digits.
    for detector in DETECTORS:
        model = read_model(detector, {})
        config = {**model["bbox_head"], "train_cfg": model.get("train_cfg")}
        assert heads.make_head(model, 10, [4, 8]) == heads.build_head(config)
