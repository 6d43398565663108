"""The losses and the heads of well-known detectors, as configs to copy, change and build.

>>> losses = {name: build_loss(config) for name, config in configs.FCOS.items()}
>>> head = build_head(**configs.FCOS_HEAD)

>>> heads = build_detector(configs.FASTER_RCNN)

The heads are mmdet's for COCO: 80 classes, and strides 8 to 128 where a head of one stage has
strides. Those of RT-DETR, D-FINE, DEIM and RF-DETR are in the words of these projects. The
detectors with two stages are whole models, without what concerns the network alone.
"""

from typing import Any

Config = dict[str, Any]


def _focal_loss(loss_weight: float) -> Config:
    """A dict of its own for each detector, so that whoever changes one changes no other."""
    return {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": loss_weight,
    }


RETINANET = {
    "loss_cls": _focal_loss(1.0),
    "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
}

FCOS = {
    "loss_cls": _focal_loss(1.0),
    "loss_bbox": {"type": "IoULoss", "mode": "log", "loss_weight": 1.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}

ATSS = {
    "loss_cls": _focal_loss(1.0),
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}

GFL = {
    "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
}

DETR = {
    "loss_cls": {
        "type": "CrossEntropyLoss",
        "bg_cls_weight": 0.1,
        "use_sigmoid": False,
        "loss_weight": 1.0,
        "class_weight": 1.0,
    },
    "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
    "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
}

DEFORMABLE_DETR = {
    "loss_cls": _focal_loss(2.0),
    "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
    "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
}

_STRIDES = (8, 16, 32, 64, 128)
_ONE_ANCHOR = {
    "type": "AnchorGenerator",
    "ratios": (1.0,),
    "octave_base_scale": 8,
    "scales_per_octave": 1,
    "strides": _STRIDES,
}
_ATSS_TRAINING = {
    "assigner": {"type": "ATSSAssigner", "topk": 9},
    "allowed_border": -1,
    "pos_weight": -1,
}

RETINANET_HEAD = {
    "bbox_head": {
        "type": "RetinaHead",
        "num_classes": 80,
        "anchor_generator": {
            "type": "AnchorGenerator",
            "octave_base_scale": 4,
            "scales_per_octave": 3,
            "ratios": (0.5, 1.0, 2.0),
            "strides": _STRIDES,
        },
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
        **RETINANET,
    },
    "train_cfg": {
        "assigner": {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": 0.5,
            "neg_iou_thr": 0.4,
            "min_pos_iou": 0,
        },
        "allowed_border": -1,
        "pos_weight": -1,
    },
}

FCOS_HEAD = {"bbox_head": {"type": "FCOSHead", "num_classes": 80, "strides": _STRIDES, **FCOS}}

ATSS_HEAD = {
    "bbox_head": {
        "type": "ATSSHead",
        "num_classes": 80,
        "anchor_generator": _ONE_ANCHOR,
        "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)},
        **ATSS,
    },
    "train_cfg": _ATSS_TRAINING,
}

GFL_HEAD = {
    "bbox_head": {
        "type": "GFLHead",
        "num_classes": 80,
        "anchor_generator": _ONE_ANCHOR,
        "reg_max": 16,
        **GFL,
    },
    "train_cfg": _ATSS_TRAINING,
}


def _hungarian_training(cls_cost: Config) -> Config:
    costs = [
        cls_cost,
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ]
    return {"assigner": {"type": "HungarianAssigner", "match_costs": costs}}


DETR_HEAD = {
    "bbox_head": {"type": "DETRHead", "num_classes": 80, **DETR},
    "train_cfg": _hungarian_training({"type": "ClassificationCost", "weight": 1.0}),
}

DEFORMABLE_DETR_HEAD = {
    "bbox_head": {"type": "DeformableDETRHead", "num_classes": 80, **DEFORMABLE_DETR},
    "train_cfg": _hungarian_training({"type": "FocalLossCost", "weight": 2.0}),
}


def _of_project(kind: str, cls_loss: str, *local: str, **settings: Any) -> Config:
    """A criterion in the words of RT-DETR's, D-FINE's and DEIM's own configs."""
    weights: Config = {f"loss_{cls_loss}": 1, "loss_bbox": 5, "loss_giou": 2}
    if local:
        weights |= {"loss_fgl": 0.15, "loss_ddf": 1.5}
    return {
        "bbox_head": {
            "type": kind,
            "num_classes": 80,
            "weight_dict": weights,
            "losses": [cls_loss, "boxes", *local],
            **settings,
            "matcher": {
                "type": "HungarianMatcher",
                "weight_dict": {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2},
                "alpha": 0.25,
                "gamma": 2.0,
            },
        }
    }


RTDETR_HEAD = _of_project("RTDETRCriterion", "vfl", alpha=0.75, gamma=2.0)
DFINE_HEAD = _of_project("DFINECriterion", "vfl", "local", alpha=0.75, gamma=2.0, reg_max=32)
DEIM_HEAD = _of_project("DEIMCriterion", "mal", "local", gamma=1.5, reg_max=32)

# Its classes are COCO's ids, from 0 to 90.
RFDETR_HEAD = {
    "bbox_head": {
        "type": "RFDETRCriterion",
        "num_classes": 91,
        "weight_dict": {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0},
        "losses": ["labels", "boxes", "cardinality"],
        "focal_alpha": 0.25,
        "group_detr": 13,
        "ia_bce_loss": True,
        "matcher": {
            "type": "HungarianMatcher",
            "cost_class": 2,
            "cost_bbox": 5,
            "cost_giou": 2,
            "focal_alpha": 0.25,
        },
    }
}


def _rcnn(masks: bool) -> Config:
    """The model of Faster R-CNN, or with masks of Mask R-CNN, on a feature pyramid."""
    roi_head: Config = {
        "type": "StandardRoIHead",
        "bbox_head": {
            "type": "Shared2FCBBoxHead",
            "num_classes": 80,
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "target_stds": (0.1, 0.1, 0.2, 0.2)},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
    }
    training: Config = {
        "assigner": {
            "type": "MaxIoUAssigner",
            "pos_iou_thr": 0.5,
            "neg_iou_thr": 0.5,
            "min_pos_iou": 0.5,
            "match_low_quality": masks,
        },
        "sampler": {
            "type": "RandomSampler",
            "num": 512,
            "pos_fraction": 0.25,
            "neg_pos_ub": -1,
            "add_gt_as_proposals": True,
        },
        "pos_weight": -1,
    }
    testing: Config = {
        "score_thr": 0.05,
        "nms": {"type": "nms", "iou_threshold": 0.5},
        "max_per_img": 100,
    }
    if masks:
        roi_head["mask_head"] = {
            "type": "FCNMaskHead",
            "num_classes": 80,
            "loss_mask": {"type": "CrossEntropyLoss", "use_mask": True, "loss_weight": 1.0},
        }
        training["mask_size"] = 28
        testing["mask_thr_binary"] = 0.5
    return {
        "type": "MaskRCNN" if masks else "FasterRCNN",
        "rpn_head": {
            "type": "RPNHead",
            "anchor_generator": {
                "type": "AnchorGenerator",
                "scales": (8,),
                "ratios": (0.5, 1.0, 2.0),
                "strides": (4, 8, 16, 32, 64),
            },
            "bbox_coder": {"type": "DeltaXYWHBBoxCoder"},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
        },
        "roi_head": roi_head,
        "train_cfg": {
            "rpn": {
                "assigner": {
                    "type": "MaxIoUAssigner",
                    "pos_iou_thr": 0.7,
                    "neg_iou_thr": 0.3,
                    "min_pos_iou": 0.3,
                    "match_low_quality": True,
                },
                "sampler": {
                    "type": "RandomSampler",
                    "num": 256,
                    "pos_fraction": 0.5,
                    "neg_pos_ub": -1,
                    "add_gt_as_proposals": False,
                },
                "allowed_border": -1,
                "pos_weight": -1,
            },
            "rpn_proposal": _proposals(nms_pre=2000),
            "rcnn": training,
        },
        "test_cfg": {"rpn": _proposals(nms_pre=1000), "rcnn": testing},
    }


def _proposals(nms_pre: int) -> Config:
    return {
        "nms_pre": nms_pre,
        "max_per_img": 1000,
        "nms": {"type": "nms", "iou_threshold": 0.7},
        "min_bbox_size": 0,
    }


FASTER_RCNN = _rcnn(masks=False)
MASK_RCNN = _rcnn(masks=True)
