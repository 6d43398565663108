"""RTMDet with masks in mmdet's form, for small objects."""

model = dict(
    type="RTMDet",
    bbox_head=dict(
        type="RTMDetInsHead",
        num_classes=10,
        anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[4, 8]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=5.0),
        loss_mask=dict(type="DiceLoss", loss_weight=2.0, eps=5e-6, reduction="mean"),
        mask_loss_stride=1,  # Half a pixel, which coarser ones are off by, counts for thin strokes.
        max_masks=32,  # The most positives of an image: 5 of each of 6 boxes.
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
        mask_thr_binary=0.5,
    ),
)
