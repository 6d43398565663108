"""What every data source shares: cutting, augmenting, padding, letterboxing and validation sets.

Boxes are float32 (x1, y1, x2, y2) in pixels. A label is a class index from 0, or one of the two
marks below.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

PADDING = -1  # a row that only fills the array up to its static size
IGNORED = -2  # of no use for training and not counted in evaluation, such as a COCO crowd
VISIBLE = 0.5  # of an object's area, for its box to count
ALL = slice(None)


class DataError(ValueError):
    """A fault in the data; its message names the file and, where there is one, the annotation."""


@dataclass(frozen=True)
class Letterbox:
    """Where an image of `width` x `height` pixels lies on the network's input."""

    width: int
    height: int
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[int, int] = (0, 0)

    def forward(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the image as boxes (N, 4) of the network's input."""
        return (boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2)).astype(np.float32)

    def backward(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) of the network's input as boxes (N, 4) of the image, clipped to it."""
        boxes = (boxes - np.tile(self.offset, 2)) / np.tile(self.scale, 2)
        return np.clip(boxes, 0, [self.width, self.height] * 2).astype(np.float32)


@dataclass(frozen=True)
class ValidationSet:
    """Images and their ground truth, a COCO dict in pixels of the original images."""

    name: str
    ground_truth: dict
    load: Callable[[int], tuple[np.ndarray, Letterbox]]  # index -> uint8 (H, W, 3) and its place
    category_ids: list[int]  # the COCO category of each class index
    max_detections: int = 100  # per image, COCO's own limit


class Dataset(Protocol):
    """Training batches by step number, and the sets to validate on."""

    class_names: list[str]
    validation: list[ValidationSet]

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """The batch of one step, or some rows of it: the same whenever it is asked for."""


def read_json(path: Path) -> dict:
    """The JSON object in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds a JSON {type(content).__name__}, not an object")
    return content


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (H, W, 3)."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to refuse a broken file
        raise DataError(f"{path}: not a readable image ({error})") from error


def cut(
    boxes: np.ndarray, labels: np.ndarray, window: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and labels (N,) inside a window (x1, y1, x2, y2), in the window's pixels.

    A box of which at least half the area (VISIBLE) lies inside stays, clipped; of a smaller rest
    nobody can say how far the object reaches, so it becomes IGNORED; a box outside is dropped.
    """
    x1, y1, x2, y2 = window
    clipped = np.clip(boxes, [x1, y1, x1, y1], [x2, y2, x2, y2])
    visible = _areas(clipped) / _areas(boxes)
    labels = np.where(visible >= VISIBLE, labels, IGNORED)
    inside = visible > 0
    return (clipped - [x1, y1, x1, y1])[inside].astype(np.float32), labels[inside]


def transpose(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and boxes (N, 4) mirrored on the main diagonal: x and y change places."""
    return image.swapaxes(0, 1), boxes[:, [1, 0, 3, 2]]


def flip(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and boxes (N, 4) mirrored left to right."""
    width = image.shape[1]
    x1, y1, x2, y2 = boxes.T
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=-1)


def brighten(image: np.ndarray, factor: float, shift: float = 0.0) -> np.ndarray:
    """Image uint8 (H, W, 3) times a factor plus a shift, cut off at 0 and 255."""
    return np.clip(image * factor + shift, 0, 255).astype(np.uint8)


def pad_rows(
    boxes: np.ndarray, labels: np.ndarray, max_boxes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (max_boxes, 4) and labels (max_boxes,), without those IGNORED; the largest, if more."""
    boxes, labels = boxes[labels >= 0], labels[labels >= 0]
    keep = np.argsort(-_areas(boxes), kind="stable")[:max_boxes]
    padded_boxes = np.zeros((max_boxes, 4), np.float32)
    padded_labels = np.full(max_boxes, PADDING, np.int32)
    padded_boxes[: len(keep)] = boxes[keep]
    padded_labels[: len(keep)] = labels[keep]
    return padded_boxes, padded_labels


def make_batch(
    samples: list[tuple[np.ndarray, np.ndarray, np.ndarray]], max_boxes: int
) -> dict[str, np.ndarray]:
    """Samples (image, boxes, labels) as arrays of static shape.

    images uint8 (B, H, W, 3), boxes float32 (B, max_boxes, 4), labels int32 (B, max_boxes).
    """
    rows = [pad_rows(boxes, labels, max_boxes) for _, boxes, labels in samples]
    return {
        "images": np.stack([image for image, _, _ in samples]),
        "boxes": np.stack([boxes for boxes, _ in rows]),
        "labels": np.stack([labels for _, labels in rows]),
    }


def coco_dict(boxes: list[np.ndarray], labels: list[np.ndarray], class_names: list[str]) -> dict:
    """Ground truth of images 0, 1, 2, ... as a COCO dict, with class index as category."""
    annotations = []
    for image_id, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        for (x1, y1, x2, y2), label in zip(image_boxes.tolist(), image_labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes an id of 0 for "no match"
                    "image_id": image_id,
                    "category_id": max(int(label), 0),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(label == IGNORED),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in range(len(boxes))],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
