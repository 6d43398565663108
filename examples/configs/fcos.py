"""FCOS in mmdet's form, for small objects."""

model = dict(
    type="FCOS",
    bbox_head=dict(
        type="FCOSHead",
        num_classes=10,
        strides=[4, 8],
        regress_ranges=((-1, 16), (16, 1e8)),
        center_sampling=True,
        center_sample_radius=1.5,
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
    ),
)
