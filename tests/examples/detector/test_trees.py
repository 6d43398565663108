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
    """With pixels of 0 above the border and 255 below it, every crop has one colour."""
    original, crowns = trees._read_photograph, []

    def marked(file_name):
        image, boxes, labels = original(file_name)
        crowns.append(len(boxes))
        image = np.zeros_like(image)
        image[len(image) * 3 // 4 :] = 255
        return image, boxes, labels

    monkeypatch.setattr(trees, "_read_photograph", marked)
    dataset = make_trees(batch_size=64)
    sizes = [(927, 1150), (388, 624), (150, 200), (150, 200)]
    assert [image.shape[:2] for image, _, _ in dataset.parts] == sizes
    for step in range(5):
        assert dataset.train_batch(step)["images"].std(axis=(1, 2, 3)).max() == 0
    (validation,) = dataset.validation
    places = [(1150, 309), (624, 130), (200, 50), (200, 50)]
    for index, size in enumerate(places):
        strip, place = validation.load(index)
        assert strip.min() == 255
        assert (place.width, place.height) == size
        assert strip.shape == (-(-size[1] // 8) * 8, -(-size[0] // 8) * 8, 3)
    # Each crown is an object on only one side of the border.
    annotations = validation.ground_truth["annotations"]
    for index, (_, _, labels) in enumerate(dataset.parts):
        below = sum(a["image_id"] == index and not a["iscrowd"] for a in annotations)
        assert below + (labels >= 0).sum() == crowns[index]
        assert 0 < (labels == IGNORED).sum() < 24
    assert sum(crowns) == 951


def test_trees_crops_come_from_all_photographs(monkeypatch):
    """As often as they have crowns: of four colours, all occur, and the first most often."""
    original, shades = trees._read_photograph, iter([40, 80, 120, 160])

    def shaded(file_name):
        image, boxes, labels = original(file_name)
        return np.full_like(image, next(shades)), boxes, labels

    monkeypatch.setattr(trees, "_read_photograph", shaded)
    monkeypatch.setattr(trees, "brighten", lambda image, *_: image)
    images = make_trees(batch_size=400).train_batch(0)["images"]
    colours, counts = np.unique(images[:, 0, 0, 0], return_counts=True)
    assert colours.tolist() == [40, 80, 120, 160]
    np.testing.assert_allclose(counts / 400, np.array([415, 212, 46, 30]) / 703, atol=0.07)


def test_trees_crops_that_do_not_fit():
    with pytest.raises(data.DataError, match=r"OSBS_029\.jpg: its upper part, 200 x 150 pixels"):
        make_trees(image_size=160)


def test_trees_detections_are_not_capped_below_the_crowns():
    (validation,) = make_trees().validation
    images = [a["image_id"] for a in validation.ground_truth["annotations"]]
    assert 100 < np.bincount(images).max() < validation.max_detections


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
