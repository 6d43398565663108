"""What all data sources share: reading files, cutting, augmenting, padding and validation sets.

Boxes are float32 (x1, y1, x2, y2) in pixels. A label is a class index, which starts at 0, or one of
the two negative values PADDING and IGNORED.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from pycocotools import mask as mask_codec

from .images import upright_rgb, upright_size

PADDING = -1  # the label of a row that only fills the array up to its static size
IGNORED = -2  # the label of a box that is not trained on and not evaluated, such as a COCO crowd
VISIBLE = 0.5  # the fraction of a box's area that must lie in a crop for the box to be kept
ALL = slice(None)

# Image (H, W, 3), boxes (N, 4), labels (N,); and masks, bool (N, H, W), of data that have them.
Sample = tuple[np.ndarray, ...]


class DataError(ValueError):
    """A fault in the data. The message names the file and, if it is in one, the annotation."""


@dataclass(frozen=True)
class Letterbox:
    """Where an image of `width` x `height` pixels lies in the network's input."""

    width: int
    height: int
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[int, int] = (0, 0)

    def forward(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels of the image, in pixels of the network's input."""
        return (boxes * np.tile(self.scale, 2) + np.tile(self.offset, 2)).astype(np.float32)

    def backward(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) in pixels of the network's input, in pixels of the image, clipped to it."""
        boxes = (boxes - np.tile(self.offset, 2)) / np.tile(self.scale, 2)
        return np.clip(boxes, 0, [self.width, self.height] * 2).astype(np.float32)


@dataclass(frozen=True)
class ValidationSet:
    """Images and their ground truth, a COCO dict in pixels of the original images."""

    name: str
    ground_truth: dict[str, Any]
    load: Callable[[int], tuple[np.ndarray, Letterbox]]  # index -> input uint8 (H, W, 3), its place
    category_ids: list[Any]  # the id of the COCO category of each class index
    max_detections: int = 100  # per image, COCO's own limit


class Dataset(Protocol):
    """Training batches by step number, and the sets to validate on."""

    class_names: list[str]
    validation: list[ValidationSet]

    def train_batch(self, step: int, rows: slice = ALL) -> dict[str, np.ndarray]:
        """The batch of a step, or some of its rows: the same at every call for that step."""


def read_json(path: Path) -> dict[str, Any]:
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
    """An image file as uint8 (H, W, 3), turned upright by its EXIF orientation.

    Grey levels of more than 8 bits are scaled: see `_grey_levels` in images.py.
    """
    with _opened(path) as image:
        return upright_rgb(image)


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file turned upright, from its header alone."""
    with _opened(path) as image:
        return upright_size(image)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file, opened. What Pillow raises becomes a DataError that names the file."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file") from error
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: {error} This limit of Pillow is twice PIL.Image.MAX_IMAGE_PIXELS, which is "
            f"{Image.MAX_IMAGE_PIXELS}. If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS to a "
            "larger number, or to None for no limit, at the top of the script that you start."
        ) from error
    except Exception as error:  # OSError, SyntaxError, ValueError, for AVIF RuntimeError, ...
        raise DataError(f"{path}: not a readable image ({error})") from error


def cut(
    boxes: np.ndarray, labels: np.ndarray, window: tuple[int, int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and labels (N,) inside a window (x1, y1, x2, y2), in the window's pixels.

    A box of which at least half the area (VISIBLE) lies inside is kept and clipped. Where less is
    visible, the extent of the object cannot be told, and the label becomes IGNORED. A box outside
    is dropped.
    """
    x1, y1, x2, y2 = window
    clipped = np.clip(boxes, [x1, y1, x1, y1], [x2, y2, x2, y2])
    visible = _areas(clipped) / _areas(boxes)
    labels = np.where(visible >= VISIBLE, labels, IGNORED)
    inside = visible > 0
    return (clipped - [x1, y1, x1, y1])[inside].astype(np.float32), labels[inside]


def transpose(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and boxes (N, 4) with x and y exchanged."""
    return image.swapaxes(0, 1), boxes[:, [1, 0, 3, 2]]


def flip(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image (H, W, 3) and boxes (N, 4) mirrored left to right."""
    width = image.shape[1]
    x1, y1, x2, y2 = boxes.T
    return image[:, ::-1], np.stack([width - x2, y1, width - x1, y2], axis=-1)


def brighten(image: np.ndarray, factor: float, shift: float = 0.0) -> np.ndarray:
    """Image uint8 (H, W, 3) times a factor plus a shift, clipped to 0 and 255."""
    return np.clip(image * factor + shift, 0, 255).astype(np.uint8)


def pad_rows(
    boxes: np.ndarray, labels: np.ndarray, *masks: np.ndarray, max_boxes: int
) -> tuple[np.ndarray, ...]:
    """Boxes (max_boxes, 4), labels (max_boxes,) and masks without the IGNORED, padded.

    Of more boxes than max_boxes the largest are kept.
    """
    (trained,) = np.nonzero(labels >= 0)
    keep = trained[np.argsort(-_areas(boxes[trained]), kind="stable")[:max_boxes]]

    def pad(rows: np.ndarray, dtype: type, value: int = 0) -> np.ndarray:
        padded = np.full((max_boxes, *rows.shape[1:]), value, dtype)
        padded[: len(keep)] = rows[keep]
        return padded

    of_boxes = pad(boxes, np.float32), pad(labels, np.int32, PADDING)
    return *of_boxes, *(pad(rows, np.bool_) for rows in masks)


def make_batch(samples: list[Sample], max_boxes: int) -> dict[str, np.ndarray]:
    """Samples as arrays of static shape.

    Returns: images uint8 (B, H, W, 3), boxes float32 (B, max_boxes, 4), labels int32
      (B, max_boxes), and masks bool (B, max_boxes, H, W) of samples that have them.
    """
    padded = [(image, *pad_rows(*rows, max_boxes=max_boxes)) for image, *rows in samples]
    arrays = [np.stack(rows) for rows in zip(*padded, strict=True)]
    return dict(zip(("images", "boxes", "labels", "masks"), arrays, strict=False))


def coco_dict(
    boxes: list[np.ndarray],
    labels: list[np.ndarray],
    class_names: list[str],
    masks: list[np.ndarray] | None = None,
) -> dict[str, Any]:
    """Ground truth of images 0, 1, 2, ... as a COCO dict, whose category ids are class indices.

    Args:
      boxes: (N, 4) of each image.
      labels: (N,) of each image.
      class_names: The names of the classes.
      masks: (N, H, W) of each image, if the data have masks.
    """
    annotations: list[dict[str, Any]] = []
    for image_id, (image_boxes, image_labels) in enumerate(zip(boxes, labels, strict=True)):
        for (x1, y1, x2, y2), label in zip(image_boxes.tolist(), image_labels, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes an id of 0 for "no match".
                    "image_id": image_id,
                    "category_id": max(int(label), 0),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(label == IGNORED),
                }
            )
    images: list[dict[str, Any]] = [{"id": image_id} for image_id in range(len(boxes))]
    if masks is not None:
        encoded = [code for image_masks in masks for code in encode_masks(image_masks)]
        for annotation, code in zip(annotations, encoded, strict=True):
            annotation["segmentation"] = code
        for image, image_masks in zip(images, masks, strict=True):
            image["height"], image["width"] = image_masks.shape[1:]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names)],
    }


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """Masks (N, H, W) as COCO's run lengths, one each."""
    codes: list[dict[str, Any]] = mask_codec.encode(
        np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8))
    )
    return codes


def decode_mask(code: dict[str, Any]) -> np.ndarray:
    """A mask (H, W), of 0 and 1, from COCO's run lengths."""
    with warnings.catch_warnings():
        # NumPy 2 warns of the arrays that pycocotools 2.0.10 makes.
        warnings.simplefilter("ignore", DeprecationWarning)
        mask: np.ndarray = mask_codec.decode(code)
    return mask


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
