"""Images as Pillow opens them: turned upright by EXIF, and grey levels of more than 8 bits."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from detector.images import upright_rgb, upright_size

pytestmark = pytest.mark.example

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)


def saved(image, file_format, **options):
    """The image, opened again from a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return Image.open(file)


# ---------------------------------------------------------------- EXIF orientation

# Where the first stored row and the first stored column lie in the upright image (EXIF 2.3).
STORED = {
    1: lambda upright: upright,  # top, left
    2: lambda upright: upright[:, ::-1],  # top, right
    3: lambda upright: upright[::-1, ::-1],  # bottom, right
    4: lambda upright: upright[::-1],  # bottom, left
    5: lambda upright: upright.swapaxes(0, 1),  # left, top
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),  # right, top
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
    8: lambda upright: upright[::-1].swapaxes(0, 1),  # left, bottom
}


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def random_image(shape=(30, 20, 3), dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_images_are_turned_upright(orientation, file_format):
    upright = random_image()
    stored = Image.fromarray(STORED[orientation](upright))
    for _ in range(2):
        image = saved(stored, file_format, exif=exif_of(orientation))
        assert upright_size(image) == (20, 30)
        np.testing.assert_array_equal(upright_rgb(image), upright)


@pytest.mark.parametrize("orientation", STORED)
def test_jpegs_are_turned_upright(orientation):
    upright = np.kron(random_image((3, 2, 1)), np.ones((16, 16, 3), np.uint8))
    stored = Image.fromarray(STORED[orientation](upright))
    image = saved(stored, "JPEG", exif=exif_of(orientation), quality=100)
    assert upright_size(image) == (32, 48)
    np.testing.assert_allclose(upright_rgb(image), upright, atol=4)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_images_of_16_bits_are_turned_upright(orientation, file_format):
    upright = random_image((30, 20), np.uint16)
    stored = Image.fromarray(STORED[orientation](upright))
    image = saved(stored, file_format, exif=exif_of(orientation))
    np.testing.assert_array_equal(upright_rgb(image)[..., 0], np.rint(upright / 257))


def exif_bytes(*entries):
    """EXIF of (tag, type, count, 4 bytes) entries."""
    head = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHI4s", *entry) for entry in entries) + bytes(4)


def test_other_tags_of_exif_may_have_any_type():
    """ImageOps.exif_transpose raises for an image width that is a text."""
    upright = random_image()
    exif = exif_bytes((0x0112, 3, 1, b"\6\0\0\0"), (0x0100, 2, 4, b"abc\0"))
    image = saved(Image.fromarray(STORED[6](upright)), "PNG", exif=exif)
    assert upright_size(image) == (20, 30)
    np.testing.assert_array_equal(upright_rgb(image), upright)


@pytest.mark.parametrize(
    "exif", [b"nonsense", exif_bytes((0x0112, 3, 1, bytes(4))), exif_of(9).tobytes()]
)
@pytest.mark.parametrize("file_format", ["PNG", "WEBP"])
def test_an_orientation_that_says_nothing_turns_nothing(exif, file_format):
    pixels = random_image()
    image = saved(Image.fromarray(pixels), file_format, exif=exif, lossless=True)
    assert upright_size(image) == (20, 30)
    np.testing.assert_array_equal(upright_rgb(image), pixels)


def test_the_size_is_read_without_the_pixels(monkeypatch):
    image = saved(Image.fromarray(random_image()), "PNG")
    loads = []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: loads.append(self))
    assert upright_size(image) == (20, 30)
    assert not loads


# ---------------------------------------------------------------- grey levels


def expect_a_full_ramp(image):
    """All 256 levels, equally often but for the two at the ends; the three channels are alike."""
    levels = upright_rgb(image)
    assert levels.dtype == np.uint8
    assert levels.shape == (256, 256, 3)
    assert len(np.unique(levels)) == 256
    assert levels.mean() == 127.5
    np.testing.assert_array_equal(levels, np.rint(RAMP / 257)[..., None].repeat(3, axis=-1))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_a_ramp_of_16_bits_keeps_its_levels(file_format):
    expect_a_full_ramp(saved(Image.fromarray(RAMP), file_format))


def test_a_big_endian_ramp_of_16_bits_keeps_its_levels():
    image = Image.frombytes("I;16B", (256, 256), RAMP.astype(">u2").tobytes())
    expect_a_full_ramp(saved(image, "TIFF"))


def test_a_ramp_of_a_16_bit_pgm_keeps_its_levels():
    file = io.BytesIO(b"P5 256 256 65535\n" + RAMP.astype(">u2").tobytes())
    expect_a_full_ramp(Image.open(file))


@pytest.mark.parametrize("white", [1, 255, 65535])
def test_a_float_ramp_from_black_to_white_keeps_its_levels(white):
    values = (RAMP / 65535 * white).astype(np.float32)
    expect_a_full_ramp(saved(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("scale", [1e-30, 1e6, 1e33])
@pytest.mark.parametrize("offset", [-0.5, -1.0])
def test_a_float_ramp_of_another_range_is_stretched(scale, offset):
    values = ((RAMP / 65535 + offset) * scale).astype(np.float32)
    levels = upright_rgb(saved(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(levels[..., 0], RAMP / 257, atol=0.51)
    assert len(np.unique(levels)) == 256


@pytest.mark.parametrize("low", [-32768, 10**5])
def test_integers_of_another_range_are_stretched(low):
    image = Image.fromarray(RAMP.astype(np.int32) + low)
    expect_a_full_ramp(saved(image, "TIFF"))


@pytest.mark.parametrize(
    ("values", "levels"),
    [
        ([0.0, 0.2, 0.5], [0, 51, 128]),  # fractions of 1: dark images stay dark
        ([0.0, 1.0, 20.0], [0, 1, 20]),  # of 255
        ([0.0, 257.0, 514.0], [0, 1, 2]),  # of 65535
        ([0.0, 0.5, 1e5], [0, 0, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([-3.0, -3.0, -3.0], [0, 0, 0]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([np.nan, 0.2, 1.0], [0, 51, 255]),
        ([-np.inf, 0.2, np.inf], [0, 51, 255]),
        ([np.nan, -2.0, 2.0], [0, 0, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
    ],
)
def test_floats_are_scaled_by_the_rule(values, levels):
    image = saved(Image.fromarray(np.array([values], np.float32)), "TIFF")
    np.testing.assert_array_equal(upright_rgb(image)[0, :, 0], levels)


def test_a_dark_image_of_16_bits_stays_dark():
    image = saved(Image.fromarray(np.full((4, 4), 257 * 3, np.uint16)), "PNG")
    assert (upright_rgb(image) == 3).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_are_converted_by_pillow(mode):
    image = Image.fromarray(random_image()).convert(mode)
    np.testing.assert_array_equal(
        upright_rgb(saved(image, "TIFF")), np.asarray(image.convert("RGB"))
    )
