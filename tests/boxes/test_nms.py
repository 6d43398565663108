"""Non-maximum suppression: against the golden data, a plain greedy loop, properties, padding."""

import functools
import importlib
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from golden.read_cases import names, read
from programs import compiled, temporary_bytes
from visdet_jax.boxes import batched_nms, multiclass_nms, nms
from visdet_jax.detectors import TASK_UTILS

module = importlib.import_module("visdet_jax.boxes.nms")  # `visdet_jax.boxes.nms` is the function


@pytest.fixture(params=[5, module.BLOCK])
def block(request, monkeypatch):
    """Blocks smaller than most inputs here, and those that the package has."""
    monkeypatch.setattr(module, "BLOCK", request.param)
    jax.clear_caches()
    yield request.param
    jax.clear_caches()


def greedy(boxes, scores, threshold, max_out, groups=None, valid=None):
    """The indices that are kept, one box after the other, in NumPy and the boxes' type."""
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if (valid is not None and not valid[i]) or np.isnan(scores[i]):
            continue
        rivals = [j for j in kept if groups is None or groups[i] == groups[j]]
        if not rivals or not (iou(boxes[i], boxes[rivals]) > boxes.dtype.type(threshold)).any():
            kept.append(i)
    return kept[:max_out]


def iou(box, others):
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    overlap = np.maximum(high - low, 0).prod(1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(1)
    with np.errstate(invalid="ignore"):
        return overlap / (area + areas - overlap)


def kept_of(found):
    """The indices in the slots, once it is seen that these are filled from the first one on."""
    indices, exists = np.asarray(found.indices), np.asarray(found.exists)
    assert indices.dtype == np.int32
    assert (np.sort(exists)[::-1] == exists).all()
    assert (indices[~exists] == 0).all()
    return indices[exists].tolist()


def random_candidates(seed, count, ties=False):
    """Boxes and scores; with `ties` on a grid, so that IoUs and scores are often equal."""
    rng = np.random.default_rng(seed)
    if ties:
        corner, size = rng.integers(0, 6, (count, 2)), rng.integers(0, 5, (count, 2))
        scores = rng.integers(0, 4, count)
    else:
        corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))
        scores = rng.normal(size=count)
    boxes = np.concatenate([corner, corner + size], axis=1)
    return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 3, count)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("count", [1, 4, 37, 150])
def test_against_a_greedy_loop(block, count):
    # In one test, as they share programs.
    for seed, ties in itertools.product(range(3), (False, True)):
        boxes, scores, groups = random_candidates(seed, count, ties)
        for threshold in (0.0, 0.25, 0.5, 1.0):
            for max_out in (7, 200):
                expected = greedy(boxes, scores, threshold, max_out)
                assert kept_of(nms(boxes, scores, threshold, max_out=max_out)) == expected
                expected = greedy(boxes, scores, threshold, max_out, groups)
                found = batched_nms(boxes, scores, groups, threshold, max_out=max_out)
                assert kept_of(found) == expected


def test_a_chain_of_suppressions():
    # Each box suppresses the next one alone, so every second one is kept: many rounds in a block.
    x = np.arange(300, dtype=np.float32)
    boxes = np.stack([x, 0 * x, x + 3, 0 * x + 1], axis=1)
    scores = -x
    assert kept_of(nms(boxes, scores, 0.4, max_out=300)) == list(range(0, 300, 2))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 7.0])
def test_padding_is_not_read(block, garbage):
    boxes, scores, groups = random_candidates(0, 60)
    valid = np.random.default_rng(1).random(60) < 0.6
    expected = greedy(boxes, scores, 0.5, 50, groups, valid)
    boxes[~valid], scores[~valid], groups[~valid] = garbage, garbage, 1
    assert kept_of(batched_nms(boxes, scores, groups, 0.5, valid, max_out=50)) == expected
    expected = greedy(np.nan_to_num(boxes), np.nan_to_num(scores), 0.5, 50, valid=valid)
    assert kept_of(nms(boxes, scores, 0.5, valid, max_out=50)) == expected


def test_no_boxes_and_no_valid_ones():
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    assert kept_of(nms(*none, 0.5, max_out=3)) == []
    boxes, scores, groups = random_candidates(0, 9)
    invalid = np.zeros(9, bool)
    assert kept_of(batched_nms(boxes, scores, groups, 0.5, invalid, max_out=3)) == []


def test_scores_that_are_no_ordinary_numbers():
    boxes = np.array([[0, 0, 1, 1], [2, 0, 3, 1], [4, 0, 5, 1], [6, 0, 7, 1]], np.float32)
    scores = np.array([-np.inf, np.nan, np.inf, -3e38], np.float32)
    assert kept_of(nms(boxes, scores, 0.5, max_out=4)) == [2, 3, 0]


def test_boxes_without_area_and_inverted_ones_suppress_nothing():
    boxes = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [5, 5, 2, 2], [5, 5, 2, 2]], np.float32)
    scores = np.arange(4, dtype=np.float32)
    assert kept_of(nms(boxes, scores, 0.0, max_out=4)) == [3, 2, 1, 0]


def test_an_iou_at_the_threshold_is_kept():
    boxes = np.array([[0, 0, 2, 1], [1, 0, 2, 1], [0, 0, 4, 1]], np.float32)  # IoU 1/2 with the 1st
    scores = np.array([3, 2, 1], np.float32)
    assert kept_of(nms(boxes, scores, 0.5, max_out=3)) == [0, 1, 2]
    assert kept_of(nms(boxes, scores, np.nextafter(np.float32(0.5), np.float32(0)), max_out=3)) == [
        0
    ]


@pytest.mark.parametrize("ties", [False, True])
def test_what_is_kept_is_kept_again(ties):
    boxes, scores, _ = random_candidates(3, 80, ties)
    kept = kept_of(nms(boxes, scores, 0.4, max_out=80))
    again = kept_of(nms(boxes[kept], scores[kept], 0.4, max_out=80))
    assert again == list(range(len(kept)))


def test_the_order_of_the_boxes_changes_nothing():
    boxes, scores, groups = random_candidates(4, 80)
    order = np.random.default_rng(0).permutation(80)
    kept = kept_of(batched_nms(boxes, scores, groups, 0.4, max_out=30))
    moved = kept_of(batched_nms(boxes[order], scores[order], groups[order], 0.4, max_out=30))
    assert order[moved].tolist() == kept


def test_groups_are_apart_at_negative_coordinates_too():
    boxes, scores, groups = random_candidates(5, 80)
    boxes -= 200
    expected = greedy(boxes, scores, 0.3, 80, groups)
    assert kept_of(batched_nms(boxes, scores, groups, 0.3, max_out=80)) == expected
    together = batched_nms(boxes, scores, groups, 0.3, max_out=80, class_agnostic=True)
    assert kept_of(together) == greedy(boxes, scores, 0.3, 80)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64])
def test_groups_of_every_integer_type(dtype):
    boxes, scores, groups = random_candidates(6, 40)
    expected = greedy(boxes, scores, 0.3, 40, groups)
    assert kept_of(batched_nms(boxes, scores, groups.astype(dtype), 0.3, max_out=40)) == expected


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_floats_are_computed_in_float32(dtype):
    boxes, scores, _ = random_candidates(7, 60)
    boxes, scores = jnp.asarray(boxes, dtype), jnp.asarray(scores, dtype)
    exact = np.asarray(boxes.astype(np.float32)), np.asarray(scores.astype(np.float32))
    assert kept_of(nms(boxes, scores, 0.5, max_out=60)) == greedy(*exact, 0.5, 60)


def images(count):
    batch = [random_candidates(seed, 70) for seed in range(count)]
    boxes, scores, groups = (np.stack(x) for x in zip(*batch, strict=True))
    # Images need different numbers of blocks.
    valid = np.arange(70) < np.linspace(5, 70, count)[:, None]
    expected = [
        greedy(*image[:2], 0.4, 20, *image[2:])
        for image in zip(boxes, scores, groups, valid, strict=True)
    ]
    return (boxes, scores, groups, valid), expected


suppress = functools.partial(batched_nms, iou_threshold=0.4, max_out=20)


def suppress_image(boxes, scores, groups, valid):
    return suppress(boxes, scores, groups, valid=valid)


@pytest.mark.long
def test_vmap_equals_the_loop(block):
    batch, expected = images(3)
    found = jax.jit(jax.vmap(suppress_image))(*batch)
    for i, kept in enumerate(expected):
        assert kept_of(jax.tree.map(lambda x, i=i: x[i], found)) == kept
    with jax.disable_jit():
        assert kept_of(suppress_image(*(x[0] for x in batch))) == expected[0]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["shard_map", "auto", "explicit"])
def test_images_spread_over_devices(monkeypatch, kind):
    monkeypatch.setattr(module, "BLOCK", 8)
    jax.clear_caches()
    batch, expected = images(4)
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2,), ("images",), (axis_type,), devices=jax.devices()[:2])
    call = jax.vmap(suppress_image)
    if kind == "shard_map":
        call = jax.shard_map(call, mesh=mesh, in_specs=P("images"), out_specs=P("images"))
    with jax.set_mesh(mesh):
        found = jax.device_get(
            jax.jit(call)(*jax.device_put(batch, NamedSharding(mesh, P("images"))))
        )
    for i, kept in enumerate(expected):
        assert kept_of(jax.tree.map(lambda x, i=i: x[i], found)) == kept


def test_no_gradient_flows():
    boxes, scores, _ = random_candidates(0, 30)

    def total(boxes, scores):
        found = nms(boxes, scores, 0.5, max_out=10)
        return jnp.where(found.exists, scores[found.indices], 0).sum()

    _, gradient = jax.grad(total, argnums=(0, 1))(boxes, scores)
    kept = greedy(boxes, scores, 0.5, 10)
    np.testing.assert_array_equal(np.flatnonzero(gradient), np.sort(kept))


def test_a_threshold_may_be_swept():
    boxes, scores, _ = random_candidates(0, 50)
    thresholds = np.array([0.2, 0.6], np.float32)
    found = jax.vmap(lambda threshold: nms(boxes, scores, threshold, max_out=50))(thresholds)
    for i, threshold in enumerate(thresholds):
        one = jax.tree.map(lambda x, i=i: x[i], found)
        assert kept_of(one) == greedy(boxes, scores, threshold, 50)


# No suppression.


def has_a_loop(function, *arguments):
    return " while(" in compiled(function, *arguments).as_text()


@pytest.mark.one_in(3)
@pytest.mark.parametrize("max_out", [5, 45, 90])
def test_without_a_threshold_the_best_scores_are_kept_without_a_loop(max_out):
    boxes, scores, groups = random_candidates(0, 60, ties=True)
    valid = np.random.default_rng(1).random(60) < 0.6
    valid[0] = False  # Padding stands before the last one.
    boxes[~valid], scores[~valid] = np.nan, np.nan
    scores[np.flatnonzero(valid)[:3]] = -np.inf, np.nan, np.inf
    functions = (
        lambda boxes, scores, threshold: nms(boxes, scores, threshold, valid, max_out=max_out),
        lambda boxes, scores, threshold: batched_nms(
            boxes, scores, groups, threshold, valid, max_out=max_out
        ),
    )
    for found in functions:
        # No IoU is above 1.
        chex.assert_trees_all_equal(found(boxes, scores, None), found(boxes, scores, 1.0))
        assert found(boxes, scores, None).exists.sum() == min(max_out, valid.sum() - 1)
        assert has_a_loop(found, boxes, scores, 1.0)
        assert not has_a_loop(found, boxes, scores, None)


@pytest.mark.long
@pytest.mark.parametrize("max_candidates", [None, 20, 400])
@pytest.mark.parametrize("max_per_img", [30, 200])
def test_classes_without_a_threshold(max_per_img, max_candidates):
    boxes, scores = random_classes(3)
    factors = np.random.default_rng(1).random(40).astype(np.float32)
    slots = {"max_per_img": max_per_img, "max_candidates": max_candidates}

    def found(boxes, scores, threshold):
        return multiclass_nms(boxes, scores, 0.3, threshold, None, factors, **slots)

    chex.assert_trees_all_equal(found(boxes, scores, None), found(boxes, scores, 1.0))
    assert has_a_loop(found, boxes, scores, 1.0)
    assert not has_a_loop(found, boxes, scores, None)


def test_memory_is_linear_in_the_boxes():
    def bytes_for(count):
        boxes, scores = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
        return temporary_bytes(lambda b, s: nms(b, s, 0.7, max_out=1000), boxes, scores)

    # The matrix of all IoUs would be 320 MB.
    assert bytes_for(9000) < 4e6
    assert bytes_for(18000) - bytes_for(9000) < 9000 * 64


# Classes.


def random_classes(seed, rows=40, classes=4, each=False):
    rng = np.random.default_rng(seed)
    boxes = np.stack([random_candidates(seed + i, rows)[0] for i in range(classes)], axis=1)
    return boxes if each else boxes[:, 0], rng.random((rows, classes)).astype(np.float32)


def slow_multiclass(boxes, scores, score_thr, threshold, max_per_img, factors=None, agnostic=False):
    """(row, label) of the detections, in NumPy."""
    rows, classes = scores.shape
    pairs = np.arange(rows * classes)
    flat = (scores if factors is None else scores * factors[:, None]).ravel()
    each = boxes if boxes.ndim == 3 else boxes[:, None].repeat(classes, 1)
    kept = greedy(
        each.reshape(-1, 4),
        flat,
        threshold,
        max_per_img,
        pairs * 0 if agnostic else pairs % classes,
        scores.ravel() > score_thr,
    )
    return [(pair // classes, pair % classes) for pair in kept]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("with_factors", [False, True])
def test_classes_against_a_greedy_loop(each, agnostic, with_factors):
    boxes, scores = random_classes(0, each=each)
    factors = np.random.default_rng(1).random(40).astype(np.float32) if with_factors else None
    expected = slow_multiclass(boxes, scores, 0.4, 0.3, 30, factors, agnostic)
    found = multiclass_nms(
        boxes, scores, 0.4, 0.3, None, factors, max_per_img=30, class_agnostic=agnostic
    )
    exists = np.asarray(found.exists)
    pairs = zip(found.indices[exists].tolist(), found.labels[exists].tolist(), strict=True)
    assert list(pairs) == expected
    for slot, (row, label) in enumerate(expected):
        factor = 1 if factors is None else factors[row]
        assert found.scores[slot] == scores[row, label] * factor
        np.testing.assert_array_equal(found.boxes[slot], boxes[row, label] if each else boxes[row])
    assert (found.labels[~exists] == -1).all()
    assert not found.boxes[~exists].any()
    assert not found.scores[~exists].any()


def test_classes_padding_is_not_read():
    boxes, scores = random_classes(2)
    valid = np.arange(40) % 3 > 0
    expected = slow_multiclass(boxes, np.where(valid[:, None], scores, -1), 0.1, 0.5, 25)
    boxes[~valid], scores[~valid] = np.nan, np.nan
    found = multiclass_nms(boxes, scores, 0.1, 0.5, valid, max_per_img=25)
    pairs = zip(found.indices.tolist(), found.labels.tolist(), strict=True)
    assert list(pairs)[: len(expected)] == expected
    assert np.isfinite(found.boxes).all()


def test_classes_of_no_boxes():
    for rows, classes in ((0, 3), (5, 0)):
        found = multiclass_nms(
            np.zeros((rows, 4), np.float32),
            np.zeros((rows, classes), np.float32),
            0.1,
            0.5,
            max_per_img=4,
        )
        assert [x.shape for x in found] == [(4, 4), (4,), (4,), (4,), (4,)]
        assert not found.exists.any()
        assert (found.labels == -1).all()
        assert (found.indices == 0).all()


def test_fewer_candidates_are_the_best_ones():
    boxes, scores = random_classes(3)
    least = np.sort(scores.ravel())[-50]
    expected = multiclass_nms(boxes, scores, np.nextafter(least, 0), 0.3, max_per_img=60)
    found = multiclass_nms(boxes, scores, 0.05, 0.3, max_per_img=60, max_candidates=50)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    all_of_them = multiclass_nms(boxes, scores, 0.05, 0.3, max_per_img=60, max_candidates=10**6)
    expected = multiclass_nms(boxes, scores, 0.05, 0.3, max_per_img=60)
    jax.tree.map(np.testing.assert_array_equal, all_of_them, expected)


# mmdet's numbers.


def top_rows(scores, most):
    """The indices of the largest scores of each image, of equal ones the first ones."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :most]


def softmax_or_sigmoid(logits):
    """The score of the one class of an RPN, in NumPy."""
    if logits.shape[-1] == 2:
        logits = logits[..., :1] - logits[..., 1:]
    return 1 / (1 + np.exp(-logits[..., 0]))


def proposals(arrays, config, dtype):
    """mmdet's candidates of each image: boxes, scores, levels, prior indices, and which count."""
    settings, head = config["test_cfg"], config["head_cfg"]
    generator = TASK_UTILS.build(head["anchor_generator"])
    coder = TASK_UTILS.build(head["bbox_coder"])
    sizes = tuple(map(tuple, arrays["featmap_sizes"].tolist()))
    grid = generator.grid(sizes, dtype)
    softmax = not head["loss_cls"].get("use_sigmoid", False)
    batch, parts, start = len(arrays["img_shapes"]), [], 0
    for level, size in enumerate(grid.level_sizes):

        def rows(kind, channels, level=level, size=size):
            maps = arrays[f"in_{kind}_{level}"].astype(dtype).transpose(0, 2, 3, 1)
            return maps.reshape(batch, size, channels)

        scores = softmax_or_sigmoid(rows("cls", 2 if softmax else 1))
        most = settings["nms_pre"]
        best = top_rows(scores, most if 0 < most < size else size)
        deltas = np.take_along_axis(rows("bbox", 4), best[..., None], axis=1)
        scores = np.take_along_axis(scores, best, axis=1)
        parts.append((deltas, scores, np.full_like(best, level), best + start))
        start += size
    deltas, scores, levels, index = (np.concatenate(x, axis=1) for x in zip(*parts, strict=True))
    boxes = np.asarray(coder.decode(grid.priors[index], deltas, arrays["img_shapes"]))
    least = settings["min_bbox_size"]
    sides = boxes[..., 2:] - boxes[..., :2]
    counts = (sides > least).all(-1) if least >= 0 else np.ones_like(scores, bool)
    return boxes, scores, levels, index, counts


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", names("twostage", "prop"))
@pytest.mark.parametrize("precision", [64, 32])
def test_golden_proposals(name, precision, x64):
    arrays, config = read("twostage", name)
    dtype = {64: np.float64, 32: np.float32}[precision]
    boxes, scores, levels, index, counts = proposals(arrays, config, dtype)
    # What does not count may be anything.
    boxes = np.where(counts[..., None], boxes, dtype(np.nan))
    settings = config["test_cfg"]
    call = functools.partial(
        batched_nms,
        iou_threshold=settings["nms"]["iou_threshold"],
        max_out=settings["max_per_img"],
    )
    found = jax.vmap(lambda *x: call(*x[:3], valid=x[3]))(boxes, scores, levels, counts)
    found = jax.device_get(found)
    for image, number in enumerate(arrays["exp_num"]):
        kept = kept_of(jax.tree.map(lambda x, i=image: x[i], found))
        assert len(kept) == number
        kept = np.array(kept, int)
        np.testing.assert_array_equal(index[image][kept], arrays["exp_index"][image, :number])
        np.testing.assert_allclose(
            scores[image][kept], arrays["exp_scores"][image, :number], rtol=1e-6
        )
        rtol, atol = (1e-9, 1e-9) if precision == 64 else (1e-5, 1e-4)
        np.testing.assert_allclose(
            boxes[image][kept], arrays["exp_boxes"][image, :number], rtol=rtol, atol=atol
        )


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", names("twostage", "pred"))
@pytest.mark.parametrize("precision", [64, 32])
def test_golden_detections(name, precision, x64):
    arrays, config = read("twostage", name)
    dtype = {64: np.float64, 32: np.float32}[precision]
    settings, classes = config["test_cfg"], config["num_classes"]
    boxes, scores = (arrays[f"exp_raw_{part}"].astype(dtype) for part in ("boxes", "scores"))
    batch, rows = scores.shape[:2]
    if boxes.shape[-1] > 4:
        boxes = boxes.reshape(batch, rows, classes, 4)
    valid = np.arange(rows) < arrays["num_rois"][:, None]
    boxes[~valid], scores[~valid] = np.nan, np.nan
    call = functools.partial(
        multiclass_nms,
        score_thr=settings["score_thr"],
        iou_threshold=settings["nms"]["iou_threshold"],
        max_per_img=settings["max_per_img"],
    )
    found = jax.vmap(lambda boxes, scores, valid: call(boxes, scores, valid=valid))(
        boxes, scores[..., :classes], valid
    )
    found = jax.device_get(found)
    np.testing.assert_array_equal(found.exists.sum(1), arrays["exp_num"])
    for image, number in enumerate(arrays["exp_num"]):
        for part in ("boxes", "scores", "labels"):
            np.testing.assert_allclose(
                getattr(found, part)[image, :number],
                arrays[f"exp_{part}"][image, :number],
                rtol=1e-12 if precision == 64 else 1e-6,
            )


# Errors.


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((3, 5), (3,), 0.5), {"max_out": 2}, r"boxes must have shape \(N, 4\), got \(3, 5\)"),
        (((3, 4), (2,), 0.5), {"max_out": 2}, r"scores must have shape \(3,\), got \(2,\)"),
        (((3, 4), (3,), 1.5), {"max_out": 2}, r"iou_threshold must be in \[0, 1\], got 1.5"),
        (((3, 4), (3,), 0.5), {"max_out": 0}, "max_out must be at least 1, got 0"),
        (((3, 4), (3,), 0.5, (2,)), {"max_out": 2}, r"valid must have shape \(3,\), got \(2,\)"),
    ],
)
def test_errors(arguments, options, message):
    arrays = [np.zeros(x, np.float32) if isinstance(x, tuple) else x for x in arguments]
    with pytest.raises(ValueError, match=f"nms: {message}"):
        nms(*arrays, **options)


def test_errors_of_groups_and_classes():
    boxes, scores = np.zeros((3, 4), np.float32), np.zeros(3, np.float32)
    with pytest.raises(TypeError, match="batched_nms: groups must hold integer class indices"):
        batched_nms(boxes, scores, scores, 0.5, max_out=2)
    with pytest.raises(TypeError, match="nms: the argument 'max_out' is missing"):
        nms(boxes, scores, 0.5)
    with pytest.raises(ValueError, match=r"multiclass_nms: boxes must have shape \(3, 4\), or"):
        multiclass_nms(np.zeros((3, 8), np.float32), boxes, 0.1, 0.5, max_per_img=2)
    with pytest.raises(ValueError, match=r"multiclass_nms: scores must have shape \(N, C\)"):
        multiclass_nms(boxes, scores, 0.1, 0.5, max_per_img=2)
    with pytest.raises(ValueError, match=r"multiclass_nms: score_factors must have shape \(3,\)"):
        multiclass_nms(boxes, boxes, 0.1, 0.5, score_factors=boxes, max_per_img=2)
