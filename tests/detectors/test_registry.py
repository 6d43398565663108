"""From configs to heads: mmdet's as they stand, every kind of mapping, and messages of errors."""

import dataclasses
import re

import ml_collections
import omegaconf
import pytest

from head_cases import EVERY_ROW
from visdet_jax import GHMC, GHMR, FocalLoss, GIoULoss, IoULoss, L1Loss
from visdet_jax.detectors import (
    HEADS,
    NETWORK_KEYS,
    ATSSAssigner,
    DeltaXYWHBBoxCoder,
    FCOSHead,
    MaxIoUAssigner,
    QueryTestConfig,
    RetinaHead,
    TestConfig,
    build_detector,
    build_head,
)

FOCAL = {
    "type": "FocalLoss",
    "use_sigmoid": True,
    "gamma": 2.0,
    "alpha": 0.25,
    "loss_weight": 1.0,
}
CENTERNESS = {"type": "CrossEntropyLoss", "use_sigmoid": True, "loss_weight": 1.0}
NETWORK = {"num_classes": 80, "in_channels": 256, "stacked_convs": 4, "feat_channels": 256}
ONE_ANCHOR = {
    "type": "AnchorGenerator",
    "ratios": [1.0],
    "octave_base_scale": 8,
    "scales_per_octave": 1,
    "strides": [8, 16, 32, 64, 128],
}
NMS = {"nms_pre": 1000, "min_bbox_size": 0, "score_thr": 0.05, "max_per_img": 100}
MAX_IOU = {
    "type": "MaxIoUAssigner",
    "pos_iou_thr": 0.5,
    "neg_iou_thr": 0.4,
    "min_pos_iou": 0,
    "ignore_iof_thr": -1,
}


def match_by(cls_cost):
    costs = [
        cls_cost,
        {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
        {"type": "IoUCost", "iou_mode": "giou", "weight": 2.0},
    ]
    return {"assigner": {"type": "HungarianAssigner", "match_costs": costs}}


RETINA_TRAIN = {
    "assigner": MAX_IOU,
    "sampler": {"type": "PseudoSampler"},
    "allowed_border": -1,
    "pos_weight": -1,
    "debug": False,
}
ATSS_TRAIN = {
    "assigner": {"type": "ATSSAssigner", "topk": 9},
    "allowed_border": -1,
    "pos_weight": -1,
    "debug": False,
}
RETINA = {
    "type": "RetinaHead",
    **NETWORK,
    "anchor_generator": {
        "type": "AnchorGenerator",
        "octave_base_scale": 4,
        "scales_per_octave": 3,
        "ratios": [0.5, 1.0, 2.0],
        "strides": [8, 16, 32, 64, 128],
    },
    "bbox_coder": {
        "type": "DeltaXYWHBBoxCoder",
        "target_means": [0.0, 0.0, 0.0, 0.0],
        "target_stds": [1.0, 1.0, 1.0, 1.0],
    },
    "loss_cls": FOCAL,
    "loss_bbox": {"type": "L1Loss", "loss_weight": 1.0},
}
FCOS = {
    "type": "FCOSHead",
    **NETWORK,
    "strides": [8, 16, 32, 64, 128],
    "loss_cls": FOCAL,
    "loss_bbox": {"type": "IoULoss", "loss_weight": 1.0},
    "loss_centerness": CENTERNESS,
}
# bbox_head and train_cfg of mmdet 3.3.0's configs, by their files.
MMDET = {
    "retinanet/retinanet_r50_fpn_1x_coco": (RETINA, RETINA_TRAIN),
    "ghm/retinanet_r50_fpn_ghm-1x_coco": (
        {
            **RETINA,
            "loss_cls": {
                "type": "GHMC",
                "bins": 30,
                "momentum": 0.75,
                "use_sigmoid": True,
                "loss_weight": 1.0,
            },
            "loss_bbox": {
                "type": "GHMR",
                "mu": 0.02,
                "bins": 10,
                "momentum": 0.7,
                "loss_weight": 10.0,
            },
        },
        RETINA_TRAIN,
    ),
    "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco": (FCOS, None),
    "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco": (
        {
            **FCOS,
            "norm_on_bbox": True,
            "centerness_on_reg": True,
            "dcn_on_last_conv": False,
            "center_sampling": True,
            "conv_bias": True,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 1.0},
        },
        None,
    ),
    "atss/atss_r50_fpn_1x_coco": (
        {
            "type": "ATSSHead",
            **NETWORK,
            "anchor_generator": ONE_ANCHOR,
            "bbox_coder": {
                "type": "DeltaXYWHBBoxCoder",
                "target_means": [0.0, 0.0, 0.0, 0.0],
                "target_stds": [0.1, 0.1, 0.2, 0.2],
            },
            "loss_cls": FOCAL,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
            "loss_centerness": CENTERNESS,
        },
        ATSS_TRAIN,
    ),
    "gfl/gfl_r50_fpn_1x_coco": (
        {
            "type": "GFLHead",
            **NETWORK,
            "anchor_generator": ONE_ANCHOR,
            "loss_cls": {
                "type": "QualityFocalLoss",
                "use_sigmoid": True,
                "beta": 2.0,
                "loss_weight": 1.0,
            },
            "loss_dfl": {"type": "DistributionFocalLoss", "loss_weight": 0.25},
            "reg_max": 16,
            "loss_bbox": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        ATSS_TRAIN,
    ),
    "detr/detr_r50_8xb2-150e_coco": (
        {
            "type": "DETRHead",
            "num_classes": 80,
            "embed_dims": 256,
            "loss_cls": {
                "type": "CrossEntropyLoss",
                "bg_cls_weight": 0.1,
                "use_sigmoid": False,
                "loss_weight": 1.0,
                "class_weight": 1.0,
            },
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
            "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        match_by({"type": "ClassificationCost", "weight": 1.0}),
    ),
    "deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco": (
        {
            "type": "DeformableDETRHead",
            "num_classes": 80,
            "sync_cls_avg_factor": True,
            "as_two_stage": True,
            "num_pred_layer": 7,
            "share_pred_layer": False,
            "loss_cls": {**FOCAL, "loss_weight": 2.0},
            "loss_bbox": {"type": "L1Loss", "loss_weight": 5.0},
            "loss_iou": {"type": "GIoULoss", "loss_weight": 2.0},
        },
        match_by({"type": "FocalLossCost", "weight": 2.0}),
    ),
}
WITH_STRIDES = [name for name in MMDET if "detr" not in name]


@pytest.mark.parametrize("name", MMDET)
def test_mmdets_configs(name):
    bbox_head, train_cfg = MMDET[name]
    before = repr((bbox_head, train_cfg))
    head = build_head(bbox_head, train_cfg=train_cfg)
    assert repr((bbox_head, train_cfg)) == before
    assert type(head) is HEADS[bbox_head["type"]]
    assert head.num_classes == 80
    assert head == build_head({**bbox_head, "train_cfg": train_cfg})
    tested = build_head({**bbox_head, "test_cfg": NMS, "init_cfg": None}, train_cfg)
    assert tested == build_head(bbox_head, train_cfg, NMS)
    expected = QueryTestConfig if "detr" in name else TestConfig
    assert tested.test_cfg == expected(**NMS)


@pytest.mark.parametrize("name", WITH_STRIDES)
def test_mmdets_strides(name):
    assert build_head(*MMDET[name]).strides == (8, 16, 32, 64, 128)


def test_what_a_config_says_is_what_the_head_has():
    head = build_head(*MMDET["retinanet/retinanet_r50_fpn_1x_coco"])
    assert head.assigner == MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)
    assert head.loss_cls == FocalLoss(gamma=2.0, alpha=0.25)
    assert head.loss_bbox == L1Loss()
    assert head.num_base_priors == 9
    head = build_head(*MMDET["ghm/retinanet_r50_fpn_ghm-1x_coco"])
    assert head.loss_cls == GHMC(bins=30, momentum=0.75)
    assert head.loss_bbox == GHMR(momentum=0.7, loss_weight=10.0)
    name = "fcos/fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco"
    head = build_head(*MMDET[name])
    assert (head.norm_on_bbox, head.center_sampling, head.center_sample_radius) == (True, True, 1.5)
    head = build_head(*MMDET["atss/atss_r50_fpn_1x_coco"])
    assert head.assigner == ATSSAssigner(topk=9)
    assert head.bbox_coder == DeltaXYWHBBoxCoder(target_stds=(0.1, 0.1, 0.2, 0.2))
    assert head.loss_bbox == GIoULoss(loss_weight=2.0)


def test_mmdets_defaults():
    assert build_head({"type": "FCOSHead", "num_classes": 80}).strides == (4, 8, 16, 32, 64)
    head = build_head({"type": "FCOSHead", "num_classes": 80})
    assert head.regress_ranges[-1] == (512, 1e8)
    assert head.loss_bbox == IoULoss()
    head = build_head({"type": "RetinaHead", "num_classes": 80, "loss_cls": FOCAL}, RETINA_TRAIN)
    assert head == build_head(
        {**RETINA, "loss_bbox": {"type": "SmoothL1Loss", "beta": 1 / 9}}, RETINA_TRAIN
    )


def test_train_cfg_is_keys_of_the_head():
    train_cfg = {**RETINA_TRAIN, "allowed_border": 0, "pos_weight": 2.5}
    head = build_head(RETINA, train_cfg)
    assert (head.allowed_border, head.pos_weight) == (0, 2.5)
    settings = {k: v for k, v in train_cfg.items() if k != "debug"}
    assert head == build_head({**RETINA, **settings})
    with pytest.raises(ValueError, match="pos_weight stands in the head's config and in its train"):
        build_head({**RETINA, "pos_weight": 1.0}, train_cfg)


def test_the_train_cfg_that_is_given_goes_before_the_heads_own():
    own = {**RETINA_TRAIN, "pos_weight": 3.0}
    assert build_head({**RETINA, "train_cfg": own}).pos_weight == 3
    assert build_head({**RETINA, "train_cfg": own}, RETINA_TRAIN).pos_weight == -1


MAPPINGS = {
    ml_collections.ConfigDict: MMDET,
    ml_collections.FrozenConfigDict: WITH_STRIDES,  # It holds no list of dicts, such as costs.
    omegaconf.OmegaConf.create: MMDET,
}


@pytest.mark.parametrize(
    ("make", "name"), [(make, name) for make, names in MAPPINGS.items() for name in names]
)
def test_other_mappings_however_deep(make, name):
    bbox_head, train_cfg = MMDET[name]
    config = make({"bbox_head": bbox_head, "train_cfg": train_cfg})
    assert build_head(config["bbox_head"], config["train_cfg"]) == build_head(bbox_head, train_cfg)


def test_a_name_a_scoped_name_and_a_class_are_the_same():
    expected = build_head(FCOS)
    for kind in ("mmdet.FCOSHead", "visdet.FCOSHead", FCOSHead):
        assert build_head({**FCOS, "type": kind}) == expected
    for kind in ("mmdet.IoULoss", IoULoss):
        assert build_head({**FCOS, "loss_bbox": {"type": kind}}) == expected
    path = "mmdet.models.dense_heads.retina_head.RetinaHead"
    for kind in (RetinaHead, "mmdet.RetinaHead", path):
        head = build_head({**RETINA, "type": kind}, RETINA_TRAIN)
        assert head == build_head(RETINA, RETINA_TRAIN)
    assert build_head({**RETINA, "_scope_": "mmdet"}, RETINA_TRAIN) == head


def test_objects_in_place_of_configs():
    assert build_head({**FCOS, "loss_bbox": IoULoss()}) == build_head(FCOS)
    assigner = MaxIoUAssigner(pos_iou_thr=0.5, neg_iou_thr=0.4)
    assert build_head(RETINA, {"assigner": assigner}) == build_head(RETINA, RETINA_TRAIN)


@pytest.mark.parametrize("key", [key for key in NETWORK_KEYS if key != "test_cfg"])
def test_keys_of_the_network_have_no_effect(key):
    assert build_head({**FCOS, key: 3}) == build_head(FCOS)


@pytest.mark.parametrize("name", EVERY_ROW)
def test_a_head_is_its_fields(name):
    head = EVERY_ROW[name].head()
    values = {field.name: getattr(head, field.name) for field in dataclasses.fields(head)}
    again = HEADS.build({"type": name, **values})
    assert again == head
    assert hash(again) == hash(head)


def change(config, **changes):
    return {**config, **changes}


ATSS, _ = MMDET["atss/atss_r50_fpn_1x_coco"]
GFL, _ = MMDET["gfl/gfl_r50_fpn_1x_coco"]
RANDOM = {"type": "RandomSampler", "num": 256, "pos_fraction": 0.5}


@pytest.mark.parametrize(
    ("config", "train_cfg", "error", "message"),
    [
        (
            change(FCOS, type="FCOSHed"),
            None,
            ValueError,
            "No head is called 'FCOSHed'. Did you mean 'FCOSHead'?",
        ),
        (FOCAL, None, ValueError, "No head is called 'FocalLoss'"),
        (
            change(FCOS, norm_on_box=True),
            None,
            ValueError,
            "FCOSHead has no key 'norm_on_box'. Did you mean 'norm_on_bbox'? Its keys: num_classes",
        ),
        (
            change(FCOS, loss_cls={"type": "FocaLoss"}),
            None,
            ValueError,
            "No loss is called 'FocaLoss'. Did you mean 'FocalLoss'?",
        ),
        (
            change(FCOS, loss_cls={"type": "FocalLoss", "gama": 2.0}),
            None,
            ValueError,
            "FocalLoss has no key 'gama'. Did you mean 'gamma'?",
        ),
        (
            RETINA,
            {"assigner": change(MAX_IOU, type="MaxIouAssigner")},
            ValueError,
            "No task util is called 'MaxIouAssigner'. Did you mean 'MaxIoUAssigner'?",
        ),
        (
            change(RETINA, anchor_generator={"type": "AnchorGenerator", "stride": [8]}),
            RETINA_TRAIN,
            ValueError,
            "AnchorGenerator has no key 'stride'. Did you mean 'strides'?",
        ),
        (
            RETINA,
            change(RETINA_TRAIN, sampler=RANDOM),
            ValueError,
            "RetinaHead: sampler must be PseudoSampler, got RandomSampler(num=256",
        ),
        (RETINA, None, ValueError, "RetinaHead needs a key 'assigner' in its config"),
        (
            RETINA,
            None,
            ValueError,
            "or in its train_cfg: build_head(config, train_cfg=dict(assigner=...))",
        ),
        (
            {"type": "RetinaNet", "bbox_head": RETINA},
            None,
            ValueError,
            "write build_detector(config)",
        ),
        ({"bbox_head": RETINA}, None, ValueError, "write build_head(**config)"),
        (RETINA, {"asigner": MAX_IOU}, ValueError, "RetinaHead has no key 'asigner'."),
        ({"type": "FCOSHead"}, None, ValueError, "FCOSHead needs a key 'num_classes'"),
        ("FCOSHead", None, TypeError, "A head is built from a config such as dict(type=...)"),
        ({"num_classes": 3}, None, ValueError, "The config of a head needs a key 'type'"),
        (
            change(FCOS, num_classes=0),
            None,
            ValueError,
            "FCOSHead: num_classes must be at least 1, got 0",
        ),
        (
            change(FCOS, num_classes="x"),
            None,
            TypeError,
            "FCOSHead: num_classes must be an integer",
        ),
        (
            change(FCOS, loss_cls=3),
            None,
            TypeError,
            "FCOSHead: loss_cls must be Loss, got 3",
        ),
        (
            change(FCOS, strides=[8, 16]),
            None,
            ValueError,
            "FCOSHead: 2 strides need as many regress_ranges (low, high), got ((-1, 64),",
        ),
        # A loss that does not fit its place.
        (
            change(RETINA, loss_bbox={"type": "GIoULoss"}),
            RETINA_TRAIN,
            ValueError,
            "RetinaHead: GIoULoss(reduction='mean', loss_weight=1.0, inner_ratio=None, "
            "focaler=None, eps=1e-06) needs boxes: set reg_decoded_bbox=True",
        ),
        (
            change(RETINA, loss_cls={"type": "QualityFocalLoss"}),
            RETINA_TRAIN,
            ValueError,
            "RetinaHead: loss_cls gets",
        ),
        (
            change(GFL, loss_cls=FOCAL),
            ATSS_TRAIN,
            ValueError,
            "GFLHead: loss_cls gets",
        ),
        (
            change(RETINA, loss_cls={"type": "FocalLoss", "reduction": "none"}),
            RETINA_TRAIN,
            ValueError,
            "RetinaHead: loss_cls gets",
        ),
        (
            change(RETINA, loss_bbox={"type": "L1Loss", "reduction": "sum"}),
            RETINA_TRAIN,
            ValueError,
            "RetinaHead: loss_bbox gets",
        ),
        (change(FCOS, loss_cls={"type": "DiceLoss"}), None, ValueError, "FCOSHead: loss_cls gets"),
        (
            change(RETINA, loss_cls={"type": "SeesawLoss", "num_classes": 80}),
            RETINA_TRAIN,
            ValueError,
            "RetinaHead: loss_cls gets",
        ),
        (
            change(FCOS, loss_centerness={"type": "GIoULoss"}),
            None,
            ValueError,
            "FCOSHead: loss_centerness gets",
        ),
        (
            change(GFL, loss_dfl={"type": "FocalLoss"}),
            ATSS_TRAIN,
            ValueError,
            "GFLHead: loss_dfl gets",
        ),
        (
            change(ATSS, reg_decoded_bbox=False),
            ATSS_TRAIN,
            ValueError,
            "ATSSHead: reg_decoded_bbox must be True: the box loss is of boxes",
        ),
        (
            change(GFL, reg_decoded_bbox=False),
            ATSS_TRAIN,
            ValueError,
            "GFLHead: reg_decoded_bbox must be True: the box loss is of boxes",
        ),
        (
            change(GFL, reg_max=0),
            ATSS_TRAIN,
            ValueError,
            "GFLHead: reg_max must be at least 1, got 0",
        ),
        (
            change(GFL, anchor_generator=change(ONE_ANCHOR, ratios=[0.5, 1.0])),
            ATSS_TRAIN,
            ValueError,
            "GFLHead: a cell must have one anchor, got 2",
        ),
    ],
)
def test_messages(config, train_cfg, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build_head(config, train_cfg)


def test_an_error_in_a_nested_config_names_its_place():
    config = {**FCOS, "loss_cls": {"type": "FocaLoss"}}
    with pytest.raises(ValueError, match="FCOSHead: loss_cls: No loss is called 'FocaLoss'"):
        build_head(config)
    config = {**RETINA, "bbox_coder": {"type": "DeltaXYWHBBoxCoder", "stds": [1, 1, 1, 1]}}
    with pytest.raises(ValueError, match="RetinaHead: bbox_coder: DeltaXYWHBBoxCoder has no key"):
        build_head(config, RETINA_TRAIN)


def test_a_list_of_heads_is_a_tuple_of_them():
    """As the models have that train several heads at once, each with its part of train_cfg."""
    name = "retinanet/retinanet_r50_fpn_1x_coco"
    atss, atss_train = MMDET["atss/atss_r50_fpn_1x_coco"]
    model = {"bbox_head": [RETINA, atss], "train_cfg": [RETINA_TRAIN, atss_train]}
    built = build_detector(model)["bbox_head"]
    assert built == (build_head(*MMDET[name]), build_head(atss, atss_train))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model": {"bbox_head": FCOS}}, "write config['model']"),
        ({"bbox_heads": FCOS}, "no key 'bbox_heads'. Did you mean 'bbox_head'?"),
        ({"bbox_head": FCOS, "tset_cfg": {}}, "no key 'tset_cfg'. Did you mean 'test_cfg'?"),
        ({"backbone": {}}, "a model must have one of"),
    ],
)
def test_models_that_do_not_fit(model, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_detector(model)
