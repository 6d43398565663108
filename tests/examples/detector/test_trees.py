"""The aerial photographs of trees: the split, the crops and their boxes."""

import jax
import numpy as np
import pytest

from detector import data, trees
from detector.data import IGNORED, PADDING

pytestmark = pytest.mark.example


def make_trees(**options):
    return trees.Trees(
        **{"batch_size": 4, "image_size": 96, "max_boxes": 100, "multiple": 8, "seed": 0, **options}
    )


def test_trees_split_has_no_leak(monkeypatch):
    """With pixels of 0 left of the border and 255 right of it, every crop has one colour."""
    original = trees._read_photograph

    def marked(file_name):
        image, boxes, labels = original(file_name)
        image = np.zeros_like(image)
        image[:, 920:] = 255  # 80 % of 1150
        return image, boxes, labels

    monkeypatch.setattr(trees, "_read_photograph", marked)
    dataset = make_trees(batch_size=64)
    assert dataset.image.shape == (1236, 920, 3)
    for step in range(5):
        assert dataset.train_batch(step)["images"].std(axis=(1, 2, 3)).max() == 0
    strip, place = dataset.validation[0].load(0)
    assert strip.min() == 255
    assert (place.width, place.height) == (230, 1236)
    # Each crown is an object on only one side of the border.
    objects = sum(not a["iscrowd"] for a in dataset.validation[0].ground_truth["annotations"])
    assert objects + (dataset.labels >= 0).sum() == 574
    assert 0 < (dataset.labels == IGNORED).sum() < 24


def test_trees_detections_are_not_capped_below_the_crowns():
    for validation in make_trees().validation:
        assert validation.max_detections > len(validation.ground_truth["annotations"])


def test_trees_batches_follow_from_seed_and_step():
    first, again, other = make_trees(seed=1), make_trees(seed=1), make_trees(seed=2)
    batch = first.train_batch(7)
    jax.tree.map(np.testing.assert_array_equal, batch, again.train_batch(7))
    assert (batch["images"] != first.train_batch(8)["images"]).any()
    assert (batch["images"] != other.train_batch(7)["images"]).any()


def test_augmentation_moves_boxes_with_their_pixels(monkeypatch):
    """Every painted pixel of a crop lies in a box, and every pixel of a box is painted."""
    # Keep all boxes, also those of which less than half lies in the crop.
    monkeypatch.setattr(data, "VISIBLE", 0.0)
    boxes = np.array(
        [(x, y, x + 12, y + 7) for x in range(0, 1140, 20) for y in range(0, 1225, 15)], np.float32
    )
    image = np.zeros((1236, 1150, 3), np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2] = 200
    labels = np.zeros(len(boxes), np.int32)
    monkeypatch.setattr(trees, "_read_photograph", lambda name: (image, boxes, labels))
    batch = make_trees(batch_size=32, max_boxes=200).train_batch(0)
    shapes = set()
    for pixels, crop_boxes, crop_labels in zip(*batch.values(), strict=True):
        covered = np.zeros(pixels.shape[:2], bool)
        for x1, y1, x2, y2 in crop_boxes[crop_labels != PADDING].astype(int):
            covered[y1:y2, x1:x2] = True
            shapes.add((x2 - x1, y2 - y1))
        np.testing.assert_array_equal(covered, pixels[..., 0] > pixels.min())
    assert {(12, 7), (7, 12)} <= shapes  # Some were transposed, some were not.
