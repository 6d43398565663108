"""The candidates with the largest losses."""

import jax
import numpy as np
import pytest

from detectors.samplers.sampler_cases import candidates
from visdet_jax.detectors import OHEMSampler


def hardest(gt_inds, losses, label, most):
    """The indices of the largest losses, the first of equal ones, in NumPy."""
    indices = np.flatnonzero(gt_inds > 0 if label == 1 else gt_inds == 0)
    order = np.argsort(-losses[indices], kind="stable")
    return set(indices[order[:most]].tolist())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("levels", [0, 3])
def test_the_hardest_are_sampled_without_a_key(dtype, levels):
    sampler = OHEMSampler(num=20, pos_fraction=0.25)
    for seed in range(4):
        gt_inds = candidates(12, 40, ignored=10, seed=seed)
        losses = np.random.default_rng(seed).exponential(size=gt_inds.size)
        losses = (np.round(losses * levels) if levels else losses).astype(dtype)
        losses[gt_inds < 0] = 1e3  # Those that are ignored have the largest losses of all.
        chosen = np.asarray(sampler.choose(gt_inds[None], losses=losses[None]))[0]
        for label, most in ((1, 5), (2, 15)):
            found = set(np.flatnonzero(chosen == label).tolist())
            assert found == hardest(gt_inds, losses, label, most)


def test_losses_that_are_no_ordinary_numbers():
    losses = np.array([[0, np.nan, np.inf, 1e38, 0]], np.float32)
    sampler = OHEMSampler(num=2, pos_fraction=0.0)
    chosen = np.asarray(sampler.choose(np.zeros((1, 5), np.int32), losses=losses))
    assert chosen.tolist() == [[0, 0, 2, 2, 0]]


def test_it_draws_nothing_and_needs_the_losses():
    sampler = OHEMSampler(num=8, pos_fraction=0.5)
    assert not sampler.draws
    gt_inds = candidates(20, 30)[None]
    with pytest.raises(ValueError, match="OHEMSampler: goes by the losses of the candidates"):
        sampler.choose(gt_inds)
    losses = np.random.default_rng(0).random(gt_inds.shape).astype(np.float32)
    first, second = (
        sampler.choose(gt_inds, key=jax.random.key(seed), losses=losses) for seed in (0, 1)
    )
    np.testing.assert_array_equal(first, second)
