"""Two samplers as one: whose positives, whose negatives, and how many."""

import numpy as np
import pytest

from detectors.samplers.sampler_cases import candidates
from visdet_jax.detectors import (
    TASK_UTILS,
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    OHEMSampler,
    RandomSampler,
)

LIMITS = {"num": 12, "pos_fraction": 0.25}
CONFIG = {
    "type": "CombinedSampler",
    **LIMITS,
    "neg_pos_ub": 2,
    "add_gt_as_proposals": False,
    "pos_sampler": {"type": "mmdet.InstanceBalancedPosSampler"},
    "neg_sampler": {"type": "IoUBalancedNegSampler", "floor_thr": 0.1, "num_bins": 4},
}


def test_parts_take_what_they_leave_out_from_the_whole():
    sampler = TASK_UTILS.build(CONFIG)
    limits = {**LIMITS, "neg_pos_ub": 2, "add_gt_as_proposals": False}
    assert sampler.pos_sampler == InstanceBalancedPosSampler(**limits)
    assert sampler.neg_sampler == IoUBalancedNegSampler(**limits, floor_thr=0.1, num_bins=4)
    assert not sampler.adds_gt


def test_objects_and_configs_are_equal_whatever_the_parts_own_limits():
    other = RandomSampler(num=2, pos_fraction=1.0)
    sampler = CombinedSampler(pos_sampler=other, neg_sampler=other, **LIMITS)
    config = {"type": "RandomSampler"}
    assert sampler == CombinedSampler(pos_sampler=config, neg_sampler=config, **LIMITS)
    losses = np.zeros((1, 60), np.float32)
    hard = OHEMSampler(num=2, pos_fraction=1.0)
    found = CombinedSampler(pos_sampler=hard, neg_sampler=hard, **LIMITS).choose(
        candidates(20, 40)[None], losses=losses
    )
    assert [(np.asarray(found) == label).sum() for label in (1, 2)] == [3, 9]


@pytest.mark.parametrize("positives_are_hard", [True, False])
def test_each_part_draws_its_own(positives_are_hard):
    hard, random = {"type": "OHEMSampler"}, {"type": "RandomSampler"}
    pos, neg = (hard, random) if positives_are_hard else (random, hard)
    sampler = CombinedSampler(pos_sampler=pos, neg_sampler=neg, **LIMITS)
    assert sampler.draws
    gt_inds = np.tile(candidates(20, 40), (50, 1))
    losses = np.tile(np.arange(60, dtype=np.float32), (50, 1))
    key = np.array([0, 1], np.uint32)
    chosen = np.asarray(sampler.choose(gt_inds, key=key, losses=losses))
    label, other = (1, 2) if positives_are_hard else (2, 1)
    assert (chosen == label).any(0).sum() == (chosen[0] == label).sum()
    assert (chosen == other).any(0).sum() > (chosen[0] == other).sum()


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"type": "PseudoSampler"}, ValueError, "pos_sampler: PseudoSampler has no key 'num'"),
        ({"type": "RandomSampler", "nun": 3}, ValueError, "pos_sampler: RandomSampler has no key"),
        (3, TypeError, "pos_sampler must be a sampler of a fixed number, such as RandomSampler"),
    ],
)
def test_errors(part, error, message):
    with pytest.raises(error, match=f"CombinedSampler: {message}"):
        CombinedSampler(pos_sampler=part, neg_sampler={"type": "RandomSampler"}, **LIMITS)
