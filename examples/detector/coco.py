"""Anyone's data in COCO format, letterboxed to one static size."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from .coco_file import CocoFile
from .data import ALL, Letterbox, Sample, ValidationSet, brighten, flip, make_batch

GREY = 114  # the level, of 255, of the bars beside a letterboxed image


class Coco:
    """Images in a folder with the boxes of a COCO-format JSON file, for training and validation."""

    def __init__(
        self,
        train_images: Path,
        train_json: Path,
        val_images: Path,
        val_json: Path,
        batch_size: int,
        image_size: int,
        max_boxes: int,
        seed: int,
    ) -> None:
        train = CocoFile(train_images, train_json)
        val = CocoFile(val_images, val_json, categories=train.categories)
        self.class_names = list(train.categories.values())
        self.train, self.batch_size, self.image_size = train, batch_size, image_size
        self.max_boxes, self.seed = max_boxes, seed
        self.validation = [
            ValidationSet(
                name="validation",
                ground_truth=val.ground_truth(),
                load=lambda index: letterbox(val.read(index), image_size),
                category_ids=list(train.categories),
            )
        ]
        counts = [int((labels >= 0).sum()) for labels in train.labels]
        surplus = [count - max_boxes for count in counts if count > max_boxes]
        if surplus:
            warnings.warn(
                f"{train_json}: images with more than {max_boxes} boxes: {len(surplus)}; their "
                f"smallest boxes are left out of training: {sum(surplus)} (see --max-boxes)",
                stacklevel=2,
            )

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """The next images, in an order that is shuffled anew for each pass through the data."""
        size = len(self.train.paths)
        positions = step * self.batch_size + np.arange(self.batch_size)
        orders = {
            epoch: np.random.default_rng((self.seed, 0, int(epoch))).permutation(size)
            for epoch in np.unique(positions // size)
        }
        indices = [int(orders[p // size][p % size]) for p in positions]
        rng = np.random.default_rng((self.seed, 1, step))
        flipped = rng.random(self.batch_size) < 0.5
        factors = rng.uniform(0.7, 1.3, self.batch_size)
        chosen = zip(indices[rows], flipped[rows], factors[rows], strict=True)
        return make_batch([self._sample(*choice) for choice in chosen], self.max_boxes)

    def _sample(self, index: int, flipped: bool, factor: float) -> Sample:
        image, place = letterbox(self.train.read(index), self.image_size)
        boxes = place.forward(self.train.boxes[index])
        if flipped:
            image, boxes = flip(image, boxes)
        return brighten(image, factor), boxes, self.train.labels[index]


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Image uint8 (H, W, 3) as large as fits in (size, size, 3), centred between grey bars."""
    height, width = image.shape[:2]
    scale = size / max(width, height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - new_width) // 2, (size - new_height) // 2
    canvas = np.full((size, size, 3), GREY, np.uint8)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(resized)
    # Each side has its own scale, after rounding to whole pixels: with one scale for both, boxes
    # would not come back exactly.
    return canvas, Letterbox(width, height, (new_width / width, new_height / height), (left, top))
