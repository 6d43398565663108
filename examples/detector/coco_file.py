"""A COCO-format file: read, checked entry by entry, and brought to arrays."""

import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .data import IGNORED, DataError, read_image, read_json, read_size

Id = int | str
LARGEST = float(np.finfo(np.float32).max)
CROWD = (True, "1", "true")  # 1 and 1.0 are equal to True.
NO_CROWD = (None, False, "0", "false")


class CocoFile:
    """A COCO-format file, checked on reading: `boxes[i]` (N, 4) and `labels[i]` (N,) by image.

    A crowd is IGNORED. A box without width or height is left out with a warning. Any other fault
    raises a DataError that names the file and the entry. Images are opened for their size only,
    so that a fault in the list stops the run before it starts.
    """

    def __init__(
        self, folder: Path, json_path: Path, categories: dict[Id, str] | None = None
    ) -> None:
        """Read and check the file.

        Args:
          folder: Where the images are.
          json_path: The COCO-format file.
          categories: Names by id: those of the training file, which a validation file shares.
        """
        self.json_path = json_path
        content = read_json(json_path)
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                raise DataError(f"{json_path}: no list of {key}")
        own = self._read_categories(content)
        if categories is None:
            categories = dict(sorted(own.items()))
        if not categories:
            raise DataError(f"{json_path}: the list of categories is empty")
        for category_id, name in own.items():
            if categories.get(category_id) != name:
                raise DataError(
                    f"{json_path}: category {category_id!r} ({name}) is not in the training file"
                    f"{_other_type(category_id, categories)}"
                )
        self.categories = categories
        file_names, self.sizes = self._read_images(content)
        self.image_ids = list(file_names)
        self.paths = [folder / name for name in file_names.values()]
        for index, name in enumerate(file_names.values()):
            self._check_image(index, name)
        self.annotations, self.boxes, self.labels = self._read_annotations(content)

    def read(self, index: int) -> np.ndarray:
        """Image number `index`, upright, as uint8 (H, W, 3)."""
        image = read_image(self.paths[index])
        (height, width), listed = image.shape[:2], self.sizes[index]
        if (width, height) != listed:
            turned = "; width, height and boxes must be those of the image turned upright by EXIF"
            raise DataError(
                f"{self.paths[index]}: {width} x {height} pixels, but {self.json_path} says "
                f"{listed[0]} x {listed[1]}{turned if (height, width) == listed else ''}"
            )
        return image

    def ground_truth(self) -> dict[str, list[dict[str, Any]]]:
        """The file as pycocotools wants it, with the keys that some files leave out."""
        annotations = [
            # pycocotools takes an annotation's id of 0 for "no match".
            {**annotation, "id": number, "area": annotation["bbox"][2] * annotation["bbox"][3]}
            for number, annotation in enumerate(self.annotations, start=1)
        ]
        return {
            "images": [{"id": image_id} for image_id in self.image_ids],
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in self.categories.items()],
        }

    def _read_categories(self, content: dict[str, Any]) -> dict[Id, str]:
        """The names by id."""
        names: dict[Id, str] = {}
        for where, entry in self._entries(content, "categories", ("id", "name")):
            _add_name(names, entry, "name", where)
        self._check_types(names, "categories")
        return names

    def _read_images(self, content: dict[str, Any]) -> tuple[dict[Id, str], list[tuple[int, int]]]:
        """The file names by id, and (width, height) of each image."""
        names: dict[Id, str] = {}
        sizes = []
        needed = ("id", "file_name", "width", "height")
        for where, entry in self._entries(content, "images", needed):
            _add_name(names, entry, "file_name", where)
            width = _as_side(entry["width"], f"{where}: width")
            sizes.append((width, _as_side(entry["height"], f"{where}: height")))
        if not names:
            raise DataError(f"{self.json_path}: the list of images is empty")
        self._check_types(names, "images")
        return names, sizes

    def _read_annotations(
        self, content: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], list[np.ndarray], list[np.ndarray]]:
        """The annotations with the values that were checked; boxes and labels of each image."""
        indices = {image_id: index for index, image_id in enumerate(self.image_ids)}
        classes = {category_id: label for label, category_id in enumerate(self.categories)}
        annotations: list[dict[str, Any]] = []
        without_area: list[str] = []
        boxes: list[list[list[float]]] = [[] for _ in indices]
        labels: list[list[int]] = [[] for _ in indices]
        needed = ("id", "image_id", "category_id")
        for where, entry in self._entries(content, "annotations", needed):
            if entry["id"] is not None:
                where = f"{self.json_path}: annotation {entry['id']}"
            image_id = _as_id(entry["image_id"], f"{where}: image_id")
            category_id = _as_id(entry["category_id"], f"{where}: category_id")
            if image_id not in indices:
                other = _other_type(image_id, indices)
                raise DataError(f"{where}: unknown image {image_id!r}{other}")
            if category_id not in classes:
                other = _other_type(category_id, classes)
                raise DataError(f"{where}: unknown category {category_id!r}{other}")
            index = indices[image_id]
            crowd = _as_crowd(entry.get("iscrowd"), f"{where}: iscrowd")
            bbox = _as_bbox(entry.get("bbox"), f"{where}: bbox")
            corners = _corners(bbox, self.sizes[index], f"{where}: bbox")
            if corners is None:
                without_area.append(f"annotation {entry['id']}, of {self.paths[index]}")
                continue
            boxes[index].append(corners)
            labels[index].append(IGNORED if crowd else classes[category_id])
            annotations.append(
                {
                    "image_id": image_id,
                    "category_id": category_id,
                    "bbox": bbox,
                    "iscrowd": int(crowd),
                }
            )
        if without_area:
            warnings.warn(
                f"{self.json_path}: boxes without width or height are left out: "
                f"{len(without_area)}; the first is {without_area[0]}",
                stacklevel=3,
            )
        return (
            annotations,
            [np.array(rows, np.float32).reshape(-1, 4) for rows in boxes],
            [np.array(rows, np.int32) for rows in labels],
        )

    def _check_image(self, index: int, file_name: str) -> None:
        """Raise a DataError where the image cannot be opened, or is not of the size listed."""
        try:
            size = read_size(self.paths[index])
        except DataError as error:
            hint = ""
            missing = isinstance(error.__cause__, FileNotFoundError)
            if missing and "\\" in file_name and os.sep == "/":
                hint = "; a backslash in a name separates folders on Windows only: write /"
            raise DataError(f"{error} (listed in {self.json_path}{hint})") from error
        if size != self.sizes[index]:
            self.read(index)  # Raises, unless EXIF behind the pixels turns the image to that size.

    def _entries(
        self, content: dict[str, Any], key: str, needed: tuple[str, ...]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The entries of a list, with the keys that are needed, and how messages name each."""
        for position, entry in enumerate(content[key]):
            entry_id = entry.get("id") if isinstance(entry, dict) else None
            name = f"entry {position}" if entry_id is None else f"id {entry_id}"
            where = f"{self.json_path}: {key}, {name}"
            for field in needed:
                if not isinstance(entry, dict) or field not in entry:
                    raise DataError(f"{where}: no {field!r}")
            yield where, entry

    def _check_types(self, ids: Collection[Id], key: str) -> None:
        """Raise a DataError where some ids are integers and others strings."""
        first = next(iter(ids), None)
        for entry_id in ids:
            if type(entry_id) is not type(first):
                both = f"{_shown(first)} and {_shown(entry_id)}"
                raise DataError(f"{self.json_path}: {key}: ids of two types, such as {both}")


def _add_name(names: dict[Id, str], entry: dict[str, Any], key: str, where: str) -> None:
    """Add an entry's name to the names by id."""
    entry_id, name = _as_id(entry["id"], f"{where}: id"), entry[key]
    if not isinstance(name, str):
        raise DataError(f"{where}: {key} {_shown(name)} is not a string")
    if entry_id in names:
        raise DataError(f"{where}: two entries have this id, {names[entry_id]} and {name}")
    names[entry_id] = name


def _as_id(value: Any, where: str) -> Id:
    """An id as an int or a str. A float that is a whole number is an int."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, Id):
        raise DataError(f"{where} {_shown(value)} is neither an integer nor a string")
    return value


def _as_side(value: Any, where: str) -> int:
    """The width or the height of an image."""
    if not _is_number(value) or value < 1 or value != int(value):
        raise DataError(f"{where} {_shown(value)} is not a whole number above 0")
    return int(value)


def _as_crowd(value: Any, where: str) -> bool:
    """Whether an annotation is a crowd. Some files write the flag as a bool or a string."""
    flag = value.lower() if isinstance(value, str) else value
    if flag not in (*CROWD, *NO_CROWD):
        raise DataError(f"{where} {_shown(value)} is neither 0 nor 1")
    return flag in CROWD


def _as_bbox(value: Any, where: str) -> list[float]:
    """x, y, width and height as floats."""
    if not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
        raise DataError(f"{where} {value} is not four numbers (x, y, width, height)")
    return [float(number) for number in value]


def _corners(bbox: list[float], size: tuple[int, int], where: str) -> list[float] | None:
    """x1, y1, x2, y2 within an image of `size`; None for a box without width or height."""
    x, y, width, height = bbox
    if width < 0 or height < 0:
        raise DataError(f"{where} {bbox} has no area: a side is negative")
    if width == 0 or height == 0:
        return None
    if not (x < size[0] and y < size[1] and x + width > 0 and y + height > 0):
        raise DataError(f"{where} {bbox} has no area in the {size[0]} x {size[1]} image")
    corners = [max(x, 0), max(y, 0), min(x + width, size[0]), min(y + height, size[1])]
    x1, y1, x2, y2 = np.array(corners, np.float32)
    return corners if x1 < x2 and y1 < y2 else None  # A side can be too short for float32.


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number that float32 can hold, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST


def _other_type(value: Id, known: Collection[Id]) -> str:
    """What to add to a message where an id is not of the type of the known ids, which are alike."""
    example = next(iter(known))
    if type(value) is type(example):
        return ""
    return f": it is of type {type(value).__name__}, the ids there of type {type(example).__name__}"


def _shown(value: Any) -> str:
    """A value and its type, for a message."""
    return f"{value!r} ({type(value).__name__})"
