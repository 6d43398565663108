"""What the assigners on priors share: golden cases, no boxes, padding, memory, errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from detectors.assigners.assigner_cases import (
    EDGE_CONFIG,
    IMAGES,
    LEVEL_SIZES,
    MOST_BOXES,
    RANDOM_CONFIG,
    edge_keys,
    random_image,
    random_keys,
)
from programs import compiled, temporary_bytes
from visdet_jax.detectors import (
    AnchorGenerator,
    Assigner,
    MlvlPointGenerator,
    atss_assign,
    fcos_assign,
    max_iou_assign,
)
from visdet_jax.detectors.assigners.assigner import (
    k_least,
    pick,
    rows_among,
    without_padding,
)

FAMILIES = ("maxiou", "atss", "fcos")  # each replayed in a file of its own


def test_all_golden_cases_are_replayed():
    assert sum(len(random_keys(family)) for family in FAMILIES) == len(RANDOM_CONFIG["cases"]) == 76
    assert sum(len(edge_keys(family)) for family in FAMILIES) == len(EDGE_CONFIG["cases"]) == 17


def test_the_random_images_try_what_matters():
    images = [random_image(seed) for seed in IMAGES]
    counts = {len(real) for _, _, _, real, _ in images}
    assert {0, 1, MOST_BOXES} <= counts
    assert {0, sum(LEVEL_SIZES)} <= {int(valid.sum()) for *_, valid in images}
    assert any(len(real) and real[0] > 0 for _, _, _, real, _ in images)  # padding first


def assign_all(boxes, labels, size=4):
    """The three assigners' results for the same boxes, on `size` x `size` cells of 8 pixels."""
    sizes = ((size, size),)
    priors = AnchorGenerator(strides=(8,), ratios=(1.0,), scales=(4,)).grid(sizes).priors
    points = MlvlPointGenerator(strides=(8,)).grid(sizes).priors
    count = size * size
    level = {"strides": np.full(count, 8), "regress_ranges": np.tile([[-1, 1e8]], (count, 1))}
    level = {key: value.astype(np.float32) for key, value in level.items()}
    return (
        max_iou_assign(priors, boxes, labels),
        atss_assign(priors, boxes, labels, level_sizes=(count,)),
        fcos_assign(points, boxes, labels, **level),
    )


NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
PADDING = np.full((3, 4), np.nan, np.float32), np.full(3, -1, np.int32)


@pytest.mark.long
@pytest.mark.parametrize("nothing", [NO_BOXES, PADDING], ids=["no rows", "padding alone"])
def test_no_box_at_all(nothing, form):
    for found in assign_all(*nothing):
        np.testing.assert_array_equal(found.gt_inds, 0)
        np.testing.assert_array_equal(found.labels, -1)
        np.testing.assert_array_equal(found.max_overlaps, 0)


def test_no_prior_at_all(form):
    for found in assign_all(np.ones((1, 4), np.float32), np.zeros(1, np.int32), size=0):
        for x in jax.tree.leaves(found):
            assert x.shape == (0,)


@pytest.mark.parametrize("assign", [max_iou_assign, atss_assign])
def test_the_matrix_of_all_ious_is_never_made(assign):
    """On a CPU the boxes are visited one by one; see `visit_boxes`."""
    count = 20_000
    priors, level = np.zeros((count, 4), np.float32), {}
    if assign is atss_assign:
        level = {"level_sizes": (count,)}

    boxes, labels = np.zeros((64, 4), np.float32), np.zeros(64, np.int32)
    needed = temporary_bytes(lambda *args: assign(priors, *args, **level), boxes, labels)
    matrix = 4 * 64 * count
    assert needed < matrix / 4


@pytest.mark.long
@pytest.mark.parametrize("assign", [max_iou_assign, atss_assign])
def test_the_ground_truth_may_vary_over_devices_while_the_priors_do_not(assign, form):
    """Inside `shard_map` a loop's state has to vary from its start on; see `unassigned`."""
    images = [random_image(seed) for seed in range(2)]
    priors, options = images[0][0].astype(np.float32), {}
    if assign is atss_assign:
        options = {"level_sizes": LEVEL_SIZES}
    boxes = np.stack([image[1] for image in images]).astype(np.float32)
    labels = np.stack([image[2] for image in images])

    def gt_inds(boxes, labels):
        return assign(priors, boxes[0], labels[0], **options).gt_inds[None]

    mesh = jax.make_mesh((2,), ("images",), (AxisType.Auto,), devices=jax.devices()[:2])
    spread = P("images")
    mapped = jax.shard_map(gt_inds, mesh=mesh, in_specs=(spread, spread), out_specs=spread)
    expected = np.concatenate([gt_inds(boxes[i : i + 1], labels[i : i + 1]) for i in range(2)])
    np.testing.assert_array_equal(mapped(boxes, labels), expected)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("assign", [max_iou_assign, atss_assign])
def test_the_program_is_as_large_for_many_boxes_as_for_few(assign):
    priors, level = np.zeros((2_000, 4), np.float32), {}
    if assign is atss_assign:
        level = {"level_sizes": (1_500, 500)}

    def fusions(count):
        boxes, labels = np.zeros((count, 4), np.float32), np.zeros(count, np.int32)
        program = compiled(lambda *args: assign(priors, *args, **level), boxes, labels)
        return program.as_text().count(" fusion(")

    # One kernel a box would be 80 more. XLA of jax 0.12 has one more for the larger arrays.
    assert fusions(100) <= fusions(20) + 1


LEAST = (0, 3, 1, 2, 2, 2, np.inf, 5, 5, 5, np.inf, np.inf)
GROUPS = slice(1, 7), slice(7, 12)


def least(values, k):
    """`k_least` of the groups above, and which of the values are included."""
    values = jnp.asarray(values, jnp.float32)
    found = k_least(lambda among, _=None: (values[among], 2 * values[among]), GROUPS, k)
    index = jnp.arange(len(values))
    return found, [of.last.includes(values, index)[g] for of, g in zip(found, GROUPS, strict=True)]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    ("k", "first", "second"),
    [
        (1, [0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0]),
        (3, [0, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0]),
        (4, [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0]),
        (9, [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1]),
    ],
)
def test_of_equal_values_the_first_are_among_the_k_least(k, first, second, form):
    found, (in_first, in_second) = least(LEAST, k)
    finite = np.isfinite(LEAST)
    np.testing.assert_array_equal(in_first & finite[1:7], np.array(first, bool) & finite[1:7])
    np.testing.assert_array_equal(in_second & finite[7:], np.array(second, bool) & finite[7:])
    for of, group in zip(found, GROUPS, strict=True):
        expected = sorted(LEAST[group])[:k]
        np.testing.assert_array_equal(of.values, expected)
        exist = np.isfinite(expected)
        np.testing.assert_array_equal(of.others[exist], 2 * np.array(expected)[exist])


SMALL_GROUPS = tuple(slice(a, b) for a, b in itertools.pairwise((2, 52, 72, 77, 79, 80)))


@pytest.mark.parametrize("k", [1, 4, 9])
def test_small_groups_are_as_any(k, form):
    """On accelerators the last three are one reduction; see `split_small`."""
    values = np.random.default_rng(k).integers(6, size=82).astype(np.float32)
    values[[73, 74, 78]] = np.inf

    def numbers(among, _=None):
        return rows_among(jnp.asarray(values), among), rows_among(jnp.arange(82), among)

    found = jax.jit(lambda: k_least(numbers, SMALL_GROUPS, k))()
    for least, group in zip(found, SMALL_GROUPS, strict=True):
        order = group.start + np.argsort(values[group], stable=True)[:k]
        finite = np.isfinite(values[order])
        np.testing.assert_array_equal(least.values, values[order])
        np.testing.assert_array_equal(np.asarray(least.others)[finite], order[finite])
        included = least.last.includes(values, np.arange(82)) & np.isfinite(values)
        np.testing.assert_array_equal(
            np.flatnonzero(included[group]), np.sort(order[finite]) - group.start
        )


def test_a_step_on_a_gpu_is_a_reduction_for_each_large_group_and_one_for_the_small():
    """Arrays of indices, and the last of those found, would be kernels of each step too."""

    def program(groups, k):
        def found(values):
            return k_least(lambda among, _=None: (rows_among(values, among), None), groups, k)

        traced = jax.jit(found).trace(np.zeros(80, np.float32))
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    def count(name, *given):
        return program(*given).count(f"stablehlo.{name}")

    assert count("reduce(", SMALL_GROUPS, 9) == count("reduce(", SMALL_GROUPS[:3], 9) > 0
    assert count("iota", SMALL_GROUPS, 9) == 0
    assert "[1:2, 0:1]" not in program(SMALL_GROUPS[:1], 9)  # The second of two, of one group.


def test_the_k_least_are_found_without_sorting_on_a_cpu():
    """A sort of each level takes 100 times as long as XLA:CPU's search for the largest."""
    values = np.zeros(17_000, np.float32)
    groups = slice(0, 16_000), slice(16_000, 17_000)

    def lasts(values):
        found = k_least(lambda among, _=None: (values[among], values[among]), groups, 9)
        return [of.last for of in found]

    program = compiled(lasts, values).as_text()
    assert "TopK" in program
    assert " sort(" not in program


def test_pick():
    values = jnp.arange(6.0).reshape(3, 2)
    picked = pick(values, jnp.array([3, 1, 0, -2]))
    np.testing.assert_array_equal(picked, [[4, 5], [0, 1], [0, 1], [0, 1]])
    np.testing.assert_array_equal(pick(jnp.arange(3), jnp.array([2, 0])), [1, 0])


def test_without_padding():
    boxes = np.array([[[1, 2, 3, 4], [np.nan] * 4]], np.float16)
    for labels in (np.array([[7, -3]]), np.array([[7, -3]], np.int8)):
        cleaned, kept = without_padding(boxes, labels, jnp.float32)
        np.testing.assert_array_equal(cleaned, [[[1, 2, 3, 4], [0] * 4]])
        assert cleaned.dtype == jnp.float32
        np.testing.assert_array_equal(kept, labels)
        assert kept.dtype == jnp.int32
    none = np.zeros((5, 0, 4), np.float32), np.zeros((5, 0), np.uint8)
    cleaned, kept = without_padding(*none, jnp.float32)
    assert cleaned.shape == (5, 1, 4)
    np.testing.assert_array_equal(kept, np.full((5, 1), -1))


BOXES, LABELS = np.zeros((2, 4), np.float32), np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BOXES[:, :2], BOXES, LABELS), ValueError, r"priors must have shape \(N, 4\), got"),
        ((BOXES, BOXES[0], LABELS), ValueError, r"gt_boxes must have shape \(G, 4\), got \(4,\)"),
        ((BOXES, BOXES, LABELS[:1]), ValueError, r"gt_labels must have shape \(2,\), got \(1,\)"),
        ((BOXES, BOXES, LABELS * 1.0), TypeError, "gt_labels must hold integer class indices"),
        ((BOXES, BOXES, [0, 1]), TypeError, "gt_labels must be an array, got list"),
        ((BOXES, BOXES, LABELS, np.ones(3, bool)), ValueError, r"valid must have shape \(2,\)"),
        ((BOXES, BOXES, LABELS, [True, True]), TypeError, "valid must be an array, got list"),
        ((BOXES, [[0, 0, 1, 1]], LABELS), TypeError, "gt_boxes must be an array, got list"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=f"max_iou_assign: {message}"):
        max_iou_assign(*arguments)
    with pytest.raises(error, match=f"atss_assign: {message}"):
        atss_assign(*arguments, level_sizes=(2,))


def test_the_base_class_says_what_is_missing():
    with pytest.raises(NotImplementedError, match="Assigner must define assign"):
        Assigner().assign(BOXES, BOXES, LABELS, level_sizes=(2,))
