"""The assigners that look at predictions, against plain loops in NumPy on random images."""

import functools

import jax
import numpy as np
import pytest

from detectors.assigners.assigner_cases import assert_equals_loop, iou
from visdet_jax.detectors import (
    dynamic_soft_label_assign,
    sim_ota_assign,
    task_aligned_assign,
    yolo_task_aligned_assign,
)

PRIORS, BOXES, CLASSES = 48, 9, 4
IMAGES = range(25)


@functools.cache
def image(seed):
    """Points, strides, predicted boxes, logits, boxes among padding, labels, valid."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(0, 90, (PRIORS, 2))
    reach = rng.uniform(3, 25, (PRIORS, 4))
    pred = np.concatenate([points - reach[:, :2], points + reach[:, 2:]], axis=1)
    corner, size = rng.uniform(-5, 60, (BOXES, 2)), rng.uniform(6, 45, (BOXES, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    real = rng.permutation(BOXES) < rng.integers(0, BOXES + 1)
    labels = np.where(real, rng.integers(0, CLASSES, BOXES), -1).astype(np.int32)
    garbage = rng.choice([np.nan, np.inf, 0, 33], (BOXES, 4))
    valid = rng.random(PRIORS) < rng.choice([0, 0.5, 1])
    return (
        points.astype("f4"),
        rng.choice([8.0, 16.0], PRIORS).astype("f4"),
        pred.astype("f4"),
        rng.normal(-1, 2, (PRIORS, CLASSES)).astype("f4"),
        np.where(real[:, None], boxes, garbage).astype("f4"),
        labels,
        valid,
    )


def assigned(function, *, probabilities=True, **settings):
    """The assignment, the scores and the labels of each image, all images by one call."""
    *first, logits, boxes, labels, valid = (
        np.stack(x) for x in zip(*map(image, IMAGES), strict=True)
    )
    scores = sigmoid(logits).astype("f4") if probabilities else logits
    call = functools.partial(function, **settings)
    found = jax.vmap(call)(*first, scores, boxes, labels, valid)
    found = [jax.tree.map(lambda x, i=i: np.asarray(x[i]), found) for i in IMAGES]
    return zip(found, scores, labels, strict=True)


def distances(point, box):
    return min(*(point - box[:2]), *(box[2:] - point))


def sigmoid(x):
    return 1 / (1 + np.exp(-np.float64(x)))


def soft_label_cost(point, stride, logits, overlap, box, label):
    cost = 0
    for c, x in enumerate(np.float64(logits)):
        y = overlap if c == label else 0
        cost += (np.log1p(np.exp(x)) - x * y) * (y - sigmoid(x)) ** 2
    distance = np.hypot(*(point - (box[:2] + box[2:]) / 2)) / stride
    return cost - 3 * np.log(overlap + 1e-7) + 10 ** (distance - 3)


def is_near(point, stride, box):
    return (np.abs(point - (box[:2] + box[2:]) / 2) < 2.5 * stride).all()


def ota_cost(point, stride, probabilities, overlap, box, label):
    cost = -3 * np.log(overlap + 1e-7)
    for c, s in enumerate(np.float64(probabilities)):
        cost -= np.log(s if c == label else 1 - s)
    return cost + 1e5 * (not (distances(point, box) > 0 and is_near(point, stride, box)))


def dynamic_by_loops(seed, scores, cost, takes_part, topk):
    points, strides, pred, _, boxes, labels, valid = image(seed)
    real = np.flatnonzero(labels >= 0)
    part = [
        n
        for n in range(PRIORS)
        if valid[n] and any(takes_part(points[n], strides[n], boxes[g]) for g in real)
    ]
    overlaps = {
        (n, g): float(iou(np.float64(pred[n]), np.float64(boxes[g]))) for n in part for g in real
    }
    costs = {
        (n, g): cost(points[n], strides[n], scores[n], u, np.float64(boxes[g]), labels[g])
        for (n, g), u in overlaps.items()
    }
    takers = {n: [] for n in part}
    for g in real:
        largest = sorted((overlaps[n, g] for n in part), reverse=True)[:topk]
        k = max(int(sum(largest)), 1)
        for n in sorted(part, key=lambda n: costs[n, g])[:k]:
            takers[n].append(g)
    gt_inds = np.where(valid, 0, -2)
    for n, boxes_of in takers.items():
        if len(boxes_of) == 1:
            gt_inds[n] = 1 + boxes_of[0]
        elif boxes_of:
            gt_inds[n] = 1 + min(real, key=lambda g: costs[n, g])
    return gt_inds


@pytest.mark.parametrize("name", ["dynamic_soft_label", "sim_ota"])
def test_dynamic_k(name, form):
    if name == "sim_ota":
        function, probabilities = sim_ota_assign, True
        rules = (ota_cost, lambda p, s, b: distances(p, b) > 0 or is_near(p, s, b), 10)
    else:
        function, probabilities = dynamic_soft_label_assign, False
        rules = (soft_label_cost, lambda p, s, b: distances(p, b) > 0, 13)
    of_images = assigned(function, probabilities=probabilities)
    for seed, (found, scores, labels) in enumerate(of_images):
        assert_equals_loop(found, dynamic_by_loops(seed, scores, *rules), labels, seed)


def ciou(a, b):
    """With the epsilons of the YOLOs since v8."""
    eps = 1e-7
    (aw, ah), (bw, bh) = a[2:] - a[:2], b[2:] - b[:2]
    ah, bh = ah + eps, bh + eps
    inter = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    u = inter / (aw * ah + bw * bh - inter + eps)
    around = np.maximum(a[2:], b[2:]) - np.minimum(a[:2], b[:2])
    apart = ((a[:2] + a[2:]) - (b[:2] + b[2:])) / 2
    v = 4 / np.pi**2 * (np.arctan(bw / bh) - np.arctan(aw / ah)) ** 2
    return u - (apart**2).sum() / ((around**2).sum() + eps) - v * v / (v - u + 1 + eps)


def aligned_by_loops(
    seed, scores, overlap, exponents, contains, *, inside_first, eps, topk, topk2=None
):
    points, _, pred, _, boxes, labels, valid = image(seed)
    real, part = np.flatnonzero(labels >= 0), np.flatnonzero(valid)
    alpha, beta = exponents
    inside = {(n, g): contains(points[n], np.float64(boxes[g])) for n in part for g in real}
    overlaps = {
        (n, g): max(overlap(np.float64(pred[n]), np.float64(boxes[g])), 0)
        * (inside[n, g] or not inside_first)
        for n in part
        for g in real
    }
    metrics = {
        (n, g): np.float64(scores[n, labels[g]]) ** alpha * u**beta
        for (n, g), u in overlaps.items()
    }
    takers = {n: [] for n in part}
    for g in real:
        for n in sorted(part, key=lambda n: -metrics[n, g])[:topk]:
            if inside[n, g] and metrics[n, g] > 0:
                takers[n].append(g)
    gt_inds, metric_of = np.where(valid, 0, -2), np.zeros(PRIORS)
    for n, boxes_of in takers.items():
        if boxes_of:
            rivals = boxes_of if len(boxes_of) == 1 or not inside_first else real
            best = max(rivals, key=lambda g: overlaps[n, g])
            gt_inds[n], metric_of[n] = 1 + best, metrics[n, best]
    if topk2 is not None:
        for g in real:
            own = sorted(np.flatnonzero(gt_inds == 1 + g), key=lambda n: -metric_of[n])
            gt_inds[own[topk2:]] = 0
    expected = np.zeros(PRIORS)
    for g in real:
        own = np.flatnonzero(gt_inds == 1 + g)
        if len(own):
            largest = max(overlaps[n, g] for n in own)
            expected[own] = metric_of[own] / (metric_of[own].max() + eps) * largest
    return gt_inds, expected


def test_task_aligned(form):
    for seed, (found, scores, labels) in enumerate(assigned(task_aligned_assign, topk=5)):
        gt_inds, metrics = aligned_by_loops(
            seed,
            scores,
            iou,
            (1, 6),
            lambda p, b: distances(p, b) > 0.01,
            inside_first=False,
            eps=1e-7,
            topk=5,
        )
        assert_equals_loop(found, gt_inds, labels, seed)
        np.testing.assert_allclose(found.metrics, metrics, rtol=1e-3, atol=1e-7)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("topk2", [None, 1, 3])
@pytest.mark.parametrize("min_side", [0.0, 16.0])
def test_yolo_task_aligned(topk2, min_side, form):
    def contains(point, box):
        side, center = np.maximum(box[2:] - box[:2], min_side), (box[:2] + box[2:]) / 2
        return distances(point, np.concatenate([center - side / 2, center + side / 2])) > 1e-9

    settings = {"topk": 5, "topk2": topk2}
    of_images = assigned(yolo_task_aligned_assign, min_side=min_side, **settings)
    for seed, (found, scores, labels) in enumerate(of_images):
        gt_inds, metrics = aligned_by_loops(
            seed, scores, ciou, (0.5, 6), contains, inside_first=True, eps=1e-9, **settings
        )
        assert_equals_loop(found, gt_inds, labels, seed)
        np.testing.assert_allclose(found.metrics, metrics, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_what_accelerators_keep_of_a_batch_has_the_boxes_first(platform):
    """In another order a TPU copies all of it for each kernel that reads a box's row."""
    *first, logits, boxes, labels, valid = (np.stack([x, x, x]) for x in image(0))
    batch = jax.jit(jax.vmap(functools.partial(task_aligned_assign, topk=5)))
    traced = batch.trace(*first, sigmoid(logits).astype("f4"), boxes, labels, valid)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    kept = [line for line in text.splitlines() if "optimization_barrier" in line]
    assert any(f"tensor<{BOXES}x3x{PRIORS}xf32>" in line for line in kept)
    assert not any(f"tensor<3x{BOXES}x{PRIORS}xf32>" in line for line in kept)
