"""Conditional, DAB and Deformable DETR: mmdet 3.3.0's numbers, whatever stands in the padding."""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import DETROutputs, build_head

KINDS = {
    "conditional": "ConditionalDETRHead",
    "dab": "DABDETRHead",
    "deformable": "DeformableDETRHead",
}
CASES = [name for kind in KINDS for name in names("queries", kind)]
# Without `--all` one case of each kind.
SHORT = [f"{kind}_base" for kind in KINDS]
PARTS = {
    "cls_scores": "cls",
    "bbox_preds": "box",
    "enc_cls_scores": "enc_cls",
    "enc_bbox_preds": "enc_box",
}


@functools.cache
def case_of(name):
    return read("queries", name)


def test_all_files_are_here():
    kinds = [case_of(name)[1]["head"]["type"] for name in CASES]
    assert {kind: kinds.count(kind) for kind in KINDS.values()} == dict(
        zip(KINDS.values(), (3, 3, 5), strict=True)
    )


def arguments(arrays, dtype, padding):
    """The arguments of a head's `loss`, with something else in the ground truth's padding."""
    parts = {key: arrays.get(f"in_{part}") for key, part in PARTS.items()}
    outputs = DETROutputs(**{k: x if x is None else x.astype(dtype) for k, x in parts.items()})
    labels = arrays["gt_labels"]
    boxes = np.where(labels[..., None] < 0, padding, arrays["gt_bboxes"]).astype(dtype)
    return outputs, boxes, labels, arrays["img_shapes"]


def replay(name, dtype, padding, **matching):
    """(losses, gradient by the outputs, targets)"""
    arrays, config = case_of(name)
    head = build_head(config["head"])
    outputs, *truth = arguments(arrays, dtype, padding)

    def total(outputs):
        losses = head.loss(outputs, *truth, **matching)
        return sum(losses.values()), losses

    (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(outputs)
    return losses, gradient, head.targets(outputs, *truth)


def assert_equal(name, dtype, results, rtol, gradient_tolerance):
    arrays, config = case_of(name)
    losses, gradient, targets = results
    np.testing.assert_array_equal(targets.gt_inds, arrays["gt_inds"])
    assert losses.keys() == set(config["loss_names"])
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, arrays[f"exp_{key}"], rtol, err_msg=key)
    for key, part in PARTS.items():
        if (expected := arrays.get(f"grad_{part}")) is not None:
            atol = gradient_tolerance * np.abs(expected).max()
            np.testing.assert_allclose(getattr(gradient, key), expected, 0, atol, err_msg=key)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", few(CASES, SHORT))
def test_float64(name, x64):
    assert_equal(name, np.float64, replay(name, np.float64, np.nan), 1e-9, 1e-9)


@pytest.mark.parametrize("name", few(CASES, SHORT[-1:]))
def test_float32(name):
    assert_equal(name, np.float32, replay(name, np.float32, 33.0), 2e-5, 5e-5)


@pytest.mark.parametrize("kind", few(KINDS, ("deformable",)))
def test_the_matching_may_be_given(kind, x64):
    name = f"{kind}_base"
    gt_inds = case_of(name)[0]["gt_inds"]
    given = replay(name, np.float64, np.nan, gt_inds=gt_inds)
    assert_equal(name, np.float64, given, 1e-9, 1e-9)
