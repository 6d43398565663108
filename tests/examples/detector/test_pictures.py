"""What the pictures of detections show."""

import numpy as np
import pytest
from PIL import Image

from detector import pictures
from detector.data import Letterbox, ValidationSet, coco_dict

pytestmark = pytest.mark.example


def of_size(width, height, count=2):
    """Images of this size in the middle of black squares of 100 pixels, and a box in each."""
    offset = (100 - width) // 2, (100 - height) // 2
    square = np.zeros((100, 100, 3), np.uint8)
    square[offset[1] : offset[1] + height, offset[0] : offset[0] + width] = 255
    boxes, labels = np.array([[2, 2, 12, 12]], "f4"), np.zeros(1, np.int32)
    return ValidationSet(
        name="squares",
        ground_truth=coco_dict([boxes] * count, [labels] * count, ["thing"]),
        load=lambda index: (square, Letterbox(width, height, offset=offset)),
        category_ids=[0],
    )


@pytest.mark.parametrize(
    ("max_side", "crop"),
    [(100, (30, 40, 70, 60)), (30, (35, 40, 65, 60)), (10, (45, 45, 55, 55))],
)
def test_the_middle_of_an_image_has_no_padding(max_side, crop):
    _, place = of_size(40, 20).load(0)
    assert pictures._middle(place, max_side) == crop


def test_padding_is_not_drawn(tmp_path):
    validation = of_size(90, 30)
    pictures.draw_detections(tmp_path / "wide.jpg", [(validation, [])])
    with Image.open(tmp_path / "wide.jpg") as picture:
        assert (np.asarray(picture.convert("L")) < 20).mean() < 0.01  # But for the text.


def test_wide_images_stand_below_each_other(tmp_path):
    shapes = {}
    for name, size in {"wide": (90, 30), "high": (30, 90), "square": (50, 50)}.items():
        path = tmp_path / f"{name}.jpg"
        pictures.draw_detections(path, [(of_size(*size), [])])
        with Image.open(path) as picture:
            shapes[name] = picture.height / picture.width
    assert 0.65 < shapes["wide"] < 0.8  # 2 x 30 / 90, and titles.
    assert 1.45 < shapes["high"] < 1.6
    assert 0.5 < shapes["square"] < 0.6
