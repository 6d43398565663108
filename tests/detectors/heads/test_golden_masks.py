"""MaskFormer and Mask2Former: mmdet 3.3.0's numbers, whatever stands in the padding."""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import MaskFormerOutputs, MaskPoints, build_head

KINDS = {"maskformer": "MaskFormerHead", "mask2former": "Mask2FormerHead"}
CASES = [name for kind in KINDS for name in names("queries", kind)]
SHORT = [f"{kind}_base" for kind in KINDS]
POINTS = {"matching": "points_match", "candidates": "points_over", "rest": "points_rand"}
PARTS = {"cls_scores": "cls", "mask_preds": "mask"}


@functools.cache
def case_of(name):
    return read("queries", name)


def head_of(config):
    """The head of mmdet's config, as its detector would build it."""
    head = dict(config["head"])
    classes = head.pop("num_classes")
    assigner = {"type": "HungarianAssigner", "match_costs": config["match_costs"]}
    training = {"assigner": assigner, "sampler": {"type": "MaskPseudoSampler"}}
    points = config.get("points", {})
    keys = ("num_points", "oversample_ratio", "importance_sample_ratio")
    training |= {key: points[key] for key in keys if key in points}
    kind = KINDS[config["family"]]
    classes = {"num_things_classes": classes - 1, "num_stuff_classes": 1}
    return build_head({"type": kind, **classes, **head}, training)


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, labels, masks, options):
        losses = head.loss(outputs, labels, masks, **options)
        return sum(losses.values()), (losses, head.targets(outputs, labels, masks, **options))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def assert_equals_mmdet(name, dtype, padding, with_matching=False):
    arrays, config = case_of(name)
    outputs = MaskFormerOutputs(*(arrays[f"in_{part}"].astype(dtype) for part in PARTS.values()))
    labels = arrays["gt_labels"]
    masks = np.where(labels[..., None, None] < 0, padding, arrays["gt_masks"])
    masks = masks.astype(np.float32 if np.isnan(padding) else bool)
    options = {"gt_inds": arrays["gt_inds"]} if with_matching else {}
    if "points" in config:
        points = MaskPoints(**{key: arrays[x].astype(dtype) for key, x in POINTS.items()})
        options["points"] = points
    result = program(head_of(config))(outputs, labels, masks, options)
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, result)

    gt_inds = targets.gt_inds
    np.testing.assert_array_equal(gt_inds, arrays["gt_inds"])
    np.testing.assert_array_equal(targets.label_weights, 1)
    background = config["head"]["num_classes"]
    picked = np.take_along_axis(labels[None], np.maximum(gt_inds - 1, 0), axis=2)
    np.testing.assert_array_equal(targets.labels, np.where(gt_inds > 0, picked, background))
    exact = dtype == np.float64
    assert losses.keys() == set(config["loss_names"])
    for key, value in losses.items():
        assert value.dtype == dtype
        rtol = 1e-9 if exact else 2e-5
        np.testing.assert_allclose(value, arrays[f"exp_{key}"], rtol, err_msg=key)
    for key, part in PARTS.items():
        expected = arrays[f"grad_{part}"]
        atol = (1e-9 if exact else 5e-5) * np.abs(expected).max()
        np.testing.assert_allclose(getattr(gradient, key), expected, 0, atol, err_msg=key)


def test_all_files_are_here():
    assert len(CASES) == 12
    assert {case_of(name)[1]["family"] for name in CASES} == set(KINDS)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", few(CASES, SHORT))
def test_float64(name, x64):
    assert_equals_mmdet(name, np.float64, np.nan)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_float32(name):
    assert_equals_mmdet(name, np.float32, 1)


@pytest.mark.long
@pytest.mark.parametrize("name", SHORT)
def test_the_matching_may_be_given(name, x64):
    assert_equals_mmdet(name, np.float64, np.nan, with_matching=True)
