"""What the data sources share: reading images, cutting and mirroring."""

import io
import re

import numpy as np
import pytest
from PIL import Image

import train_detector
from detector import data
from detector.data import IGNORED, DataError

pytestmark = pytest.mark.example


@pytest.mark.parametrize("move", [data.flip, data.transpose])
def test_flip_and_transpose(move):
    image = np.zeros((30, 50, 3), np.uint8)
    image[4:9, 11:31] = 1
    moved, ((x1, y1, x2, y2),) = move(image, np.array([[11, 4, 31, 9]]))
    assert moved[y1:y2, x1:x2].all()
    assert moved.sum() == image.sum()
    assert (moved.shape != image.shape) or (moved != image).any()


def test_cut_keeps_boxes_of_which_half_is_visible_and_ignores_others():
    boxes = np.array([[0, 0, 10, 10], [15, 0, 25, 10], [14, 0, 24, 10], [18, 2, 28, 4]]) + 0.0
    kept, labels = data.cut(boxes, np.array([3, 3, 3, 3]), (0, 0, 20, 5))
    assert labels.tolist() == [3, IGNORED, IGNORED, IGNORED]
    kept, labels = data.cut(boxes, np.array([3, 3, 3, 3]), (20, 0, 40, 20))
    assert labels.tolist() == [3, IGNORED, 3]  # The first box lies outside.
    np.testing.assert_array_equal(kept, [[0, 0, 5, 10], [0, 0, 4, 10], [0, 2, 8, 4]])


def test_too_many_pixels_are_an_error_that_says_what_to_do(own_data, monkeypatch):
    """Pillow warns above MAX_IMAGE_PIXELS and raises above twice as many."""
    path = own_data.folder / "0.png"  # 2400 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    for read in (data.read_image, data.read_size):
        with pytest.raises(DataError, match=re.escape(str(path))) as error:
            read(path)
        for text in ("2400 pixels", "limit of 2398 pixels", "PIL.Image.MAX_IMAGE_PIXELS", "1199"):
            assert text in str(error.value)
    with pytest.raises(SystemExit, match=r"0\.png: .*MAX_IMAGE_PIXELS"):
        train_detector.main(own_data.options)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2400)
    assert data.read_image(path).shape == (40, 60, 3)


def test_broken_files_are_errors_that_name_them(tmp_path):
    """Bytes of small images are changed at random: nothing but a DataError may be raised."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
    grey = rng.integers(0, 65536, (12, 16), np.uint16)
    path, messages = tmp_path / "image", []
    for array, file_format in ((pixels, "PNG"), (pixels, "JPEG"), (grey, "PNG"), (pixels, "BMP")):
        file = io.BytesIO()
        Image.fromarray(array).save(file, file_format)
        for _ in range(50):
            changed = bytearray(file.getvalue())
            for place in rng.integers(len(changed), size=4):
                changed[place] = rng.integers(256)
            path.write_bytes(changed)
            for read in (data.read_image, data.read_size):
                try:
                    read(path)
                except DataError as error:
                    messages.append(str(error))
    assert len(messages) > 50
    assert all(message.startswith(f"{path}: ") for message in messages)


def test_every_exception_of_pillow_is_a_data_error(tmp_path, monkeypatch):
    """An AVIF file whose pixels are broken, say, raises a RuntimeError."""

    def broken(path):
        raise RuntimeError("Failed to decode image")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(DataError, match=r"a\.avif: not a readable image \(Failed to decode"):
        data.read_image(tmp_path / "a.avif")


def test_missing_file_is_named(tmp_path):
    for read in (data.read_image, data.read_size):
        with pytest.raises(DataError, match=r"gone\.png: no such image file"):
            read(tmp_path / "gone.png")
