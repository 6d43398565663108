"""YOLOv8 in mmyolo's form, for small objects."""

model = dict(
    type="YOLODetector",
    bbox_head=dict(
        type="YOLOv8Head",
        head_module=dict(
            type="YOLOv8HeadModule",
            num_classes=10,
            featmap_strides=[4, 8],
            reg_max=16,
        ),
        prior_generator=dict(type="mmdet.MlvlPointGenerator", offset=0.5, strides=[4, 8]),
        bbox_coder=dict(type="DistancePointBBoxCoder"),
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="none", loss_weight=0.5
        ),
        loss_bbox=dict(
            type="IoULoss",
            iou_mode="ciou",
            bbox_format="xyxy",
            reduction="sum",
            loss_weight=7.5,
            return_iou=False,
        ),
        loss_dfl=dict(type="mmdet.DistributionFocalLoss", reduction="mean", loss_weight=1.5 / 4),
    ),
    train_cfg=dict(
        assigner=dict(
            type="BatchTaskAlignedAssigner",
            num_classes=10,
            use_ciou=True,
            topk=10,
            alpha=0.5,
            beta=6.0,
            eps=1e-9,
        )
    ),
    test_cfg=dict(
        multi_label=True,
        nms_pre=1000,
        score_thr=0.001,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
    ),
)
