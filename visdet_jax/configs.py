"""The losses of four well-known detectors, as config dicts to copy, change and build.

>>> losses = {name: build_loss(config) for name, config in configs.FCOS.items()}
"""

RETINANET = {
    "loss_cls": {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": 1.0,
    },
    "loss_bbox": {"type": "SmoothL1Loss", "beta": 1.0, "loss_weight": 1.0},
}

FCOS = {
    "loss_cls": {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": 1.0,
    },
    "loss_bbox": {"type": "IoULoss", "mode": "log", "loss_weight": 1.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}

ATSS = {
    "loss_cls": {
        "type": "FocalLoss",
        "use_sigmoid": True,
        "gamma": 2.0,
        "alpha": 0.25,
        "loss_weight": 1.0,
    },
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0},
}

GFL = {
    "loss_cls": {"type": "QualityFocalLoss", "use_sigmoid": True, "beta": 2.0, "loss_weight": 1.0},
    "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
    "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
}
