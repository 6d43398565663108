"""Second stages whose losses are `StandardRoIHead`'s: Double-Head R-CNN's and TridentNet's."""

import chex
import jax
import numpy as np
import pytest

from visdet_jax.detectors import Proposals, RoIOutputs, StandardRoIHead, build_head

CLASSES = 3
STANDARD = {"type": "StandardRoIHead", "bbox_head": {"type": "BBoxHead", "num_classes": CLASSES}}
TRAIN = {
    "assigner": {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5},
    "sampler": {"type": "RandomSampler", "num": 8, "pos_fraction": 0.5},
}
VARIANTS = {
    "DoubleHeadRoIHead": {"reg_roi_scale_factor": 1.3},
    "TridentRoIHead": {"num_branch": 3, "test_branch_idx": 1},
}
every_variant = pytest.mark.parametrize("name", VARIANTS)


def head_of(name, **changes):
    return build_head({**STANDARD, "type": name, **VARIANTS.get(name, {}), **changes}, TRAIN)


def batch():
    """(proposals, boxes, labels, outputs)"""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 20, (2, 12, 2)), rng.uniform(6, 20, (2, 12, 2))
    proposals = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
    outputs = RoIOutputs(
        rng.normal(0, 1, (2, 8, CLASSES + 1)).astype(np.float32),
        rng.normal(0, 1, (2, 8, 4 * CLASSES)).astype(np.float32),
    )
    labels = np.array([[1, 2], [0, -1]], np.int32)
    return Proposals(proposals, np.ones((2, 12), bool)), proposals[:, :2] + 1, labels, outputs


@pytest.mark.one_in(2)
@every_variant
def test_the_losses_are_the_standard_heads(name):
    proposals, boxes, labels, outputs = batch()
    results = []
    for head in (head_of(name), head_of("StandardRoIHead")):
        samples = head.sample(proposals, boxes, labels, key=jax.random.key(0))
        results.append((samples, head.loss(outputs, samples)))
    chex.assert_trees_all_equal(*results)
    assert results[0][1]["loss_bbox"] > 0


@every_variant
def test_what_is_the_networks_has_no_effect_on_the_fields(name):
    assert isinstance(head_of(name), StandardRoIHead)
    assert head_of(name) == head_of(name)
    assert head_of(name) != head_of("StandardRoIHead")
    with pytest.raises(ValueError, match="StandardRoIHead has no key"):
        build_head({**STANDARD, **VARIANTS[name]}, TRAIN)


def test_a_branch_of_trident_is_detected_like_a_standard_head():
    proposals, *_, outputs = batch()
    some = Proposals(proposals.boxes[:, :8], proposals.exists[:, :8])
    found = head_of("TridentRoIHead").detect(outputs, some, np.full((2, 2), 40))
    expected = head_of("StandardRoIHead").detect(outputs, some, np.full((2, 2), 40))
    chex.assert_trees_all_equal(found, expected)
    with pytest.raises(ValueError, match="TridentRoIHead: detect is of one branch: set test_br"):
        head_of("TridentRoIHead", test_branch_idx=-1).detect(outputs, some)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("DoubleHeadRoIHead", {"reg_roi_scale_factor": 0.0}, "reg_roi_scale_factor must be above"),
        ("TridentRoIHead", {"num_branch": 0}, "num_branch must be at least 1, got 0"),
    ],
)
def test_numbers_that_mean_nothing_raise(name, settings, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        head_of(name, **settings)
