"""YOLOv8Head: configs of mmyolo, and what it raises for."""

import re

import jax
import numpy as np
import pytest

from head_cases import ROWS, batch_for
from visdet_jax import YOLOIoULoss
from visdet_jax.detectors import NMS, BatchTaskAlignedAssigner, YOLOv8Head, build_head

ROW = ROWS["YOLOv8Head"]
CONFIG = {
    "type": "mmyolo.YOLOv8Head",
    "head_module": {
        "type": "YOLOv8HeadModule",
        "num_classes": 7,
        "in_channels": [256, 512, 1024],
        "widen_factor": 0.5,
        "reg_max": 8,
        "featmap_strides": [4, 8, 16],
    },
    "prior_generator": {"type": "mmdet.MlvlPointGenerator", "offset": 0.5, "strides": [4, 8, 16]},
    "bbox_coder": {"type": "DistancePointBBoxCoder"},
    "loss_bbox": {
        "type": "IoULoss",
        "iou_mode": "siou",
        "bbox_format": "xyxy",
        "reduction": "sum",
        "loss_weight": 2.5,
        "return_iou": False,
    },
}
TRAINING = {"assigner": {"type": "BatchTaskAlignedAssigner", "num_classes": 7, "topk": 10}}
TESTING = {"multi_label": True, "nms": {"type": "nms", "iou_threshold": 0.6}, "max_per_img": 9}


def test_a_config_of_mmyolo():
    head = build_head(CONFIG, TRAINING, TESTING)
    assert (head.num_classes, head.reg_max, head.strides) == (7, 8, (4, 8, 16))
    assert head.loss_bbox == YOLOIoULoss(
        iou_mode="siou", bbox_format="xyxy", loss_weight=2.5, return_iou=False
    )
    assert head.assigner == BatchTaskAlignedAssigner(num_classes=7, topk=10)
    assert head.test_cfg.nms == NMS(iou_threshold=0.6)
    assert head.test_cfg.max_per_img == 9
    assert CONFIG["loss_bbox"]["reduction"] == "sum"  # Configs are not changed.


@pytest.mark.parametrize(
    ("changes", "training", "testing", "message"),
    [
        ({"prior_generator": {"offset": 0.0}}, TRAINING, None, "must have offset 0.5 and strides"),
        ({"prior_generator": {"strides": [8]}}, TRAINING, None, "must have offset 0.5 and strides"),
        (TRAINING, TRAINING, None, "assigner stands in the head's config and in its train_cfg"),
        ({}, None, None, "YOLOv8Head needs a key 'assigner'"),
        ({"reg_max": 1}, TRAINING, None, "reg_max stands in the head's config and in its head_mod"),
        ({"loss_cls": {"type": "CrossEntropyLoss"}}, TRAINING, None, "must use a sigmoid"),
        ({"loss_bbox": {"type": "YOLOIoULoss"}}, TRAINING, None, 'need bbox_format="xyxy"'),
    ],
)
def test_configs_that_do_not_fit(changes, training, testing, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_head({**CONFIG, **changes}, training, testing)


def test_it_needs_two_bins():
    with pytest.raises(ValueError, match="reg_max must be at least 2, got 1"):
        ROW.head(reg_max=1)


def test_a_box_whose_coordinates_are_negative_in_sum_is_learnt():
    """mmyolo takes it for padding."""
    outputs, boxes, labels, shapes = batch_for(ROW.head(), (1, 0))
    boxes[0, 0], labels[0, 0] = (-90, -90, 40, 30), 1
    assert np.asarray(ROW.head().targets(outputs, boxes, labels, shapes).gt_inds).any()
    assert isinstance(ROW.head(), YOLOv8Head)


def test_what_the_classes_learn_is_no_array_of_all_levels():
    """On a TPU v5e the head then moves 1.3 times as much, of which a part is a copy of it."""
    head = ROW.head()
    outputs, *truth = batch_for(head)
    traced = jax.jit(lambda outputs: head.loss(outputs, *truth)).trace(outputs)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    shapes = [x.shape for x in outputs.cls_scores]
    batch, classes = shapes[0][0], shapes[0][-1]
    points = sum(x[1] * x[2] for x in shapes)
    assert f"tensor<{batch}x{shapes[0][1] * shapes[0][2]}x{classes}xf32>" in text
    assert f"tensor<{batch}x{points}x{classes}xf32>" not in text
