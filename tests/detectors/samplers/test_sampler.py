"""What all samplers share: a choice that is given, keys, batches, what is never chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from detectors.samplers.sampler_cases import candidates
from visdet_jax.detectors import (
    TASK_UTILS,
    CombinedSampler,
    InstanceBalancedPosSampler,
    IoUBalancedNegSampler,
    OHEMSampler,
    PseudoSampler,
    RandomSampler,
)
from visdet_jax.detectors.samplers.sampler import pick_at_random, pick_largest

LIMITS = {"num": 10, "pos_fraction": 0.3}
RANDOM = [
    RandomSampler(**LIMITS),
    InstanceBalancedPosSampler(**LIMITS),
    IoUBalancedNegSampler(**LIMITS),
    CombinedSampler(
        pos_sampler=RandomSampler(**LIMITS), neg_sampler=RandomSampler(**LIMITS), **LIMITS
    ),
]
EVERY = [*RANDOM, OHEMSampler(**LIMITS), PseudoSampler()]
every_random_sampler = pytest.mark.parametrize("sampler", RANDOM, ids=lambda s: type(s).__name__)
every_sampler = pytest.mark.parametrize("sampler", EVERY, ids=lambda s: type(s).__name__)


def choose(sampler, gt_inds, **options):
    rng = np.random.default_rng(0)
    given = {"overlaps": rng.random(gt_inds.shape), "losses": rng.random(gt_inds.shape)}
    given = {name: x.astype(np.float32) for name, x in given.items()}
    return np.asarray(jitted(sampler)(gt_inds, **{"key": jax.random.key(0), **given, **options}))


@functools.cache
def jitted(sampler):
    return jax.jit(sampler.choose)


@every_sampler
def test_what_was_sampled_may_be_given(sampler):
    gt_inds = candidates(5, 20)[None]
    chosen = np.zeros_like(gt_inds)
    chosen[0, :4] = 1, 2, 2, 0
    for dtype in (np.int8, np.uint8, np.int64):
        found = sampler.choose(gt_inds, chosen=chosen.astype(dtype))
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, chosen)
    with pytest.raises(ValueError, match=r"chosen must have shape \(1, 25\), got \(25,\)"):
        sampler.choose(gt_inds, chosen=chosen[0])
    with pytest.raises(TypeError, match="chosen must be integers, got float32"):
        sampler.choose(gt_inds, chosen=chosen.astype(np.float32))


@every_random_sampler
def test_a_key_that_is_missing(sampler):
    with pytest.raises(ValueError, match=f"{type(sampler).__name__} draws: give key="):
        sampler.choose(candidates(5, 20)[None])


@pytest.mark.one_in(3)
@every_sampler
def test_ignored_and_dropped_candidates_are_never_chosen(sampler):
    gt_inds = candidates(7, 9, ignored=20, dropped=20)[None].repeat(8, axis=0)
    chosen = choose(sampler, gt_inds)
    assert set(np.unique(chosen)) == {0, 1, 2}
    assert (gt_inds[chosen == 1] > 0).all()
    assert (gt_inds[chosen == 2] == 0).all()


@pytest.mark.one_in(3)
@every_sampler
def test_all_are_chosen_where_they_are_not_more_than_the_limits(sampler):
    for positives, negatives in ((0, 0), (3, 0), (0, 7), (2, 8), (3, 7)):
        dropped = 10 - positives - negatives
        gt_inds = candidates(positives, negatives, ignored=4, dropped=dropped)[None]
        chosen = choose(sampler, gt_inds)
        np.testing.assert_array_equal(chosen == 1, gt_inds > 0)
        np.testing.assert_array_equal(chosen == 2, gt_inds == 0)


@pytest.mark.one_in(3)
@every_sampler
@pytest.mark.parametrize("shape", [(2, 0), (2, 1)])
def test_few_candidates(sampler, shape):
    assert choose(sampler, np.zeros(shape, np.int32)).shape == shape


@pytest.mark.one_in(3)
@every_random_sampler
def test_images_and_keys_draw_differently_and_a_key_draws_the_same(sampler):
    gt_inds = candidates(40, 200)[None].repeat(2, axis=0)
    first, again, other = (choose(sampler, gt_inds, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    assert (first != other).any()


@pytest.mark.one_in(3)
@every_random_sampler
def test_compiled_once_whatever_is_drawn(sampler):
    traces = []

    @jax.jit
    def call(key, gt_inds, overlaps):
        traces.append(key)
        return sampler.choose(gt_inds, key=key, overlaps=overlaps)

    overlaps = np.random.default_rng(0).random((1, 50)).astype(np.float32)
    for positives in (0, 3, 30):
        call(jax.random.key(positives), candidates(positives, 50 - positives)[None], overlaps)
    assert len(traces) == 1


@pytest.mark.parametrize("count", [0, 1, 5, 12, 20])
def test_a_pick_at_random_has_its_number(count):
    among = candidates(0, 12, 30)[None][0] == 0
    for seed in range(5):
        picked = np.asarray(pick_at_random(jax.random.key(seed), among, jnp.asarray(count), 20))
        assert picked.sum() == min(count, 12)
        assert not (picked & ~among).any()


def test_the_largest_of_equal_values_are_the_first():
    values = jnp.array([3.0, 5, 3, -1, 3, 5, 0])
    expected = [[], [1], [1, 5], [0, 1, 5], [0, 1, 2, 5], [0, 1, 2, 4, 5], [0, 1, 2, 4, 5, 6]]
    for count, indices in enumerate(expected):
        found = pick_largest(values, jnp.asarray(count), 7)
        assert np.flatnonzero(found).tolist() == indices
    assert np.flatnonzero(pick_largest(values, jnp.asarray(7), 7)).tolist() == expected[-1]


@pytest.mark.long
def test_configs_of_the_model_zoo_build():
    limits = {"num": 512, "pos_fraction": 0.25, "neg_pos_ub": -1, "add_gt_as_proposals": True}
    balanced = {
        "type": "IoUBalancedNegSampler",
        "floor_thr": -1,
        "floor_fraction": 0,
        "num_bins": 3,
    }
    for config in (
        {"type": "RandomSampler", **limits},
        {"type": "RandomSampler", **limits, "neg_pos_ub": 5},
        {"type": "OHEMSampler", **limits},
        {
            "type": "CombinedSampler",
            "num": 512,
            "pos_fraction": 0.25,
            "add_gt_as_proposals": True,
            "pos_sampler": {"type": "InstanceBalancedPosSampler"},
            "neg_sampler": balanced,
        },
    ):
        gt_inds = candidates(200, 700)
        chosen = choose(TASK_UTILS.build(config), gt_inds[None])
        assert (chosen == 1).sum() == 128
        assert (chosen == 2).sum() == 384
