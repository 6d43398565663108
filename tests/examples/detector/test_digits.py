"""The scenes of handwritten digits."""

import copy

import jax
import numpy as np
import pytest

from detector import digits
from detector.data import PADDING, decode_mask

pytestmark = pytest.mark.example


def test_digits_train_and_validation_are_disjoint(monkeypatch):
    """The first 1437 digits are painted grey, the others white."""
    bunch = copy.deepcopy(digits.load_digits())
    bunch.images[:1437] = 8
    bunch.images[1437:] = 16
    monkeypatch.setattr(digits, "load_digits", lambda: bunch)
    dataset = digits.Digits(batch_size=64, image_size=96, max_boxes=8, seed=0)
    assert all(dataset.train_batch(step)["images"].max() == 127 for step in range(5))
    for index in range(digits.VALIDATION_SCENES):
        image, _ = dataset.validation[0].load(index)
        assert set(np.unique(image)) == {0, 255}


def test_digits_keep_their_labels(monkeypatch):
    """Every digit is painted in the grey level of its class."""
    bunch = copy.deepcopy(digits.load_digits())
    bunch.images[:] = 5 + bunch.target[:, None, None]
    monkeypatch.setattr(digits, "load_digits", lambda: bunch)
    dataset = digits.Digits(batch_size=8, image_size=96, max_boxes=8, seed=0)
    batch = dataset.train_batch(0)
    samples = list(zip(batch["images"], batch["boxes"], batch["labels"], strict=True))
    truth = dataset.validation[0].ground_truth["annotations"]
    for annotation in truth[:50]:
        x, y, w, h = annotation["bbox"]
        image, _ = dataset.validation[0].load(annotation["image_id"])
        samples.append((image, [[x, y, x + w, y + h]], [annotation["category_id"]]))
    for image, boxes, labels in samples:
        for (x1, y1, x2, y2), label in zip(np.asarray(boxes, int), labels, strict=True):
            if label != PADDING:
                assert set(image[y1:y2, x1:x2].ravel()) == {(5 + label) * 255 // 16}


def test_digits_scenes():
    dataset = digits.Digits(batch_size=32, image_size=96, max_boxes=8, seed=5)
    batch = dataset.train_batch(2)
    jax.tree.map(np.testing.assert_array_equal, batch, dataset.train_batch(2))
    assert (batch["images"] != dataset.train_batch(3)["images"]).any()
    counts = (batch["labels"] >= 0).sum(axis=1)
    assert set(counts) == {2, 3, 4, 5, 6}
    assert set(batch["labels"].ravel()) == {PADDING, *range(10)}
    for image, boxes, count in zip(batch["images"], batch["boxes"], counts, strict=True):
        ink = image[..., 0] > digits.INK
        covered = np.zeros_like(ink)
        for x1, y1, x2, y2 in boxes[:count].astype(int):
            covered[y1:y2, x1:x2] = True
            for edge in (ink[y1, x1:x2], ink[y2 - 1, x1:x2], ink[y1:y2, x1], ink[y1:y2, x2 - 1]):
                assert edge.any()
        assert not (ink & ~covered).any()


def test_the_masks_of_digits_are_their_pixels():
    dataset = digits.Digits(batch_size=8, image_size=96, max_boxes=8, seed=5)
    batch = dataset.train_batch(2)
    assert batch["masks"].shape == (8, 8, 96, 96)
    assert batch["masks"].dtype == bool
    for image, boxes, labels, masks in zip(*batch.values(), strict=True):
        assert (masks.any(axis=0) == (image[..., 0] > digits.INK)).all()
        assert masks.sum(axis=0).max() == 1
        assert (masks.any(axis=(1, 2)) == (labels >= 0)).all()
        for (x1, y1, x2, y2), mask in zip(boxes.astype(int), masks, strict=True):
            assert mask[y1:y2, x1:x2].sum() == mask.sum()
    truth = dataset.validation[0].ground_truth
    image, _ = dataset.validation[0].load(3)
    codes = [a["segmentation"] for a in truth["annotations"] if a["image_id"] == 3]
    found = np.any([decode_mask(code) for code in codes], axis=0)
    assert (found == (image[..., 0] > digits.INK)).all()
