"""Scenes of 2 to 6 of scikit-learn's handwritten digits on a dark canvas, with their masks."""

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from .data import ALL, Letterbox, Sample, ValidationSet, coco_dict, make_batch

TRAIN_DIGITS = 1437  # the first of 1797; the others validate
VALIDATION_SCENES = 200
SIDES = (18, 42)  # smallest and largest side in pixels, to which the 8 x 8 digits are resized
INK = 64  # the level, of 255, above which a pixel belongs to the digit: to its box and its mask


class Digits:
    """Training scenes by step from the first 1437 digits, 200 validation scenes from the rest."""

    def __init__(self, batch_size: int, image_size: int, max_boxes: int, seed: int) -> None:
        digits = load_digits()
        self.class_names = [str(name) for name in digits.target_names]
        self.batch_size, self.image_size, self.max_boxes = batch_size, image_size, max_boxes
        self.seed = seed
        pictures = (digits.images * (255 / 16)).astype(np.uint8)
        self.train_digits = (pictures[:TRAIN_DIGITS], digits.target[:TRAIN_DIGITS])
        self.validation_digits = (pictures[TRAIN_DIGITS:], digits.target[TRAIN_DIGITS:])

        rng = np.random.default_rng(0)  # Not `seed`: every run validates on the same scenes.
        scenes = [
            draw_scene(rng, *self.validation_digits, image_size) for _ in range(VALIDATION_SCENES)
        ]
        images, boxes, labels, masks = zip(*scenes, strict=True)
        self.validation = [
            ValidationSet(
                name="digits",
                ground_truth=coco_dict(list(boxes), list(labels), self.class_names, list(masks)),
                load=lambda index: (images[index], Letterbox(image_size, image_size)),
                category_ids=list(range(len(self.class_names))),
            )
        ]

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """New scenes. They are not turned or mirrored: a turned 6 is a 9."""
        rng = np.random.default_rng((self.seed, step))
        scenes = [
            draw_scene(rng, *self.train_digits, self.image_size) for _ in range(self.batch_size)
        ]
        return make_batch(scenes[rows], self.max_boxes)


def draw_scene(
    rng: np.random.Generator, pictures: np.ndarray, classes: np.ndarray, size: int
) -> Sample:
    """One scene: image uint8 (size, size, 3), boxes (N, 4), labels (N,) and masks of the digits.

    The masks are bool (N, size, size): a digit's pixels. The box is drawn around them.

    Args:
      rng: Draws the digits, their sizes and their places.
      pictures: Digits, uint8 (M, 8, 8).
      classes: Their classes (M,).
      size: Side of the scene in pixels.
    """
    canvas = np.zeros((size, size), np.uint8)
    taken = np.zeros((size, size), bool)
    boxes: list[list[int]] = []
    labels: list[int] = []
    masks: list[np.ndarray] = []
    wanted, tries = rng.integers(2, 7), 0
    # The limit of tries is for scenes that have no room for another digit.
    while len(boxes) < 2 or (len(boxes) < wanted and tries < 100):
        tries += 1
        index = rng.integers(len(pictures))
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        x, y = (int(v) for v in rng.integers(size - side + 1, size=2))
        place = (slice(y, y + side), slice(x, x + side))
        if taken[place].any():
            continue
        digit = np.asarray(
            Image.fromarray(pictures[index]).resize((side, side), Image.Resampling.BICUBIC)
        )
        taken[place] = True
        canvas[place] = digit
        mask = np.zeros((size, size), bool)
        mask[place] = digit > INK
        rows, columns = np.nonzero(mask)
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        labels.append(classes[index])
        masks.append(mask)
    image = np.repeat(canvas[..., None], 3, axis=-1)
    return image, np.array(boxes, np.float32), np.array(labels, np.int32), np.stack(masks)
