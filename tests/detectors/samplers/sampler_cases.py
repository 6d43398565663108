"""What the tests of the samplers share: candidates, and draws over many keys."""

import functools

import jax
import numpy as np


def candidates(positives, negatives, ignored=0, dropped=0, seed=0):
    """gt_inds (N,) in random order; the positives all have the first box."""
    counts = {1: positives, 0: negatives, -1: ignored, -2: dropped}
    gt_inds = np.repeat(list(counts), list(counts.values())).astype(np.int32)
    return np.random.default_rng(seed).permutation(gt_inds)


@functools.cache
def jitted_choose(sampler):
    """One jitted function for all calls of a sampler: those of the same shapes share a program."""
    return jax.jit(sampler.choose)


def draws(sampler, gt_inds, count, overlaps=None, seed=0):
    """What the sampler chooses of one image by `count` keys: (count, N)."""
    repeated = [None if x is None else np.tile(x, (count, 1)) for x in (gt_inds, overlaps)]
    key = jax.random.key(seed)
    chosen = jitted_choose(sampler)(repeated[0], key=key, overlaps=repeated[1])
    return np.asarray(chosen)


def assert_uniform(drawn, among, what=""):
    """That each of the candidates `among` (N,) was drawn equally often, by a chi-squared test.

    drawn: (draws, N) bool, of which each row has the same number. The seeds are fixed: this is no
    test that fails now and then.
    """
    count, size = len(drawn), among.sum()
    each = drawn[0].sum() / size
    expected = count * each
    # Drawn without replacement the counts vary less than in a multinomial, by this factor.
    statistic = ((drawn.sum(0)[among] - expected) ** 2 / (expected * (1 - each))).sum()
    statistic *= (size - 1) / size
    # 5 standard deviations of a chi-squared variable with size - 1 degrees of freedom.
    freedom = size - 1
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom), f"{what}: {statistic} of {freedom}"
