"""Tree crowns in aerial photographs: the left 80 % of one trains, the rest validates."""

from pathlib import Path

import numpy as np

from .data import (
    ALL,
    DataError,
    Letterbox,
    Sample,
    ValidationSet,
    brighten,
    coco_dict,
    cut,
    flip,
    make_batch,
    read_image,
    read_json,
    transpose,
)

FOLDER = Path(__file__).parents[1] / "data" / "trees"
LARGE = "YELL_528000_4978000.jpg"
UNSEEN = "YELL_541000_4977000.jpg"
TRAIN_FRACTION = 0.8  # of the width of the large photograph


class Trees:
    """Random crops from the left part of the large photograph.

    The split is by pixels: training crops lie left of a border, the validation strip right of it.
    A crown on the border counts on the side that shows at least half of it, and is ignored on the
    other (see `cut`).
    """

    def __init__(
        self, batch_size: int, image_size: int, max_boxes: int, multiple: int, seed: int
    ) -> None:
        """Read the photographs.

        Args:
          batch_size: Crops in a batch.
          image_size: Side of a crop in pixels.
          max_boxes: Rows that the ground truth of a crop is padded to.
          multiple: Validation photographs are padded to sides that are multiples of this.
          seed: Of the crops.
        """
        self.class_names = ["tree"]
        self.batch_size, self.image_size, self.max_boxes = batch_size, image_size, max_boxes
        self.seed = seed
        large, large_boxes, large_labels = _read_photograph(LARGE)
        unseen, unseen_boxes, unseen_labels = _read_photograph(UNSEEN)
        height, width = large.shape[:2]
        border = int(width * TRAIN_FRACTION)
        if image_size > min(border, height):
            raise DataError(f"{FOLDER / LARGE}: too small for crops of {image_size} pixels")
        self.image = large[:, :border]
        self.boxes, self.labels = cut(large_boxes, large_labels, (0, 0, border, height))
        strip_boxes, strip_labels = cut(large_boxes, large_labels, (border, 0, width, height))
        self.validation = [
            _validation_set("strip", large[:, border:], strip_boxes, strip_labels, multiple),
            _validation_set("unseen", unseen, unseen_boxes, unseen_labels, multiple),
        ]

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """Random crops, turned and mirrored, since an aerial photograph has no upright side."""
        rng = np.random.default_rng((self.seed, step))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        return make_batch(crops[rows], self.max_boxes)

    def _crop(self, rng: np.random.Generator) -> Sample:
        size = self.image_size
        height, width = self.image.shape[:2]
        x = int(rng.integers(width - size + 1))
        y = int(rng.integers(height - size + 1))
        image = self.image[y : y + size, x : x + size]
        boxes, labels = cut(self.boxes, self.labels, (x, y, x + size, y + size))
        # Two rounds of transpose and flip reach all eight turned and mirrored versions.
        for _ in range(2):
            if rng.random() < 0.5:
                image, boxes = transpose(image, boxes)
            if rng.random() < 0.5:
                image, boxes = flip(image, boxes)
        # The shift imitates haze, in which photographs differ.
        return brighten(image, rng.uniform(0.6, 1.3), rng.uniform(-20, 50)), boxes, labels


def _read_photograph(file_name: str) -> Sample:
    instances = read_json(FOLDER / "instances.json")
    (image_id,) = [i["id"] for i in instances["images"] if i["file_name"] == file_name]
    boxes = np.array(
        [a["bbox"] for a in instances["annotations"] if a["image_id"] == image_id], np.float32
    )
    boxes[:, 2:] += boxes[:, :2]
    return read_image(FOLDER / file_name), boxes, np.zeros(len(boxes), np.int32)


def _validation_set(
    name: str, image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, multiple: int
) -> ValidationSet:
    height, width = image.shape[:2]
    padding = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    padded = np.pad(image, padding, mode="edge")
    return ValidationSet(
        name=name,
        ground_truth=coco_dict([boxes], [labels], ["tree"]),
        load=lambda index: (padded, Letterbox(width, height)),
        category_ids=[0],
        # One photograph has 279 crowns: COCO's limit of 100 detections would limit the AP.
        max_detections=500,
    )
