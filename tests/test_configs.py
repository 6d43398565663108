"""The ready-made configs of whole detectors: they build, and share nothing that can be changed."""

import copy

import pytest

from visdet_jax import configs
from visdet_jax.detectors import NMS, RandomSampler, build_detector, build_head


@pytest.mark.parametrize("name", [name for name in vars(configs) if name.endswith("_HEAD")])
def test_heads(name):
    head = build_head(**getattr(configs, name))
    assert head.num_classes == (91 if name == "RFDETR_HEAD" else 80)


@pytest.mark.parametrize("name", ["RTDETR", "DFINE", "DEIM", "RFDETR"])
def test_defaults_of_criteria_are_those_of_their_projects(name):
    head = build_head(**getattr(configs, f"{name}_HEAD"))
    assert head == type(head)(num_classes=head.num_classes)


@pytest.mark.parametrize(("name", "masks"), [("FASTER_RCNN", False), ("MASK_RCNN", True)])
def test_two_stages(name, masks):
    heads = build_detector(getattr(configs, name))
    rpn, roi = heads["rpn_head"], heads["roi_head"]
    assert rpn.strides == (4, 8, 16, 32, 64)
    assert (rpn.assigner.pos_iou_thr, rpn.assigner.neg_iou_thr) == (0.7, 0.3)
    assert rpn.sampler == RandomSampler(num=256, pos_fraction=0.5, add_gt_as_proposals=False)
    assert (rpn.rpn_proposal.nms_pre, rpn.test_cfg.nms_pre) == (2000, 1000)
    assert rpn.rpn_proposal.max_per_img == rpn.test_cfg.max_per_img == 1000
    assert rpn.test_cfg.nms == NMS(iou_threshold=0.7)
    assert roi.bbox_head.num_classes == 80
    assert roi.bbox_head.bbox_coder.target_stds == (0.1, 0.1, 0.2, 0.2)
    assert roi.assigner.match_low_quality == masks
    assert roi.sampler == RandomSampler(num=512, pos_fraction=0.25)
    assert (roi.test_cfg.score_thr, roi.test_cfg.nms) == (0.05, NMS(iou_threshold=0.5))
    assert (roi.mask_head is not None) == masks
    if masks:
        assert roi.mask_size == 28
        assert roi.mask_head.num_classes == 80


def test_whoever_changes_one_changes_no_other():
    before = copy.deepcopy(configs.MASK_RCNN)
    changed = copy.deepcopy(configs.FASTER_RCNN)

    def empty(config):
        for part in config.values():
            if isinstance(part, dict):
                empty(part)
        config.clear()

    try:
        empty(configs.FASTER_RCNN)
        assert before == configs.MASK_RCNN
    finally:
        configs.FASTER_RCNN.update(changed)
