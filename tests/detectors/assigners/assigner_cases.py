"""What the tests of the assigners on priors share: mmdet's cases, plain loops, random images."""

from typing import Any

import numpy as np

from golden.read_heads import read
from visdet_jax.detectors import TASK_UTILS

# mmdet 3.3.0's assignments: of random images, and of images made for one edge of a rule each.
RANDOM, RANDOM_CONFIG = read("assigners")
EDGE, EDGE_CONFIG = read("edge")
FEATURES = {  # the two images' feature maps, by a part of the case's name
    "s0": ((32, 40), (16, 20), (8, 10), (4, 5), (2, 3), (1, 2)),
    "s1": ((24, 32), (12, 16), (6, 8), (3, 4), (2, 2), (1, 1)),
}


def random_keys(family: str) -> list[str]:
    return [key for key in RANDOM_CONFIG["cases"] if key.startswith(family)]


def edge_keys(family: str) -> list[str]:
    return [key for key in EDGE_CONFIG["cases"] if key.startswith(family)]


def arrays_of(arrays: Any, key: str) -> dict[str, np.ndarray]:
    """The arrays of one case by their own names."""
    return {k.removeprefix(f"{key}_"): v for k, v in arrays.items() if k.startswith(f"{key}_")}


def pad(boxes: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and labels of `count` rows, those added being garbage and NaN."""
    rng = np.random.default_rng(0)
    padded = rng.uniform(-200, 300, (count, 4)).astype(boxes.dtype)
    padded[-1] = np.nan
    if count > len(boxes) + 1:
        padded[len(boxes)] = -1000, -1000, 1000, 1000
    padded[: len(boxes)] = boxes
    padded_labels = np.full(count, -1, np.int32)
    padded_labels[: len(labels)] = labels
    return padded, padded_labels


def features(config: dict[str, Any], key: str) -> tuple[tuple[int, int], ...]:
    """The (height, width) of the levels."""
    sizes = FEATURES["s0" if "_s0_" in key else "s1"]
    start = 0 if config["strides"][0] == 4 else 1
    return sizes[start : start + 5]


def check_random_case(key: str) -> None:
    """Asserts that an assigner on anchors does what mmdet's does on a random image."""
    case, expected = RANDOM_CONFIG["cases"][key], arrays_of(RANDOM, key)
    grid = TASK_UTILS.build(case["priors"]).grid(features(case["priors"], key))
    assert list(grid.level_sizes) == case["num_level_priors"]
    boxes, labels = pad(expected["gts"], expected["gt_labels"], 22)
    check(case["assigner"], grid.priors, boxes, labels, grid.level_sizes, expected)


def check_edge_case(key: str) -> None:
    """Asserts that an assigner on anchors does what mmdet's does at an edge of a rule."""
    case, expected = EDGE_CONFIG["cases"][key], arrays_of(EDGE, key)
    level_sizes = tuple(case["num_level_priors"] or [len(expected["priors"])])
    boxes, labels = pad(expected["gts"], expected["gt_labels"], 4)
    check(case["assigner"], expected["priors"], boxes, labels, level_sizes, expected)


def check(config, priors, boxes, labels, level_sizes, expected):
    found = TASK_UTILS.build(config).assign(priors, boxes, labels, level_sizes=level_sizes)
    np.testing.assert_array_equal(found.gt_inds, expected["gt_inds"])
    np.testing.assert_array_equal(found.labels, expected["labels"])
    np.testing.assert_allclose(found.max_overlaps, expected["max_overlaps"], rtol=1e-5, atol=1e-6)


# Random images for plain loops, box by box and prior by prior, to compare with.

LEVEL_SIZES = (40, 20, 12)
MOST_BOXES = 12
IMAGES = range(40)


def area(box: np.ndarray) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / (area(a) + area(b) - width * height)


def random_image(seed: int) -> tuple[np.ndarray, ...]:
    """Priors of no order, boxes among padding, their labels, which are real, which priors count.

    The priors are not on a grid: no two have the same overlap, or the same distance, but for
    rounding.
    """
    rng = np.random.default_rng(seed)

    def some(count, low, high):
        corner, size = rng.uniform(-10, 90, (count, 2)), rng.uniform(low, high, (count, 2))
        return np.concatenate([corner, corner + size], axis=1)

    priors = some(sum(LEVEL_SIZES), 8, 60)
    boxes = some(MOST_BOXES, 8, 70)
    count = rng.integers(0, MOST_BOXES + 1)
    if seed % 3 == 0:  # one that overlaps no prior
        boxes[rng.integers(MOST_BOXES)] += 500
    labels = np.where(rng.permutation(MOST_BOXES) < count, rng.integers(0, 5, MOST_BOXES), -1)
    padding = rng.choice([np.nan, np.inf, 0, 33, -1e30], (MOST_BOXES, 4))
    boxes = np.where((labels >= 0)[:, None], boxes, padding)
    valid = rng.random(len(priors)) < rng.choice([0, 0.05, 0.3, 0.9, 1])
    return priors, boxes, labels.astype(np.int32), np.flatnonzero(labels >= 0), valid


def assert_equals_loop(found: Any, gt_inds: np.ndarray, labels: np.ndarray, seed: int) -> None:
    np.testing.assert_array_equal(found.gt_inds, gt_inds, err_msg=f"image {seed}")
    expected = np.where(gt_inds > 0, labels[gt_inds - 1], -1)
    np.testing.assert_array_equal(found.labels, expected, err_msg=f"image {seed}")
