"""Random samples: mmdet's counts and sets, uniformity, independence."""

import functools

import jax
import numpy as np
import pytest

from cases import as_long
from detectors.samplers.sampler_cases import assert_uniform, candidates, draws, jitted_choose
from golden.read_cases import names, read
from visdet_jax.detectors import TASK_UTILS, PseudoSampler, RandomSampler

COUNTS, _ = read("twostage", "sampler_counts")


@pytest.mark.long
def test_golden_counts():
    # The ground truths that are added are positives too.
    positives = COUNTS["cand_pos"] + COUNTS["add_gt"] * COUNTS["num_gts"]
    kinds = positives, COUNTS["cand_neg"], COUNTS["cand_ignored"]
    most = sum(kinds).max()
    images = np.stack([candidates(*row, most - sum(row)) for row in zip(*kinds, strict=True)])
    settings = np.stack([COUNTS[key] for key in ("num", "pos_fraction", "neg_pos_ub")], axis=1)
    for setting in np.unique(settings, axis=0):
        rows = (settings == setting).all(1)
        num, pos_fraction, neg_pos_ub = setting.tolist()
        sampler = RandomSampler(num=int(num), pos_fraction=pos_fraction, neg_pos_ub=neg_pos_ub)
        # Images without candidates, so that all batches have one shape.
        batch = np.full((5, most), -2, np.int32)
        batch[: rows.sum()] = images[rows]
        # Not jitted: a setting would be a program, and single operations are shared.
        chosen = np.asarray(sampler.choose(batch, key=jax.random.key(0)))[: rows.sum()]
        np.testing.assert_array_equal((chosen == 1).sum(1), COUNTS["exp_num_pos"][rows])
        np.testing.assert_array_equal((chosen == 2).sum(1), COUNTS["exp_num_neg"][rows])
        assert sampler.positive_slots(10**6) == int(num * pos_fraction)
        assert sampler.slots(10**6) == num


@functools.cache
def golden_samples():
    """(sampler, candidates, what mmdet chose, which images were limited) of every golden case.

    Without `--all` one in five.
    """
    return [as_long(param) if i % 5 else param for i, param in enumerate(all_golden_samples())]


def all_golden_samples():
    for kind in ("rpn", "roi", "mask", "cascade"):
        for name in names("twostage", kind):
            arrays, config = read("twostage", name)
            stages = [
                prefix for prefix in ("", "s0_", "s1_", "s2_") if f"{prefix}in_chosen" in arrays
            ]
            for number, prefix in enumerate(stages):
                train_cfg = config.get("train_cfg") or config["roi_head_cfg"]["train_cfg"]
                train_cfg = train_cfg[number] if isinstance(train_cfg, list) else train_cfg
                sampler = TASK_UTILS.build(train_cfg.get("sampler") or {"type": "PseudoSampler"})
                gt_inds = arrays["tgt_gt_inds" if kind == "rpn" else f"{prefix}cand_gt_inds"]
                yield pytest.param(
                    sampler,
                    gt_inds.astype(np.int32),
                    arrays[f"{prefix}in_chosen"],
                    *(arrays[f"{prefix}limited_{part}"] for part in ("pos", "neg")),
                    id=f"{name}{prefix and '-' + prefix[:-1]}",
                )


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("sampler", "gt_inds", "expected", "limited_pos", "limited_neg"), golden_samples()
)
def test_golden_samples(sampler, gt_inds, expected, limited_pos, limited_neg):
    chosen = np.asarray(jitted_choose(sampler)(gt_inds, key=jax.random.key(0)))
    for label, limited in ((1, limited_pos), (2, limited_neg)):
        np.testing.assert_array_equal((chosen == label).sum(1), (expected == label).sum(1))
        free = ~limited
        np.testing.assert_array_equal((chosen == label)[free], (expected == label)[free])
    np.testing.assert_array_equal(sampler.choose(gt_inds, chosen=expected), expected)


def test_the_golden_cases_have_both_kinds():
    limited = [param.values[3].any() or param.values[4].any() for param in golden_samples()]
    assert any(limited)
    assert not all(limited)
    samplers = {type(param.values[0]) for param in golden_samples()}
    assert samplers == {RandomSampler, PseudoSampler}


def test_draws_are_uniform():
    sampler = RandomSampler(num=12, pos_fraction=0.5)
    gt_inds = candidates(20, 40, ignored=7)
    chosen = draws(sampler, gt_inds, 4000)
    assert ((chosen == 1).sum(1) == 6).all()
    assert ((chosen == 2).sum(1) == 6).all()
    assert_uniform(chosen == 1, gt_inds > 0, "positives")
    assert_uniform(chosen == 2, gt_inds == 0, "negatives")


def test_pairs_are_drawn_uniformly_too():
    chosen = draws(RandomSampler(num=3, pos_fraction=1.0), candidates(6, 0), 8000) == 1
    pairs = (chosen[:, :, None] & chosen[:, None]).sum(0)[np.triu_indices(6, 1)]
    # Each pair is in 3 · 2 / (6 · 5) of the draws.
    np.testing.assert_allclose(pairs, 8000 / 5, atol=5 * np.sqrt(8000 * 0.2 * 0.8))


def test_positives_and_negatives_are_drawn_independently():
    gt_inds = candidates(2, 2)
    chosen = draws(RandomSampler(num=2, pos_fraction=0.5), gt_inds, 4000)
    first_positive = chosen[:, gt_inds > 0][:, 0] == 1
    first_negative = chosen[:, gt_inds == 0][:, 0] == 2
    both = (first_positive & first_negative).mean()
    assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num": 0}, "num must be at least 1, got 0"),
        ({"pos_fraction": 1.5}, r"pos_fraction must be in \[0, 1\], got 1.5"),
        ({"neg_pos_ub": np.inf}, "neg_pos_ub must be finite, got inf"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=f"RandomSampler: {message}"):
        RandomSampler(**{"num": 8, "pos_fraction": 0.5, **config})
