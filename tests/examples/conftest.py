"""Own data in COCO format, for the tests of the training example."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


class OwnData:
    """A folder with five images of 60 x 40 pixels, train.json and val.json, which are alike.

    Image i, from 0 to 4, has one box of category 3 and one of category 7.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.train, self.val = folder / "train.json", folder / "val.json"
        rng = np.random.default_rng(0)
        for image in self.content()["images"]:
            pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
            Image.fromarray(pixels).save(folder / image["file_name"])
        self.write()

    @staticmethod
    def content() -> dict[str, Any]:
        """What the files hold: the annotation of image i and category c has the id 10 i + c."""
        annotations = [
            {
                "id": 10 * image + category,
                "image_id": image,
                "category_id": category,
                "bbox": [5 + 4 * image, category, 20, 15 + category],
            }
            for image in range(5)
            for category in (3, 7)
        ]
        images = [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in range(5)]
        categories = [{"id": 7, "name": "wide"}, {"id": 3, "name": "high"}]
        return {"images": images, "annotations": annotations, "categories": categories}

    def write(self, train: dict[str, Any] | None = None, val: dict[str, Any] | None = None) -> None:
        """Write both files, with other content than theirs where it is given."""
        self.train.write_text(json.dumps(self.content() if train is None else train))
        self.val.write_text(json.dumps(self.content() if val is None else val))

    @property
    def options(self) -> list[str]:
        """The options of train_detector.py that name the data."""
        folder = str(self.folder)
        train = ("--train-images", folder, "--train-json", str(self.train))
        return [*train, "--val-images", folder, "--val-json", str(self.val)]


@pytest.fixture(scope="session")
def make_own_data() -> Callable[[Path], OwnData]:
    return OwnData


@pytest.fixture
def own_data(tmp_path: Path) -> OwnData:
    return OwnData(tmp_path)
