"""Tree crowns in aerial photographs: the top of each trains, the strip below it validates."""

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
PHOTOGRAPHS = (
    *("YELL_528000_4978000.jpg", "YELL_541000_4977000.jpg"),  # large, from Yellowstone
    *("OSBS_029.jpg", "SOAP_061.jpg"),  # small, from Florida and California
)
TRAIN_FRACTION = 0.75  # of the height of each photograph


class Trees:
    """Random crops from the upper part of each photograph.

    The split is by pixels: training crops lie above a border, the validation strip below it. A
    crown on the border counts on the side that shows at least half of it, and is ignored on the
    other (see `cut`). The photographs are drawn as often as they have crowns.
    """

    def __init__(
        self, batch_size: int, image_size: int, max_boxes: int, multiple: int, seed: int
    ) -> None:
        """Read the photographs.

        Args:
          batch_size: Crops in a batch.
          image_size: Side of a crop in pixels.
          max_boxes: Rows that the ground truth of a crop is padded to.
          multiple: Validation strips are padded to sides that are multiples of this.
          seed: Of the crops.
        """
        self.class_names = ["tree"]
        self.batch_size, self.image_size, self.max_boxes = batch_size, image_size, max_boxes
        self.seed = seed
        self.parts: list[Sample] = []
        strips: list[Sample] = []
        for name in PHOTOGRAPHS:
            image, boxes, labels = _read_photograph(name)
            height, width = image.shape[:2]
            border = int(height * TRAIN_FRACTION)
            if image_size > min(border, width):
                raise DataError(
                    f"{FOLDER / name}: its upper part, {width} x {border} pixels, is too small for "
                    f"crops of {image_size} pixels"
                )
            upper, lower = (0, 0, width, border), (0, border, width, height)
            self.parts.append((image[:border], *cut(boxes, labels, upper)))
            strips.append((image[border:], *cut(boxes, labels, lower)))
        crowns = np.array([(labels >= 0).sum() for _, _, labels in self.parts])
        self.frequencies = crowns / crowns.sum()
        self.validation = [_validation_set(strips, multiple)]

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """Random crops, turned and mirrored, since an aerial photograph has no upright side."""
        rng = np.random.default_rng((self.seed, step))
        crops = [self._crop(rng) for _ in range(self.batch_size)]
        return make_batch(crops[rows], self.max_boxes)

    def _crop(self, rng: np.random.Generator) -> Sample:
        size = self.image_size
        image, boxes, labels = self.parts[rng.choice(len(self.parts), p=self.frequencies)]
        height, width = image.shape[:2]
        x = int(rng.integers(width - size + 1))
        y = int(rng.integers(height - size + 1))
        image = image[y : y + size, x : x + size]
        boxes, labels = cut(boxes, labels, (x, y, x + size, y + size))
        # Two rounds of transpose and flip reach all eight turned and mirrored versions.
        for _ in range(2):
            if rng.random() < 0.5:
                image, boxes = transpose(image, boxes)
            if rng.random() < 0.5:
                image, boxes = flip(image, boxes)
        # The shift imitates haze, in which photographs differ.
        return brighten(image, rng.uniform(0.7, 1.3), rng.uniform(-20, 30)), boxes, labels


def _read_photograph(file_name: str) -> Sample:
    instances = read_json(FOLDER / "instances.json")
    (image_id,) = [i["id"] for i in instances["images"] if i["file_name"] == file_name]
    boxes = np.array(
        [a["bbox"] for a in instances["annotations"] if a["image_id"] == image_id], np.float32
    )
    boxes[:, 2:] += boxes[:, :2]
    return read_image(FOLDER / file_name), boxes, np.zeros(len(boxes), np.int32)


def _validation_set(strips: list[Sample], multiple: int) -> ValidationSet:
    images, boxes, labels = zip(*strips, strict=True)

    def load(index: int) -> tuple[np.ndarray, Letterbox]:
        height, width = images[index].shape[:2]
        padding = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        return np.pad(images[index], padding, mode="edge"), Letterbox(width, height)

    return ValidationSet(
        name="strips",
        ground_truth=coco_dict(list(boxes), list(labels), ["tree"]),
        load=load,
        category_ids=[0],
        # One strip has more than 100 crowns: COCO's limit of 100 detections would limit the AP.
        max_detections=500,
    )
