"""Sparse R-CNN's stages: mmdet 3.3.0's numbers, whatever stands in the padding."""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import SparseRoIOutputs, build_head

CASES = names("queries", "sparse")
# mmdet does not clamp the divisor: without a box in the batch it divides by float32's eps.
EPS = float(np.finfo(np.float32).eps)
SHORT = ["sparse_weights"]
ROWS = 6  # Of ground truth in all cases: those of equal stages share their programs.


@functools.cache
def case_of(name):
    return read("queries", name)


def config_of(name):
    """(roi_head, train_cfg["rcnn"]) as configs of mmdet have them."""
    _, config = case_of(name)
    weights = config["stage_loss_weights"]
    assigner = {"type": "HungarianAssigner", "match_costs": config["match_costs"]}
    stage = {
        "assigner": assigner,
        "sampler": {"type": "PseudoSampler"},
        "pos_weight": config["pos_weight"],
    }
    head = {
        "type": "SparseRoIHead",
        "num_stages": len(weights),
        "stage_loss_weights": weights,
        "proposal_feature_channel": 256,
        "bbox_roi_extractor": {"type": "SingleRoIExtractor"},
        "bbox_head": [config["head"]] * len(weights),
    }
    return head, [stage] * len(weights)


def arguments(name, dtype, padding):
    """The arguments of `loss`, with something else in the ground truth's padding."""
    arrays, _ = case_of(name)
    outputs = SparseRoIOutputs(arrays["in_cls"].astype(dtype), arrays["in_box"].astype(dtype))
    more = ROWS - arrays["gt_labels"].shape[1]
    labels = np.pad(arrays["gt_labels"], ((0, 0), (0, more)), constant_values=-1)
    boxes = np.pad(arrays["gt_bboxes"], ((0, 0), (0, more), (0, 0)))
    boxes = np.where(labels[..., None] < 0, padding, boxes).astype(dtype)
    return outputs, boxes, labels, arrays["img_shapes"]


@functools.cache
def program(head):
    def total(outputs, *truth, **matching):
        losses = head.loss(outputs, *truth, **matching)
        return sum(losses.values()), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def assert_equal(name, dtype, padding, rtol, gradient_tolerance, **matching):
    arrays, config = case_of(name)
    head = build_head(*config_of(name))
    given = arguments(name, dtype, padding)
    (_, losses), gradient = program(head)(*given, **matching)
    np.testing.assert_array_equal(head.targets(*given).gt_inds, arrays["gt_inds"])
    assert losses.keys() == set(config["loss_names"])
    # Ours is the sum over the regions, divided by 1.
    factor = 1 if arrays["num_gts"].any() else EPS / (1 + EPS)
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, factor * arrays[f"exp_{key}"], rtol, err_msg=key)
    for found, part in zip(gradient, ("cls", "box"), strict=False):
        expected = factor * arrays[f"grad_{part}"]
        atol = gradient_tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, 0, atol, err_msg=part)


def test_all_files_are_here():
    assert len(CASES) == 5


@pytest.mark.parametrize("name", few(CASES, SHORT))
def test_float64(name, x64):
    assert_equal(name, np.float64, np.nan, 1e-9, 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    assert_equal(name, np.float32, 33.0, 2e-5, 5e-5)


def test_the_matching_may_be_given(x64):
    gt_inds = case_of("sparse_weights")[0]["gt_inds"]
    assert_equal("sparse_weights", np.float64, np.nan, 1e-9, 1e-9, gt_inds=gt_inds)
