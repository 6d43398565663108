"""Anyone's data in COCO format, letterboxed to one static size."""

import math
import warnings
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from .data import (
    ALL,
    IGNORED,
    DataError,
    Letterbox,
    ValidationSet,
    brighten,
    flip,
    make_batch,
    read_image,
    read_json,
)

GREY = 114  # of 255: the bars beside a letterboxed image


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
    ):
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
        """The next images of an order shuffled anew each time through the data."""
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

    def _sample(
        self, index: int, flipped: bool, factor: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, place = letterbox(self.train.read(index), self.image_size)
        boxes = place.forward(self.train.boxes[index])
        if flipped:
            image, boxes = flip(image, boxes)
        return brighten(image, factor), boxes, self.train.labels[index]


class CocoFile:
    """A COCO-format file, checked on reading: `boxes[i]` (N, 4) and `labels[i]` (N,) by image.

    A crowd is IGNORED. Images are opened for their size only, so that a fault in the list stops
    the run before it starts.
    """

    def __init__(self, folder: Path, json_path: Path, categories: dict[int, str] | None = None):
        """`categories` (id -> name): those of the training file, which a validation file shares."""
        self.json_path = json_path
        content = read_json(json_path)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{json_path}: no list of {key}")
        if not content["images"]:
            raise DataError(f"{json_path}: the list of images is empty")
        own = {c["id"]: c["name"] for c in self._entries(content, "categories", ("id", "name"))}
        self.categories = dict(sorted(own.items())) if categories is None else categories
        if not self.categories:
            raise DataError(f"{json_path}: the list of categories is empty")
        for category_id, name in own.items():
            if self.categories.get(category_id) != name:
                raise DataError(
                    f"{json_path}: category {category_id} ({name}) is not in the training file"
                )

        images = self._entries(content, "images", ("id", "file_name", "width", "height"))
        self.image_ids = [image["id"] for image in images]
        self.paths = [folder / str(image["file_name"]) for image in images]
        self.sizes = [(image["width"], image["height"]) for image in images]
        for path, size in zip(self.paths, self.sizes, strict=True):
            _check_image(path, size, json_path)

        self.annotations = self._entries(content, "annotations", ("id", "image_id", "category_id"))
        sizes = dict(zip(self.image_ids, self.sizes, strict=True))
        rows = defaultdict(list)
        for annotation in self.annotations:
            rows[annotation["image_id"]].append(self._row(annotation, sizes))
        columns = [np.array(rows[i], np.float32).reshape(-1, 5) for i in self.image_ids]
        self.boxes = [c[:, :4] for c in columns]
        self.labels = [c[:, 4].astype(np.int32) for c in columns]

    def read(self, index: int) -> np.ndarray:
        """Image number `index` as uint8 (H, W, 3)."""
        return read_image(self.paths[index])

    def ground_truth(self) -> dict:
        """The file as pycocotools wants it, with the keys that some files leave out."""
        annotations = [
            {
                "id": number,  # pycocotools takes an id of 0 for "no match"
                "image_id": a["image_id"],
                "category_id": a["category_id"],
                "bbox": a["bbox"],
                "area": a["bbox"][2] * a["bbox"][3],
                "iscrowd": a.get("iscrowd", 0),
            }
            for number, a in enumerate(self.annotations, start=1)
        ]
        return {
            "images": [{"id": image_id} for image_id in self.image_ids],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
        }

    def _entries(self, content: dict, key: str, needed: tuple[str, ...]) -> list[dict]:
        for position, entry in enumerate(content[key]):
            for field in needed:
                if not isinstance(entry, dict) or field not in entry:
                    name = entry.get("id") if isinstance(entry, dict) else None
                    where = f"entry {position}" if name is None else f"id {name}"
                    raise DataError(f"{self.json_path}: {key}, {where}: no {field!r}")
        return content[key]

    def _row(self, annotation: dict, sizes: dict) -> list[float]:
        """x1, y1, x2, y2 within the image, and the label."""
        where = f"{self.json_path}: annotation {annotation['id']}"
        if annotation["image_id"] not in sizes:
            raise DataError(f"{where}: unknown image {annotation['image_id']}")
        if annotation["category_id"] not in self.categories:
            raise DataError(f"{where}: unknown category {annotation['category_id']}")
        bbox = annotation.get("bbox")
        if not (
            isinstance(bbox, list)
            and len(bbox) == 4
            and all(isinstance(v, int | float) and math.isfinite(v) for v in bbox)
        ):
            raise DataError(f"{where}: bbox {bbox} is not four numbers (x, y, width, height)")
        width, height = sizes[annotation["image_id"]]
        x, y, w, h = bbox
        x1, x2 = max(x, 0), min(x + w, width)
        y1, y2 = max(y, 0), min(y + h, height)
        if x1 >= x2 or y1 >= y2:
            raise DataError(f"{where}: bbox {bbox} has no area in the {width} x {height} image")
        label = list(self.categories).index(annotation["category_id"])
        return [x1, y1, x2, y2, IGNORED if annotation.get("iscrowd") else label]


def letterbox(image: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
    """Image uint8 (H, W, 3) as large as fits in (size, size, 3), centred, with grey bars."""
    height, width = image.shape[:2]
    scale = size / max(width, height)
    new_width, new_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - new_width) // 2, (size - new_height) // 2
    canvas = np.full((size, size, 3), GREY, np.uint8)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.BILINEAR)
    canvas[top : top + new_height, left : left + new_width] = np.asarray(resized)
    # the scale of each side after rounding to whole pixels, so that boxes return exactly
    return canvas, Letterbox(width, height, (new_width / width, new_height / height), (left, top))


def _check_image(path: Path, size: tuple[int, int], json_path: Path) -> None:
    try:
        with Image.open(path) as image:
            found = image.size
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image file (listed in {json_path})") from error
    except OSError as error:
        raise DataError(f"{path}: not a readable image ({error})") from error
    if found != size:
        raise DataError(f"{path}: {found[0]} x {found[1]} pixels, but {json_path} says {size}")
