"""Assigners: mmdet 3.3.0's cases, edge by edge, and plain loops over random images."""

import functools

import jax
import numpy as np
import pytest

from golden.read_heads import read
from visdet_jax.detectors import (
    TASK_UTILS,
    AnchorGenerator,
    MlvlPointGenerator,
    atss_assign,
    fcos_assign,
    max_iou_assign,
)

RANDOM, RANDOM_CONFIG = read("assigners")
EDGE, EDGE_CONFIG = read("edge")
FEATURES = {  # the two images' feature maps, by the strides of the case
    "s0": ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3), (1, 2)),
    "s1": ((24, 32), (12, 16), (6, 8), (3, 4), (2, 2), (1, 1)),
}


def of_family(cases, family):
    return [key for key in cases if key.startswith(family)]


def arrays_of(arrays, key):
    return {k.removeprefix(f"{key}_"): v for k, v in arrays.items() if k.startswith(f"{key}_")}


def pad(boxes, labels, count, seed=0):
    """Boxes and labels of `count` rows, those added being garbage and NaN."""
    rng = np.random.default_rng(seed)
    padded = rng.uniform(-200, 300, (count, 4)).astype(boxes.dtype)
    padded[-1] = np.nan
    if count > len(boxes) + 1:
        padded[len(boxes)] = -1000, -1000, 1000, 1000
    padded[: len(boxes)] = boxes
    numbers = np.full(count, -1, np.int32)
    numbers[: len(labels)] = labels
    return padded, numbers


def features(config, key):
    """The (height, width) of the levels."""
    sizes = FEATURES["s0" if "_s0_" in key else "s1"]
    start = 0 if config["strides"][0] == 4 else 1
    return sizes[start : start + 5]


@pytest.mark.parametrize("key", of_family(RANDOM_CONFIG["cases"], ("maxiou", "atss")))
def test_anchors(key):
    case, expected = RANDOM_CONFIG["cases"][key], arrays_of(RANDOM, key)
    grid = TASK_UTILS.build(case["priors"]).grid(features(case["priors"], key))
    assert list(grid.level_sizes) == case["num_level_priors"]
    assigner = TASK_UTILS.build(case["assigner"])
    found = assigner.assign(
        grid.priors,
        *pad(expected["gts"], expected["gt_labels"], 22),
        level_sizes=grid.level_sizes,
    )
    assert_assigned(found, expected)


def assert_assigned(found, expected):
    np.testing.assert_array_equal(found.gt_inds, expected["gt_inds"])
    np.testing.assert_array_equal(found.labels, expected["labels"])
    np.testing.assert_allclose(found.max_overlaps, expected["max_overlaps"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", of_family(RANDOM_CONFIG["cases"], "fcos"))
def test_points(key):
    case, expected = RANDOM_CONFIG["cases"][key], arrays_of(RANDOM, key)
    grid = MlvlPointGenerator(strides=tuple(case["strides"])).grid(features(case, key))
    found = assign_points(
        case, grid.priors, grid.level_sizes, expected["gts"], expected["gt_labels"], 22
    )
    labels = np.where(found.gt_inds > 0, found.labels, case["num_classes"])
    np.testing.assert_array_equal(labels, expected["labels"])
    np.testing.assert_array_equal(np.flatnonzero(found.gt_inds > 0), expected["pos_index"])
    chosen = expected["gts"][np.asarray(found.gt_inds)[expected["pos_index"]] - 1]
    at = grid.priors[expected["pos_index"]]
    distances = np.concatenate([at - chosen[:, :2], chosen[:, 2:] - at], axis=1)
    if case["norm_on_bbox"]:
        distances /= grid.strides[expected["pos_index"], None]
    np.testing.assert_allclose(distances, expected["pos_bbox_targets"], rtol=1e-4, atol=1e-5)


def assign_points(case, points, sizes, boxes, labels, count):
    return fcos_assign(
        points,
        *pad(boxes, labels, count),
        strides=np.repeat(np.asarray(case["strides"], points.dtype), sizes),
        regress_ranges=np.repeat(np.asarray(case["regress_ranges"], points.dtype), sizes, axis=0),
        center_sampling=case["center_sampling"],
        center_sample_radius=case["center_sample_radius"],
    )


@pytest.mark.parametrize("key", of_family(EDGE_CONFIG["cases"], ("maxiou", "atss")))
def test_edges_of_anchors(key):
    case, expected = EDGE_CONFIG["cases"][key], arrays_of(EDGE, key)
    sizes = case["num_level_priors"] or [len(expected["priors"])]
    found = TASK_UTILS.build(case["assigner"]).assign(
        expected["priors"],
        *pad(expected["gts"], expected["gt_labels"], 4),
        level_sizes=tuple(sizes),
    )
    assert_assigned(found, expected)


@pytest.mark.parametrize("key", of_family(EDGE_CONFIG["cases"], "fcos"))
def test_edges_of_points(key):
    case, expected = EDGE_CONFIG["cases"][key], arrays_of(EDGE, key)
    points = expected["points"].astype(np.float32)
    found = assign_points(
        case, points, case["num_points"], expected["gts"], expected["gt_labels"], 4
    )
    positive = np.asarray(found.gt_inds) > 0
    labels = np.where(positive, found.labels, case["num_classes"])
    np.testing.assert_array_equal(labels, expected["out_labels"])
    chosen = expected["gts"][np.asarray(found.gt_inds)[positive] - 1]
    distances = np.concatenate(
        [points[positive] - chosen[:, :2], chosen[:, 2:] - points[positive]], 1
    )
    np.testing.assert_array_equal(distances, expected["out_bbox_targets"][positive])


def test_all_cases_are_here():
    assert len(RANDOM_CONFIG["cases"]) == 76
    assert len(EDGE_CONFIG["cases"]) == 17


# Plain loops, box by box and prior by prior, to hold against.

SIZES = (40, 20, 12)
WORST = 12  # boxes at most


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def loop_max_iou(priors, boxes, real, valid, low, high, positive, least, every, low_quality):
    kept = np.flatnonzero(valid)
    gt_inds = np.where(valid, -1, -2)
    table = {(g, n): iou(boxes[g], priors[n]) for g in real for n in kept}
    if not len(real):
        gt_inds[kept] = 0
        return gt_inds
    for n in kept:
        best = max(table[g, n] for g in real)
        if low <= best < high:
            gt_inds[n] = 0
        if best >= positive:
            gt_inds[n] = 1 + next(g for g in real if table[g, n] == best)
    for g in real if low_quality and len(kept) else ():
        best = max(table[g, n] for n in kept)
        if best >= least:
            takes = [n for n in kept if table[g, n] == best]
            gt_inds[takes if every else takes[:1]] = 1 + g
    return gt_inds


def loop_atss(priors, boxes, real, valid, topk):
    centers = (priors[:, :2] + priors[:, 2:]) / 2
    gt_inds = np.where(valid, 0, -2)
    owner = {}
    for g in real:
        middle = (boxes[g, :2] + boxes[g, 2:]) / 2
        candidates, start = [], 0
        for size in SIZES:
            level = [n for n in range(start, start + size) if valid[n]]
            level.sort(key=lambda n: np.hypot(*(centers[n] - middle)))
            candidates += level[:topk]
            start += size
        if len(candidates) < 2:
            continue
        overlaps = np.array([iou(boxes[g], priors[n]) for n in candidates])
        threshold = overlaps.mean() + overlaps.std(ddof=1)
        decided = np.abs(overlaps - threshold) > 1e-9
        assert (decided | (overlaps == 0)).all(), "data on which rounding decides"
        for n, overlap in zip(candidates, overlaps, strict=True):
            x, y = centers[n]
            x1, y1, x2, y2 = boxes[g]
            inside = min(x - x1, y - y1, x2 - x, y2 - y) > 0.01
            if overlap >= threshold and inside and overlap > owner.get(n, -1):
                owner[n], gt_inds[n] = overlap, 1 + g
    return gt_inds


def loop_fcos(points, boxes, real, strides, ranges, radius):
    gt_inds = np.zeros(len(points), int)
    for n, (x, y) in enumerate(points):
        smallest = np.inf
        for g in real:
            x1, y1, x2, y2 = boxes[g]
            sides = x - x1, y - y1, x2 - x, y2 - y
            inside = min(sides) > 0
            if radius is not None:
                from_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
                inside = inside and from_center < radius * strides[n]
            of_size = ranges[n][0] <= max(sides) <= ranges[n][1]
            if inside and of_size and area(boxes[g]) < smallest:
                smallest, gt_inds[n] = area(boxes[g]), 1 + g
    return gt_inds


def random_image(seed):
    """Priors of no order, boxes somewhere among padding, and which priors count.

    The priors are not on a grid: no two have the same overlap, or are as far, but by rounding.
    """
    rng = np.random.default_rng(seed)

    def some(count, low, high):
        corner, size = rng.uniform(-10, 90, (count, 2)), rng.uniform(low, high, (count, 2))
        return np.concatenate([corner, corner + size], axis=1)

    priors = some(sum(SIZES), 8, 60)
    boxes = some(WORST, 8, 70)
    count = rng.integers(0, WORST + 1)
    if seed % 3 == 0:  # one that overlaps no prior
        boxes[rng.integers(WORST)] += 500
    labels = np.where(rng.permutation(WORST) < count, rng.integers(0, 5, WORST), -1)
    padding = rng.choice([np.nan, np.inf, 0, 33, -1e30], (WORST, 4))
    boxes = np.where((labels >= 0)[:, None], boxes, padding)
    valid = rng.random(len(priors)) < rng.choice([0, 0.05, 0.3, 0.9, 1])
    return priors, boxes, labels.astype(np.int32), np.flatnonzero(labels >= 0), valid


IMAGES = range(40)


def assert_as_the_loop(found, gt_inds, labels, seed):
    np.testing.assert_array_equal(found.gt_inds, gt_inds, err_msg=f"image {seed}")
    expected = np.where(gt_inds > 0, labels[gt_inds - 1], -1)
    np.testing.assert_array_equal(found.labels, expected, err_msg=f"image {seed}")


@pytest.mark.parametrize(
    ("low", "high", "positive", "least", "every", "low_quality"),
    [
        (0.0, 0.4, 0.5, 0.0, True, True),
        (0.0, 0.3, 0.7, 0.3, True, True),
        (0.1, 0.3, 0.5, 0.2, True, True),
        (0.0, 0.4, 0.5, 0.0, False, True),
        (0.0, 0.5, 0.5, 0.5, True, False),
    ],
)
def test_max_iou_is_the_loop(low, high, positive, least, every, low_quality, x64):
    for seed in IMAGES:
        priors, boxes, labels, real, valid = random_image(seed)
        found = max_iou_assign(
            priors,
            boxes,
            labels,
            valid,
            pos_iou_thr=positive,
            neg_iou_thr=(low, high),
            min_pos_iou=least,
            gt_max_assign_all=every,
            match_low_quality=low_quality,
        )
        settings = low, high, positive, least, every, low_quality
        expected = loop_max_iou(priors, boxes, real, valid, *settings)
        assert_as_the_loop(found, expected, labels, seed)


@pytest.mark.parametrize("topk", [1, 4])
def test_atss_is_the_loop(topk, x64):
    for seed in IMAGES:
        priors, boxes, labels, real, valid = random_image(seed)
        found = atss_assign(priors, boxes, labels, valid, level_sizes=SIZES, topk=topk)
        expected = loop_atss(priors, boxes, real, valid, topk)
        assert_as_the_loop(found, expected, labels, seed)


@pytest.mark.parametrize("radius", [None, 1.5])
def test_fcos_is_the_loop(radius, x64):
    grid = MlvlPointGenerator(strides=(8, 16)).grid(((10, 12), (5, 6)), np.float64)
    ranges = np.repeat([[-1.0, 32], [32, 1e8]], grid.level_sizes, axis=0)
    sampling = {} if radius is None else {"center_sampling": True, "center_sample_radius": radius}
    for seed in IMAGES:
        _, boxes, labels, real, _ = random_image(seed)
        found = fcos_assign(
            grid.priors, boxes, labels, strides=grid.strides, regress_ranges=ranges, **sampling
        )
        expected = loop_fcos(grid.priors, boxes, real, grid.strides, ranges, radius)
        assert_as_the_loop(found, expected, labels, seed)


def test_the_random_images_try_what_matters():
    images = [random_image(seed) for seed in IMAGES]
    counts = {len(real) for _, _, _, real, _ in images}
    assert {0, 1, WORST} <= counts
    assert {0, sum(SIZES)} <= {int(valid.sum()) for *_, valid in images}
    assert any(len(real) and real[0] > 0 for _, _, _, real, _ in images)  # padding first


@pytest.mark.parametrize("transform", [lambda f: lambda *args: [*map(f, *args)], jax.vmap])
def test_small_boxes_in_float32_get_a_prior(transform):
    """A box's best IoU is compared with IoUs computed in the same way, whatever XLA fuses.

    Which of several best priors a small box gets is a matter of rounding, but one it must get.
    """
    generator = AnchorGenerator(
        strides=(8, 16, 32), ratios=(0.5, 1.0, 2.0), octave_base_scale=4, scales_per_octave=3
    )
    priors = generator.grid(((12, 16), (6, 8), (3, 4))).priors
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 96, (60, 6, 2)), rng.uniform(6, 30, (60, 6, 2))
    boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
    labels = np.where(np.arange(6) <= np.arange(60)[:, None] % 6, 1, -1).astype(np.int32)

    # With LLVM's optimizations, as users have them.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def assign(*image):
        return max_iou_assign(priors, *image).gt_inds

    all_inds = np.asarray(transform(assign)(boxes, labels))
    for image, gt_inds in enumerate(all_inds):
        for g in np.flatnonzero(labels[image] >= 0):
            overlaps = np.array([iou(boxes[image, g], prior) for prior in priors])
            assert overlaps.max() > 0
            best = gt_inds[overlaps > overlaps.max() - 1e-5]
            assert (best > g).any(), "none is the box's own, or was taken by a later box"


def test_of_equal_boxes_the_first_wins_but_by_low_quality_the_last():
    generator = AnchorGenerator(strides=(8,), ratios=(1.0,), scales=(3,))
    grid, points = generator.grid(((6, 6),)), MlvlPointGenerator(strides=(8,)).grid(((6, 6),))
    boxes = np.tile(np.array([[9, 9, 37, 38]], np.float32), (3, 1))
    labels = np.array([-1, 0, 1], np.int32)
    settings = {"strides": points.strides, "regress_ranges": np.tile([[-1, 99]], (36, 1))}
    settings["regress_ranges"] = settings["regress_ranges"].astype(np.float32)
    for found in (
        max_iou_assign(grid.priors, boxes, labels, match_low_quality=False, pos_iou_thr=0.3),
        atss_assign(grid.priors, boxes, labels, level_sizes=grid.level_sizes),
        fcos_assign(points.priors, boxes, labels, **settings),
    ):
        assert set(np.asarray(found.gt_inds)) - {-1, 0} == {2}
    found = max_iou_assign(grid.priors, boxes, labels)
    assert 3 in found.gt_inds
    assert found.gt_inds[found.max_overlaps.argmax()] == 3


def test_no_box_at_all():
    priors = AnchorGenerator(strides=(8,), ratios=(1.0,), scales=(4,)).grid(((4, 4),)).priors
    points = MlvlPointGenerator(strides=(8,)).grid(((4, 4),)).priors
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    of_points = {"strides": np.full(16, 8), "regress_ranges": np.tile([[-1, 1e8]], (16, 1))}
    of_points = {key: value.astype(np.float32) for key, value in of_points.items()}
    for found in (
        max_iou_assign(priors, *nothing),
        atss_assign(priors, *nothing, level_sizes=(16,)),
        fcos_assign(points, *nothing, **of_points),
    ):
        np.testing.assert_array_equal(found.gt_inds, 0)
        np.testing.assert_array_equal(found.labels, -1)
        np.testing.assert_array_equal(found.max_overlaps, 0)


BOXES, LABELS = np.zeros((2, 4), np.float32), np.zeros(2, np.int32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BOXES[:, :2], BOXES, LABELS), ValueError, r"priors must have shape \(N, 4\), got"),
        ((BOXES, BOXES[0], LABELS), ValueError, r"gt_boxes must have shape \(G, 4\), got \(4,\)"),
        ((BOXES, BOXES, LABELS[:1]), ValueError, r"gt_labels must have shape \(2,\), got \(1,\)"),
        ((BOXES, BOXES, LABELS * 1.0), TypeError, "gt_labels must hold integer class indices"),
        ((BOXES, BOXES, LABELS, np.ones(3, bool)), ValueError, r"valid must have shape \(2,\)"),
        ((BOXES, [[0, 0, 1, 1]], LABELS), TypeError, "gt_boxes must be an array, got list"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=f"max_iou_assign: {message}"):
        max_iou_assign(*arguments)
    with pytest.raises(error, match=f"atss_assign: {message}"):
        atss_assign(*arguments, level_sizes=(2,))


def test_level_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"level_sizes \(1,\) do not add up to 2 priors"):
        atss_assign(BOXES, BOXES, LABELS, level_sizes=(1,))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "ATSSAssigner", "topk": 0}, "ATSSAssigner: topk must be > 0, got 0"),
        (
            {"type": "ATSSAssigner", "topk": 9, "ignore_iof_thr": 0.5},
            "ATSSAssigner: ignore_iof_thr must be negative, got 0.5",
        ),
        (
            {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": (0.1, 0.2, 0.3)},
            "MaxIoUAssigner: neg_iou_thr must be a number or a pair",
        ),
    ],
)
def test_configs_that_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        TASK_UTILS.build(config)
