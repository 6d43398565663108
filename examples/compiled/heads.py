"""The heads of one stage whose programs are read, and the shapes of a batch for each of them."""

from typing import Any

import jax
import numpy as np

from visdet_jax import configs
from visdet_jax.detectors import (
    CenterNetHead,
    DETROutputs,
    DFINECriterion,
    DFINEOutputs,
    HeadOutputs,
    Mask2FormerHead,
    MaskFormerOutputs,
    QueryHead,
    RFDETRCriterion,
    RFDETROutputs,
    RTDETRCriterion,
)

# height, width in pixels: for strides 8 to 128, for 8 to 32, and for 4.
COCO, SQUARE, CROP = (800, 1333), (640, 640), (512, 512)
DECODER_LAYERS, MASK_LAYERS, DENOISING = 6, 9, 200

_CLASSES = {"num_classes": 80}
_ANCHORS = configs.ATSS_HEAD["bbox_head"]["anchor_generator"]


def _head(kind: str, assigner: str | None = None, **settings: Any) -> dict[str, Any]:
    """A config of a head with the losses that mmdet's configs give it, which are its defaults."""
    config: dict[str, Any] = {"bbox_head": {"type": kind, **_CLASSES, **settings}}
    return config | ({"train_cfg": {"assigner": {"type": assigner}}} if assigner else {})


HEADS = {
    "RetinaNet": configs.RETINANET_HEAD,
    "FCOS": configs.FCOS_HEAD,
    "ATSS": configs.ATSS_HEAD,
    "GFL": configs.GFL_HEAD,
    "VFNet": _head("VFNetHead"),
    # In its second phase, by predictions.
    "TOOD": {
        "bbox_head": {"type": "TOODHead", **_CLASSES, "anchor_generator": _ANCHORS},
        "train_cfg": {"assigner": {"type": "TaskAlignedAssigner"}, "initial_epoch": 0},
    },
    "YOLOv5": _head("YOLOv5Head"),
    "YOLOX": _head("YOLOXHead"),
    "RTMDet": _head("RTMDetHead"),
    "RTMDet of mmyolo": _head("YOLORTMDetHead", "BatchDynamicSoftLabelAssigner"),
    "RTMDet-Ins": _head("RTMDetInsHead"),
    "YOLOv8 of mmyolo": _head("YOLOv8Head", "BatchTaskAlignedAssigner"),
    "YOLOv8": _head("YOLOHead"),
    "CenterNet": _head("CenterNetHead"),
    "CenterNet2, first stage": _head("CenterNetUpdateHead"),
    "DETR, 100 queries": configs.DETR_HEAD,
    "Deformable DETR, 300 queries": configs.DEFORMABLE_DETR_HEAD,
    "RT-DETR, 300 queries": configs.RTDETR_HEAD,
    "D-FINE, 300 queries": configs.DFINE_HEAD,
    # In each of 13 groups.
    "RF-DETR, 300 queries": configs.RFDETR_HEAD,
    "Mask2Former, 100 queries": {
        "bbox_head": {
            "type": "Mask2FormerHead",
            "num_things_classes": _CLASSES["num_classes"],
            "num_stuff_classes": 53,
        }
    },
}


def shapes_of_batch(
    name: str, head: Any, batch: int, scale: float, boxes: int
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Outputs of a head, ground truth, and keywords of its loss, as shapes without values.

    Args:
      name: By which HEADS has it.
      head: It, built.
      batch: Number of images.
      scale: Multiplies the sides of the images.
      boxes: Rows of ground truth for each image.
    """

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.float32)

    labels = jax.ShapeDtypeStruct((batch, boxes), np.int32)
    sides = jax.ShapeDtypeStruct((batch, 2), np.int32)
    truth = (floats(batch, boxes, 4), labels, sides)
    if isinstance(head, Mask2FormerHead):
        height, width = (round(side * scale) for side in COCO)
        queries, classes = int(name.split()[-2]), head.num_things_classes + head.num_stuff_classes
        # Its queries before the first layer count as a layer.
        rows = 1 + MASK_LAYERS, batch, queries
        masks = floats(*rows, -(-height // 4), -(-width // 4))
        bitmaps = jax.ShapeDtypeStruct((batch, boxes, height, width), np.bool_)
        key = jax.ShapeDtypeStruct((2,), np.uint32)
        outputs = MaskFormerOutputs(floats(*rows, 1 + classes), masks)
        return outputs, (labels, bitmaps), {"key": key}
    if isinstance(head, QueryHead):
        return _outputs_of_queries(head, batch, int(name.split()[-2])), truth, {}
    if isinstance(head, CenterNetHead):
        size = [-(-round(side * scale) // 4) for side in CROP]
        maps: dict[str, Any] = {
            key: (floats(batch, *size, count),) for key, count in head.channels.items()
        }
        return HeadOutputs(**maps), truth, {}
    shape = COCO if len(head.strides) == len(configs.FCOS_HEAD["bbox_head"]["strides"]) else SQUARE
    sizes = [[-(-round(side * scale) // stride) for side in shape] for stride in head.strides]
    maps = {
        key: tuple(floats(batch, *size, head.num_base_priors * channels) for size in sizes)
        for key, channels in head.channels.items()
    }
    keywords: dict[str, Any] = {}
    if "mask_feats" in head.other_outputs:
        maps["mask_feats"] = floats(batch, *sizes[0], head.num_prototypes)
        covered = (size * head.strides[0] for size in sizes[0])
        keywords["gt_masks"] = jax.ShapeDtypeStruct((batch, boxes, *covered), np.bool_)
    return HeadOutputs(**maps), (*truth, sides), keywords


def _outputs_of_queries(head: Any, batch: int, queries: int) -> Any:
    """What a decoder gives, with an encoder and denoising queries where the head takes them."""
    channels = head.channels["cls_scores"]

    def predictions(part: str, *rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        sizes = {"cls_scores": channels, "bbox_preds": 4}
        return {
            f"{part}{name}": jax.ShapeDtypeStruct((*rows, size), np.float32)
            for name, size in sizes.items()
        }

    if isinstance(head, RFDETRCriterion):
        queries *= head.group_detr
    outputs = predictions("", DECODER_LAYERS, batch, queries)
    if not isinstance(head, RFDETRCriterion | RTDETRCriterion):
        return DETROutputs(**outputs)
    outputs |= predictions("enc_", batch, queries)
    if isinstance(head, RFDETRCriterion):
        return RFDETROutputs(**outputs)
    outputs |= predictions("dn_", DECODER_LAYERS, batch, DENOISING)
    outputs["dn_gt_inds"] = jax.ShapeDtypeStruct((batch, DENOISING), np.int32)
    if not isinstance(head, DFINECriterion):
        return DETROutputs(**outputs)
    for part, count in (("", queries), ("dn_", DENOISING)):
        outputs |= predictions(f"{part}pre_", batch, count)
        corners = (DECODER_LAYERS, batch, count, 4 * (head.reg_max + 1))
        outputs[f"{part}corners"] = jax.ShapeDtypeStruct(corners, np.float32)
        outputs[f"{part}ref_points"] = jax.ShapeDtypeStruct((batch, count, 4), np.float32)
    number = jax.ShapeDtypeStruct((1,), np.float32)
    return DFINEOutputs(**outputs, up=number, reg_scale=number)
