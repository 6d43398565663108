"""The Hungarian matching against scipy's, with padding, surplus and costs that are not finite."""

import importlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import linear_sum_assignment

from visdet_jax.detectors import TASK_UTILS, HungarianAssigner, Instances, build_head, hungarian

SHAPES = [(9, 4), (4, 9), (6, 6), (1, 5), (5, 1), (30, 7)]
MATRICES = 400  # of each shape


def random_batch(rows, columns, kind):
    """Costs (MATRICES, rows, columns) and masks; every tenth image has no column."""
    rng = np.random.default_rng(rows * 100 + columns)
    shape = (MATRICES, rows, columns)
    costs = {
        "normal": rng.normal(size=shape),
        "ties": rng.integers(0, 3, shape).astype(float),
        "scales": rng.normal(size=shape) * 10.0 ** rng.integers(-6, 7, (MATRICES, 1, 1)),
        "equal": np.full(shape, 2.5),
        # All columns want the same rows.
        "contested": rng.normal(size=(MATRICES, rows, 1)) + 0.01 * rng.normal(size=shape),
    }[kind]
    mask = rng.random((MATRICES, columns)) < 0.7
    mask[::10] = False
    mask[5::10] = True
    return costs, mask


def least_total(costs):
    """scipy's, of the columns that are no padding."""
    return costs[linear_sum_assignment(costs)].sum()


def assert_matching(gt_inds, mask):
    """Each column once at most, none of the padded ones, as many pairs as there can be."""
    taken = gt_inds[gt_inds > 0] - 1
    assert len(set(taken)) == len(taken) == min(len(gt_inds), mask.sum())
    assert mask[taken].all()


@pytest.mark.one_in(6)
@pytest.mark.parametrize("kind", ["normal", "ties", "scales", "equal", "contested"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_total_equals_scipys(rows, columns, kind, x64):
    costs, mask = random_batch(rows, columns, kind)
    padded = np.where(mask[:, None], costs, np.array([np.nan, -1e9, np.inf])[rows % 3])
    for precision, rtol in ((np.float64, 1e-12), (np.float32, 1e-5)):
        found = np.asarray(hungarian(padded.astype(precision), mask))
        for gt_inds, cost, real in zip(found, costs, mask, strict=True):
            assert_matching(gt_inds, real)
            total = cost[gt_inds > 0, gt_inds[gt_inds > 0] - 1].sum()
            atol = rtol * np.abs(cost).sum()
            np.testing.assert_allclose(total, least_total(cost[:, real]), rtol=0, atol=atol)


def test_costs_that_are_not_finite_spoil_nothing():
    rng = np.random.default_rng(0)
    costs = rng.normal(size=(600, 6, 4))
    bad = rng.random(costs.shape) < np.linspace(0, 1, 600)[:, None, None]
    bad[:100] = False
    spoilt = np.where(bad, rng.choice([np.nan, np.inf, -np.inf], costs.shape), costs)
    found = np.asarray(hungarian(spoilt.astype(np.float32)))
    np.testing.assert_array_equal(found[:100], hungarian(costs[:100].astype(np.float32)))
    for gt_inds, cost, wrong in zip(found, costs, bad, strict=True):
        rows, taken = np.flatnonzero(gt_inds), gt_inds[gt_inds > 0] - 1
        assert not wrong[rows, taken].any()
        # As many finite pairs as there can be, and of those the cheapest.
        dear = np.where(wrong, 1000, cost)
        best = linear_sum_assignment(dear)
        possible = ~wrong[best]
        assert len(taken) == possible.sum()
        np.testing.assert_allclose(cost[rows, taken].sum(), cost[best][possible].sum(), atol=1e-5)


def test_shapes_gradient_and_errors():
    costs, mask = random_batch(9, 4, "normal")
    costs = costs.astype(np.float32)
    nested = hungarian(costs.reshape(20, 20, 9, 4), mask.reshape(20, 20, 4))
    assert nested.dtype == jnp.int32
    np.testing.assert_array_equal(nested.reshape(-1, 9), hungarian(costs, mask))
    one_by_one = jax.vmap(hungarian)(costs[:5], mask[:5])
    np.testing.assert_array_equal(one_by_one, hungarian(costs[:5], mask[:5]))
    assert not hungarian(np.zeros((2, 5, 0), np.float32)).any()
    assert hungarian(np.zeros((0, 3), np.float32)).shape == (0,)
    gradient = jax.grad(lambda c: jnp.where(hungarian(c)[:, None] > 0, c, 0).sum())(costs[5])
    np.testing.assert_array_equal(gradient, np.tile(hungarian(costs[5])[:, None] > 0, (1, 4)))
    with pytest.raises(ValueError, match=r"hungarian: costs must have shape \(\.\.\., Q, G\)"):
        hungarian(costs[0, 0])
    with pytest.raises(ValueError, match=r"hungarian: mask must have shape \(400, 4\), got \(4,\)"):
        hungarian(costs, mask[0])
    with pytest.raises(TypeError, match="hungarian: mask must be an array, got list"):
        hungarian(costs[0], [True] * 4)
    with pytest.raises(TypeError, match="hungarian: pred must be floating point"):
        hungarian(costs.astype(np.int32))


def test_the_largest_of_floats_do_not_overflow():
    largest = np.finfo(np.float32).max
    costs = np.array([[largest, -largest, 0], [-largest, 0, largest]], np.float32)
    np.testing.assert_array_equal(hungarian(costs), [2, 1])


def test_costs_far_from_0_are_matched_by_their_differences():
    costs = np.array([[0.0, 1], [1, 0], [0.5, 0.5]], np.float32)
    for shifted in (costs * 1e-20, costs * 1e20, costs - 1000):
        np.testing.assert_array_equal(hungarian(shifted), [1, 2, 0])


def least_seconds(*arguments):
    """The time of `hungarian`."""
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(hungarian(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_padded_columns_take_no_time():
    costs = np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)
    real, padded = np.ones(100, bool), np.zeros(100, bool)
    assert least_seconds(costs, padded) < 5 * least_seconds(costs, real)


def test_equal_costs_take_no_time():
    """A path ends at the first row that is free; through all matched ones it is 50 times as long.

    That long are the paths for a product of two vectors.
    """
    rng = np.random.default_rng(0)
    contested = (rng.random((300, 1)) * rng.random((1, 100))).astype(np.float32)
    assert least_seconds(np.zeros_like(contested)) < least_seconds(contested) / 5


def test_costs_that_are_rounded_in_two_ways_lose_no_column():
    """The least cost of some columns is none of their costs: so XLA may compute them."""
    costs, mask = random_batch(9, 4, "normal")
    costs = costs[:20].astype(np.float32)
    least = np.nextafter(costs.min(1), np.where(mask[:20], -np.inf, costs.min(1)), dtype=np.float32)
    module = importlib.import_module("visdet_jax.detectors.assigners.hungarian")
    found = jax.jit(jax.vmap(module._match_from))(costs, least, costs.max(1))
    np.testing.assert_array_equal(found, hungarian(costs))


def test_columns_take_their_cheapest_row_and_the_first_of_equal_ones():
    costs = np.array([[1.0, 5, 3], [1, 2, 0], [4, 2, 3]], np.float32)
    np.testing.assert_array_equal(hungarian(costs), [1, 3, 2])
    np.testing.assert_array_equal(hungarian(np.zeros((4, 3), np.float32)), [1, 2, 3, 0])


def test_only_accelerators_match_a_batch_together():
    """Together takes a CPU three times as long where all columns want the same rows."""
    traced = jax.jit(hungarian).trace(jax.ShapeDtypeStruct((16, 30, 7), np.float32))
    together = {
        platform: "tensor<16x30xi1>" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu", "cuda")
    }
    assert together == {"cpu": False, "tpu": True, "cuda": True}


def test_a_batch_matched_together_is_as_matched_one_by_one(monkeypatch):
    costs, mask = random_batch(9, 6, "contested")
    one_by_one = hungarian(costs.astype(np.float32), mask)

    def others(*arrays, cpu, default):
        return default(*arrays)

    monkeypatch.setattr(jax.lax, "platform_dependent", others)
    together = jax.jit(hungarian.__wrapped__)(costs.astype(np.float32), mask)
    np.testing.assert_array_equal(together, one_by_one)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("check_vma", [True, False])
def test_each_device_matches_its_own_images(check_vma):
    costs, mask = random_batch(9, 4, "normal")
    costs, mask = costs[:4].astype(np.float32), mask[:4]
    mesh = jax.make_mesh((2,), ("images",), (AxisType.Auto,), devices=jax.devices()[:2])
    spread = P("images")
    mapped = jax.shard_map(
        hungarian, mesh=mesh, in_specs=(spread, spread), out_specs=spread, check_vma=check_vma
    )
    np.testing.assert_array_equal(jax.jit(mapped)(costs, mask), hungarian(costs, mask))


@pytest.mark.long
def test_matrices_may_be_spread_over_an_explicit_mesh():
    costs, mask = random_batch(6, 6, "normal")
    costs, mask = costs[:4].astype(np.float32), mask[:4]
    expected = hungarian(costs, mask)
    mesh = jax.make_mesh((2,), ("devices",), (AxisType.Explicit,), devices=jax.devices()[:2])
    with jax.set_mesh(mesh):
        for spec in (P("devices"), P(None, "devices"), P(None, None, "devices")):
            spread = jax.device_put(costs, NamedSharding(mesh, spec))
            np.testing.assert_array_equal(jax.device_get(hungarian(spread, mask)), expected)


def test_an_assigner_is_its_costs():
    costs = [{"type": "FocalLossCost", "weight": 2.0}, {"type": "mmdet.IoUCost", "weight": 2.0}]
    assigner = TASK_UTILS.build({"type": "HungarianAssigner", "match_costs": costs})
    again = HungarianAssigner(match_costs=tuple(map(TASK_UTILS.build, costs)))
    assert assigner == again
    assert hash(assigner) == hash(again)
    assert jax.tree.leaves(assigner) == []
    alone = TASK_UTILS.build({"type": "HungarianAssigner", "match_costs": costs[0]})
    assert len(alone.match_costs) == 1
    assert alone != assigner
    with pytest.raises(ValueError, match=r"HungarianAssigner: match_costs\[1\]: IoUCost has no ke"):
        TASK_UTILS.build(
            {"type": "HungarianAssigner", "match_costs": [costs[0], {**costs[1], "mode": "iou"}]}
        )
    with pytest.raises(ValueError, match="match_costs must be a cost or several, got none"):
        HungarianAssigner(match_costs=())
    with pytest.raises(TypeError, match="match_costs must be"):
        HungarianAssigner(match_costs=(1.0,))
    gt = Instances(labels=jnp.array([0]), bboxes=jnp.zeros((1, 4)))
    with pytest.raises(ValueError, match="IoUCost: needs pred bboxes, got None"):
        assigner.assign(Instances(scores=jnp.zeros((3, 2))), gt)
    floats = gt._replace(labels=jnp.array([0.0]))
    with pytest.raises(TypeError, match="HungarianAssigner: gt labels must hold integer class"):
        assigner.assign(Instances(scores=jnp.zeros((3, 2)), bboxes=jnp.zeros((3, 4))), floats)
    with pytest.raises(ValueError, match="HungarianAssigner: needs gt labels"):
        assigner.assign(Instances(scores=jnp.zeros((3, 2))), Instances(bboxes=jnp.zeros((1, 4))))


def test_padded_boxes_are_not_assigned():
    assigner = TASK_UTILS.build(
        {
            "type": "HungarianAssigner",
            "match_costs": [{"type": "ClassificationCost"}, {"type": "IoUCost"}],
        }
    )
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 40, (7, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 20, (7, 2))], 1).astype(np.float32)
    pred = Instances(scores=rng.normal(size=(7, 4)).astype(np.float32), bboxes=boxes)
    gt_boxes = np.concatenate([boxes[[4, 2]] + 1, np.full((3, 4), np.nan, np.float32)])
    gt = Instances(labels=jnp.array([1, 0, -1, -1, -1]), bboxes=gt_boxes)
    found = assigner.assign(pred, gt)
    np.testing.assert_array_equal(found.gt_inds, [0, 0, 2, 0, 1, 0, 0])
    np.testing.assert_array_equal(found.labels, [-1, -1, 0, -1, 1, -1, -1])


def test_a_head_on_priors_raises_for_a_hungarian_assigner():
    config = {"type": "HungarianAssigner", "match_costs": {"type": "IoUCost"}}
    with pytest.raises(TypeError, match="RetinaHead: assigner must be Assigner"):
        build_head({"type": "RetinaHead", "num_classes": 3}, {"assigner": config})
