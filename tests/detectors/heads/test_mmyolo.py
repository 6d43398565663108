"""Configs of mmyolo's YOLOX, whose losses are mmdet's."""

import re

import numpy as np
import pytest

from head_cases import ROWS, outputs_for
from visdet_jax import L1Loss
from visdet_jax.detectors import NMS, SimOTAAssigner, YOLOXHead, build_head

SUM = {"reduction": "sum", "loss_weight": 1.0}
BCE = {"type": "mmdet.CrossEntropyLoss", "use_sigmoid": True, **SUM}
BOXES = {"type": "mmdet.IoULoss", "mode": "square", "eps": 1e-16, **SUM, "loss_weight": 5.0}
LOSSES = {"loss_cls": BCE, "loss_obj": BCE, "loss_bbox": BOXES}
CONFIG = {
    "type": "YOLOXHead",
    "_scope_": "mmyolo",
    "head_module": {
        "type": "YOLOXHeadModule",
        "num_classes": 7,
        "in_channels": 256,
        "widen_factor": 0.5,
        "use_depthwise": True,
        "featmap_strides": [4, 8],
    },
    **LOSSES,
    "loss_bbox_aux": {"type": "mmdet.L1Loss", "reduction": "sum", "loss_weight": 0.5},
}
TRAINING = {
    "assigner": {
        "type": "mmdet.SimOTAAssigner",
        "center_radius": 2.5,
        "iou_calculator": {"type": "mmdet.BboxOverlaps2D"},
    }
}
TESTING = {
    "yolox_style": True,
    "multi_label": True,
    "score_thr": 0.001,
    "max_per_img": 300,
    "nms": {"type": "nms", "iou_threshold": 0.65},
}


def test_a_config_of_mmyolo():
    head = build_head(CONFIG, TRAINING, TESTING)
    of_mmdet = {
        "type": "YOLOXHead",
        "num_classes": 7,
        "strides": [4, 8],
        **LOSSES,
        "loss_l1": {"type": "L1Loss", "reduction": "sum", "loss_weight": 0.5},
    }
    testing = {**TESTING, "nms_pre": 100_000}
    del testing["yolox_style"]
    assert head == build_head(of_mmdet, TRAINING, testing)
    assert head.loss_l1 == L1Loss(reduction="sum", loss_weight=0.5)
    assert head.assigner == SimOTAAssigner(center_radius=2.5)
    assert head.test_cfg.nms == NMS(iou_threshold=0.65)
    assert build_head({"type": "YOLOXHead", "head_module": {"num_classes": 80}}) == YOLOXHead(
        num_classes=80
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 3}, "num_classes stands in the head's config and in its head_module"),
        (
            {"prior_generator": {"offset": 0.5}},
            "YOLOXHead: prior_generator must have offset 0 and stri",
        ),
        (
            {"prior_generator": {"strides": [8, 16]}},
            "YOLOXHead: prior_generator must have offset 0 and stri",
        ),
        (TRAINING, "assigner stands in the head's config and in its train_cfg"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_head({**CONFIG, **changes}, TRAINING)


def test_every_class_of_a_cell_may_be_detected():
    nothing_suppressed = {"score_thr": -1.0, "nms_pre": -1, "nms": None, "max_per_img": 90}
    for multi_label, count in ((None, 30), (False, 30), (True, 90)):
        head = ROWS["YOLOXHead"].head(test_cfg={**nothing_suppressed, "multi_label": multi_label})
        outputs = outputs_for(head)
        found = head.detect(outputs)
        assert found.exists.sum() == 2 * count
        _, scores = head.decode(outputs)
        expected = scores if multi_label else scores.max(-1)
        expected = np.sort(np.asarray(expected).reshape(2, -1))[:, ::-1]
        np.testing.assert_allclose(found.scores[:, :count], expected, rtol=1e-6)
