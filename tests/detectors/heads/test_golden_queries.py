"""Conditional, DAB and Deformable DETR, DINO, Grounding DINO: mmdet 3.3.0's numbers.

They are the same whatever stands in the ground truth's padding.
"""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import DETROutputs, build_head

# Each kind's head, and how many files there are.
KINDS = {
    "conditional": ("ConditionalDETRHead", 3),
    "dab": ("DABDETRHead", 3),
    "deformable": ("DeformableDETRHead", 5),
    "dino": ("DINOHead", 10),
    "grounding": ("GroundingDINOHead", 6),
}
CASES = [name for kind in KINDS for name in names("queries", kind)]
# Without `--all` one case of each kind.
SHORT = [f"{kind}_base" for kind in KINDS]
PARTS = {
    "cls_scores": "cls",
    "bbox_preds": "box",
    "enc_cls_scores": "enc_cls",
    "enc_bbox_preds": "enc_box",
    "dn_cls_scores": "dn_cls",
    "dn_bbox_preds": "dn_box",
}


@functools.cache
def case_of(name):
    return read("queries", name)


def test_all_files_are_here():
    kinds = [case_of(name)[1]["head"]["type"] for name in CASES]
    assert {head: kinds.count(head) for head, _ in KINDS.values()} == dict(KINDS.values())


def arguments(arrays, dtype, padding):
    """(outputs, ground truth, texts by name), with something else in the ground truth's padding."""
    parts = {key: arrays.get(f"in_{part}") for key, part in PARTS.items()}
    parts = {k: x if x is None else x.astype(dtype) for k, x in parts.items()}
    outputs, options = DETROutputs(**parts, dn_gt_inds=arrays.get("dn_gt_inds")), {}
    labels = arrays["gt_labels"]
    is_padding = labels[..., None] < 0
    boxes = np.where(is_padding, padding, arrays["gt_bboxes"]).astype(dtype)
    if "positive_maps" in arrays:
        maps = np.where(is_padding, padding, arrays["positive_maps"]).astype(dtype)
        options = {"positive_maps": maps, "text_token_mask": arrays["text_token_mask"]}
    return outputs, (boxes, labels, arrays["img_shapes"]), options


def replay(name, dtype, padding, **matching):
    """(losses, gradient by the outputs, targets)"""
    arrays, config = case_of(name)
    head = build_head(config["head"])
    outputs, truth, text = arguments(arrays, dtype, padding)

    def total(outputs):
        losses = head.loss(outputs, *truth, **text, **matching)
        return sum(losses.values()), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True, allow_int=True)(outputs)
    return losses, gradient, head.targets(outputs, *truth, **text)


def assert_equal(name, dtype, results, rtol, gradient_tolerance):
    arrays, config = case_of(name)
    losses, gradient, targets = results
    np.testing.assert_array_equal(targets.gt_inds, arrays["gt_inds"])
    assert losses.keys() == set(config["loss_names"])
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, arrays[f"exp_{key}"].sum(), rtol, err_msg=key)
    for key, part in PARTS.items():
        if (expected := arrays.get(f"grad_{part}")) is not None:
            atol = gradient_tolerance * np.abs(expected).max(initial=0)
            np.testing.assert_allclose(getattr(gradient, key), expected, 0, atol, err_msg=key)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(CASES, SHORT))
def test_float64(name, x64):
    assert_equal(name, np.float64, replay(name, np.float64, np.nan), 1e-9, 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    assert_equal(name, np.float32, replay(name, np.float32, 33.0), 2e-5, 5e-5)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_the_matching_may_be_given(kind, x64):
    name = f"{kind}_base"
    arrays, _ = case_of(name)
    matching = {key: arrays[key] for key in ("gt_inds", "enc_gt_inds") if key in arrays}
    given = replay(name, np.float64, np.nan, **matching)
    assert_equal(name, np.float64, given, 1e-9, 1e-9)
