"""RTMDet in mmdet's form, for small objects."""

model = dict(
    type="RTMDet",
    bbox_head=dict(
        type="RTMDetHead",
        num_classes=10,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[4, 8]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
    ),
    train_cfg=dict(
        assigner=dict(type="DynamicSoftLabelAssigner", topk=5),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000,
        min_bbox_size=0,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
    ),
)
