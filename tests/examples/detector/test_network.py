"""The network's outputs."""

import jax
import numpy as np
import pytest
from flax import nnx

from detector import heads, network
from detector.config import read_model
from visdet_jax.detectors import HeadOutputs

pytestmark = pytest.mark.example


def test_fcos_distances_are_positive_in_pixels_or_strides():
    units = []
    for norm_on_bbox in (False, True):
        model = read_model("fcos", {})
        model["bbox_head"]["norm_on_bbox"] = norm_on_bbox
        head = heads.make_heads(model, 3, [4, 8])["bbox_head"]
        towers = nnx.eval_shape(lambda head=head: network.Towers(8, head, rngs=nnx.Rngs(0)))
        outputs = HeadOutputs(*[[np.ones((1, 2, 2, 4), "f4")] * 2] * 3)
        units.append(towers.units)
        assert head.decode(
            outputs._replace(
                cls_scores=[np.ones((1, 2, 2, 3), "f4")] * 2,
                centernesses=[np.ones((1, 2, 2, 1), "f4")] * 2,
            )
        ).boxes[0, 0].tolist() == ([-2, -2, 6, 6] if norm_on_bbox else [1, 1, 3, 3])
    assert units == [(4, 8), (1, 1)]


@pytest.mark.long
def test_detr_outputs_follow_the_image():
    """A set after each of 3 layers and a proposal of each cell; more queries in larger images."""
    head = heads.make_heads(read_model("detr", {}), 3, [4, 8])["bbox_head"]
    for shape, cells, queries in (((96, 96), 144, 24), ((64, 200), 200, 34)):
        outputs = nnx.eval_shape(
            lambda shape=shape: network.Detector(head, rngs=nnx.Rngs(0))(
                np.zeros((2, *shape, 3), np.uint8)
            )
        )
        assert [x.shape for x in jax.tree.leaves(outputs)] == [
            (3, 2, queries, 3),
            (3, 2, queries, 4),
            (2, cells, 3),
            (2, cells, 4),
        ]


@pytest.mark.parametrize("detector", ["rtmdet", "rtmdet_ins", "yolov8"])
def test_losses_and_detections_of_points(detector):
    """All of a head's losses, and masks where the detector has them; only traced."""
    head = heads.make_heads(read_model(detector, {}), 3, [4, 8])["bbox_head"]
    batch = {
        "images": np.zeros((2, 64, 48, 3), np.uint8),
        "boxes": np.zeros((2, 5, 4), np.float32),
        "labels": np.zeros((2, 5), np.int32),
        "masks": np.zeros((2, 5, 64, 48), np.bool_),
    }

    def run(batch):
        built = network.Detector(head, width=8, channels=8, rngs=nnx.Rngs(0))
        return built.losses(batch, jax.random.key(0)), built.detect(batch["images"], 7)

    losses, (found, masks) = nnx.eval_shape(run, batch)
    assert sorted(losses) == sorted(head.init())
    assert found.boxes.shape == (2, 7, 4)
    if detector == "rtmdet_ins":
        assert (masks.shape, masks.dtype) == ((2, 7, 64, 48), np.bool_)
    else:
        assert masks is None


@pytest.mark.long
def test_rtmdet_distances_are_in_pixels():
    """What the last convolution gives is in strides, and may be negative."""
    head = heads.make_heads(read_model("rtmdet", {}), 3, [4, 8])["bbox_head"]
    towers = network.Towers(8, head, rngs=nnx.Rngs(0))
    towers.boxes.kernel[...] = np.zeros(towers.boxes.kernel.shape, "f4")
    towers.boxes.bias[...] = np.array([1, 2, -0.5, 3], "f4")
    outputs = towers([np.ones((1, side, side, 8), "f4") for side in (4, 2)])
    for stride, boxes in zip(head.strides, outputs.bbox_preds, strict=True):
        assert boxes[0, 0, 0].tolist() == [stride, 2 * stride, -0.5 * stride, 3 * stride]
    assert head.decode(outputs).boxes[0, 0].tolist() == [-4, -8, -2, 12]
