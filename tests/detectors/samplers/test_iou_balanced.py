"""Negatives spread over the IoUs: against mmdet's rules in NumPy, and uniformity in a bin."""

import itertools

import jax
import numpy as np
import pytest

from cases import as_long
from detectors.samplers.sampler_cases import assert_uniform, draws
from visdet_jax.detectors import IoUBalancedNegSampler


def random_candidates(seed, count=300, zeros=0.3, positives=4):
    """gt_inds and IoUs: most negatives overlap little, and some not at all."""
    rng = np.random.default_rng(seed)
    iou = np.where(rng.random(count) < zeros, 0, rng.random(count) ** 3 * 0.5).astype(np.float32)
    gt_inds = np.zeros(count, np.int32)
    gt_inds[:positives], iou[:positives] = 1, 0.9
    gt_inds[positives : positives + 3] = -1
    gt_inds[-5:], iou[-5:] = -2, np.nan
    return gt_inds, iou


def counts_of_mmdet(gt_inds, iou, limit, floor_thr, floor_fraction, num_bins):
    """How many negatives each bin, and the floor, have at least, and the least of all high ones."""
    negative = gt_inds == 0
    largest = iou[gt_inds > -2].max()
    low = max(floor_thr, 0)
    if floor_thr < 0:
        floor = np.zeros_like(negative)
    else:
        floor = negative & ((iou < floor_thr) if floor_thr > 0 else (iou == 0))
    high = negative & ~floor
    of_high = min(int(limit * (1 - floor_fraction)), high.sum())
    step = (largest - low) / num_bins
    bins = []
    for number in range(num_bins):
        start, end = np.float32(low + number * step), np.float32(low + (number + 1) * step)
        bins.append(high & (iou >= start) & (iou < end))
    share = int(limit * (1 - floor_fraction)) // num_bins if num_bins > 1 else 0
    return floor, bins, [min(b.sum(), share) for b in bins], of_high


def settings():
    """All combinations; those without `long` are a Latin square, so every pair is among them."""
    values = [1, 3, 5], [0.0, 0.3, 1.0], [-1, 0, 0.1]
    for places in itertools.product(range(3), repeat=3):
        chosen = [options[place] for options, place in zip(values, places, strict=True)]
        param = pytest.param(*chosen, id="-".join(map(str, chosen)))
        yield param if sum(places) % 3 == 0 else as_long(param)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("num_bins", "floor_fraction", "floor_thr"), list(settings()))
def test_against_the_rules(num_bins, floor_fraction, floor_thr):
    sampler = IoUBalancedNegSampler(
        num=64,
        pos_fraction=0.25,
        floor_thr=floor_thr,
        floor_fraction=floor_fraction,
        num_bins=num_bins,
    )
    for seed in range(3):
        gt_inds, iou = random_candidates(seed)
        chosen = draws(sampler, gt_inds, 20, iou)
        drawn = chosen == 2
        limit = 64 - 4
        assert (drawn.sum(1) == limit).all()
        assert not drawn[:, gt_inds != 0].any()
        floor, bins, least, of_high = counts_of_mmdet(
            gt_inds, iou, limit, floor_thr, floor_fraction, num_bins
        )
        for inside, count in zip(bins, least, strict=True):
            assert (drawn[:, inside].sum(1) >= count).all()
        # The high ones have their number, and the floor the rest where it has that many.
        of_floor = min(limit - of_high, floor.sum())
        assert (drawn[:, floor].sum(1) == of_floor).all() or of_high + of_floor < limit
        assert (drawn[:, floor].sum(1) >= of_floor).all()


def test_in_a_bin_all_are_equally_likely():
    gt_inds = np.zeros(60, np.int32)
    iou = np.repeat([0.05, 0.25, 0.45], 20).astype(np.float32)
    gt_inds = np.append(gt_inds, 1).astype(np.int32)
    iou = np.append(iou, 0.6).astype(np.float32)
    chosen = draws(IoUBalancedNegSampler(num=19, pos_fraction=0.25), gt_inds, 4000, iou)
    for start in (0, 20, 40):
        inside = np.isin(np.arange(61), np.arange(start, start + 20))
        drawn = (chosen == 2) & inside
        assert (drawn.sum(1) == 6).all()
        assert_uniform(drawn, inside, f"bin from {start} on")


def test_what_an_empty_bin_leaves_is_drawn_from_all_others():
    gt_inds = np.append(np.zeros(60), 1).astype(np.int32)
    iou = np.append(np.full(60, 0.1), 1.0).astype(np.float32)
    chosen = draws(IoUBalancedNegSampler(num=31, pos_fraction=0.25), gt_inds, 3000, iou)
    assert ((chosen == 2).sum(1) == 30).all()
    assert_uniform(chosen == 2, gt_inds == 0)


def test_it_goes_by_the_overlaps():
    sampler = IoUBalancedNegSampler(num=8, pos_fraction=0.5)
    with pytest.raises(ValueError, match="IoUBalancedNegSampler: goes by the overlaps"):
        sampler.choose(np.zeros((1, 5), np.int32), key=jax.random.key(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"floor_thr": -0.5}, r"floor_thr must be -1, or in \[0, 1\], got -0.5"),
        ({"floor_thr": 1.5}, r"floor_thr must be in \[-1, 1\], got 1.5"),
        ({"floor_fraction": -0.1}, r"floor_fraction must be in \[0, 1\], got -0.1"),
        ({"num_bins": 0}, "num_bins must be at least 1, got 0"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=f"IoUBalancedNegSampler: {message}"):
        IoUBalancedNegSampler(num=8, pos_fraction=0.5, **config)
