"""The network's outputs."""

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


def test_detr_outputs_follow_the_image():
    """A set after each of 3 layers and a proposal of each cell; more queries in larger images."""
    head = heads.make_heads(read_model("detr", {}), 3, [4, 8])["bbox_head"]
    for shape, cells, queries in (((96, 96), 144, 24), ((64, 200), 200, 34)):
        outputs = nnx.eval_shape(
            lambda shape=shape: network.Detector(head, rngs=nnx.Rngs(0))(
                np.zeros((2, *shape, 3), np.uint8)
            )
        )
        assert [x.shape for x in outputs] == [
            (3, 2, queries, 3),
            (3, 2, queries, 4),
            (2, cells, 3),
            (2, cells, 4),
        ]
