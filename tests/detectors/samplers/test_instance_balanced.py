"""As many positives of each ground truth."""

import numpy as np
import pytest

from detectors.samplers.sampler_cases import assert_uniform, candidates, draws
from visdet_jax.detectors import InstanceBalancedPosSampler


def candidates_of(*counts, negatives=50, seed=0):
    """gt_inds with so many positives of each ground truth, in random order."""
    gt_inds = np.repeat(np.arange(len(counts) + 1), (negatives, *counts)).astype(np.int32)
    return np.random.default_rng(seed).permutation(gt_inds)


def per_ground_truth(chosen, gt_inds, count):
    return np.stack([((chosen == 1) & (gt_inds == i + 1)).sum(1) for i in range(count)], axis=1)


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("counts", "limit"),
    [((100, 3, 2), 32), ((30, 30, 30), 12), ((40, 1, 40), 9), ((5, 0, 60), 20), ((70,), 16)],
)
def test_the_limit_is_reached_and_each_has_its_part(counts, limit):
    gt_inds = candidates_of(*counts)
    sampler = InstanceBalancedPosSampler(num=4 * limit, pos_fraction=0.25)
    chosen = draws(sampler, gt_inds, 300)
    assert ((chosen == 1).sum(1) == limit).all()
    assert ((chosen == 2).sum(1) == min(3 * limit, 50)).all()
    quota = int(round(limit / np.count_nonzero(counts)) + 1)
    found = per_ground_truth(chosen, gt_inds, len(counts))
    firsts = np.minimum(counts, quota)
    if firsts.sum() <= limit:  # All within their quotas, and others at random.
        assert (found >= firsts).all()
    else:  # None beyond its quota.
        assert (found <= firsts).all()


def test_within_a_ground_truth_all_are_equally_likely():
    gt_inds = candidates_of(20, 2, negatives=10)
    sampler = InstanceBalancedPosSampler(num=16, pos_fraction=0.5)
    chosen = draws(sampler, gt_inds, 4000)
    # A quota of 5 each: 5 and 2, and one more of the first.
    assert (per_ground_truth(chosen, gt_inds, 2) == [6, 2]).all()
    assert_uniform((chosen == 1) & (gt_inds == 1), gt_inds == 1)
    assert_uniform(chosen == 2, gt_inds == 0)


def test_it_differs_from_a_sample_without_balance():
    gt_inds = candidates_of(190, 10)
    sampler = InstanceBalancedPosSampler(num=20, pos_fraction=0.5)
    found = per_ground_truth(draws(sampler, gt_inds, 500), gt_inds, 2)
    # 6 each at most, of which 10 are drawn. Without balance the second would have 0.5.
    np.testing.assert_allclose(found.mean(0), [5, 5], atol=0.2)


def test_one_ground_truth_is_a_random_sample():
    gt_inds = candidates(30, 5)
    chosen = draws(InstanceBalancedPosSampler(num=10, pos_fraction=0.8), gt_inds, 3000)
    assert_uniform(chosen == 1, gt_inds > 0)
