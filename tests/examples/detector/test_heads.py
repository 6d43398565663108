"""Heads from configs, for the classes and strides of the data."""

import pytest

from detector import heads
from detector.config import DETECTORS, WITH_MASKS, read_model
from visdet_jax.detectors import build_detector

pytestmark = pytest.mark.example


def test_the_head_has_the_strides_and_classes_of_the_data():
    head = heads.make_heads(read_model("fcos", {}), 3, [8, 16, 32])["bbox_head"]
    assert head.num_classes == 3
    assert head.strides == (8, 16, 32)
    assert head.regress_ranges == ((-1, 32), (32, 64), (64, 1e8))
    head = heads.make_heads(read_model("gfl", {}), 3, [8, 16, 32])["bbox_head"]
    assert head.strides == (8, 16, 32)
    both = heads.make_heads(read_model("mask_rcnn", {}), 3, [8, 16, 32])
    assert both["rpn_head"].strides == (8, 16, 32)
    assert both["roi_head"].bbox_head.num_classes == both["roi_head"].mask_head.num_classes == 3
    for detector in ("rtmdet", "rtmdet_ins", "yolov8"):
        head = heads.make_heads(read_model(detector, {}), 3, [8, 16, 32])["bbox_head"]
        assert head.strides == (8, 16, 32)
        assert head.num_classes == 3
    # The strides and classes of the configs are those of the built-in digits.
    for detector in DETECTORS:
        model = read_model(detector, {})
        assert heads.make_heads(model, 10, [4, 8]) == build_detector(model)


def test_slots():
    head = heads.make_heads(read_model("fcos", {}), 3, [8])["bbox_head"]
    assert head.test_cfg.max_per_img == 100
    assert heads.with_slots(head, 7).test_cfg.max_per_img == 7
    assert heads.with_slots(head, 100) == head


def test_which_detectors_have_masks():
    found = [
        name
        for name in DETECTORS
        if heads.has_masks(heads.make_heads(read_model(name, {}), 10, [4, 8]))
    ]
    assert found == list(WITH_MASKS)
