"""Masks of boxes: crops against the golden data, pastes against a plain interpolation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden.read_cases import names, read
from programs import temporary_bytes
from visdet_jax.boxes import crop_masks, paste_masks

MASK_TARGETS, _ = read("twostage", "mask_targets")
SETS = sorted(key.removesuffix("_rois") for key in MASK_TARGETS if key.endswith("_rois"))


@pytest.mark.one_in(8)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("precision", [64, 32])
def test_golden_crops(name, precision, x64):
    boxes = MASK_TARGETS[f"{name}_rois"].astype({64: np.float64, 32: np.float32}[precision])
    gt_inds = MASK_TARGETS[f"{name}_gt_inds"] + 1
    crop = functools.partial(crop_masks, MASK_TARGETS["gt_masks"], boxes, gt_inds)
    size = int(name.split("_")[1])
    found = crop(output_size=size)
    assert found.dtype == boxes.dtype
    np.testing.assert_array_equal(found, MASK_TARGETS[f"{name}_targets"])
    soft = crop(None, output_size=(size, size), chunk=3)
    atol = 1e-7 if precision == 64 else 1e-5  # they are stored in float32
    np.testing.assert_allclose(soft, MASK_TARGETS[f"{name}_soft"], atol=atol)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "name", [name for name in names("twostage", "mask") if name != "mask_targets"]
)
def test_golden_masks_of_sampled_positives(name):
    arrays, config = read("twostage", name)
    expected = arrays["tgt_masks"]
    most = expected.shape[1]
    exists = np.arange(most) < arrays["num_pos"][:, None]
    gt_masks, boxes = arrays["gt_masks"].astype(np.float32), arrays["roi_bboxes"][:, :most]
    gt_inds = np.where(exists, arrays["roi_gt_inds"][:, :most] + 1, 0)
    # What is no positive, and the bitmaps of padding, may be anything.
    boxes = np.where(exists[..., None], boxes, np.nan).astype(np.float32)
    gt_masks[np.arange(gt_masks.shape[1]) >= arrays["num_gts"][:, None]] = np.nan
    soft = config["roi_head_cfg"]["train_cfg"].get("soft_mask_target", False)
    crop = functools.partial(crop_masks, output_size=expected.shape[-1])
    found = jax.vmap(lambda *x: crop(*x, None if soft else 0.5))(gt_masks, boxes, gt_inds)
    assert not np.asarray(found)[~exists].any()
    np.testing.assert_allclose(found[exists], expected[exists], atol=1e-5 if soft else 0)


def test_crops_of_bitmaps_of_every_type():
    gt_masks = MASK_TARGETS["gt_masks"]
    boxes = np.array([[3, 4, 40, 30], [10, 2, 60, 44]], np.float32)
    expected = crop_masks(gt_masks, boxes, np.array([1, 3]), output_size=14)
    for dtype in (bool, np.int32, np.float16, jnp.bfloat16):
        found = crop_masks(jnp.asarray(gt_masks, dtype), boxes, np.array([1, 3]), output_size=14)
        np.testing.assert_array_equal(found, expected)
    half = crop_masks(
        gt_masks, boxes.astype(np.float16), np.array([1, 3], np.uint8), output_size=14
    )
    assert half.dtype == np.float32
    np.testing.assert_array_equal(half, expected)


def test_crops_of_nothing():
    gt_masks, boxes = np.ones((2, 5, 6), bool), np.array([[0, 0, 4, 4]], np.float32)
    assert crop_masks(gt_masks, boxes[:0], np.zeros(0, int), output_size=3).shape == (0, 3, 3)
    assert not crop_masks(gt_masks[:0], boxes, np.array([1]), output_size=3).any()
    for gt_ind in (0, -1, -2, 3):
        assert not crop_masks(gt_masks, boxes, np.array([gt_ind]), output_size=3).any()


def test_crops_hold_the_bitmaps_of_one_chunk():
    gt_masks, boxes = np.zeros((10, 200, 300), bool), np.zeros((64, 4), np.float32)
    crop = functools.partial(crop_masks, output_size=28, chunk=4)
    # The bitmaps of all boxes would be 15 MB as floats.
    assert temporary_bytes(crop, gt_masks, boxes, np.ones(64, np.int32)) < 3e6


def slow_paste(mask, box, image_shape):
    """torch's grid_sample with zeros outside and align_corners=False, in float64."""
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2))
    padded[1:-1, 1:-1] = mask
    x1, y1, x2, y2 = map(float, box)
    found = np.zeros(image_shape)
    for i, j in np.ndindex(*image_shape):
        y = (i + 0.5 - y1) / (y2 - y1) * height - 0.5
        x = (j + 0.5 - x1) / (x2 - x1) * width - 0.5
        if not (-1 < y < height and -1 < x < width):
            continue
        top, left = int(np.floor(y)), int(np.floor(x))
        dy, dx = y - top, x - left
        corners = padded[top + 1 : top + 3, left + 1 : left + 3]
        found[i, j] = np.array([1 - dy, dy]) @ corners @ np.array([1 - dx, dx])
    return found


def random_masks(count):
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-5, 20, (count, 2)), rng.uniform(1, 30, (count, 2))
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    return rng.random((count, 7, 6)).astype(np.float32), boxes


def test_pastes_against_a_plain_interpolation():
    masks, boxes = random_masks(6)
    expected = np.stack([slow_paste(*x, (20, 25)) for x in zip(masks, boxes, strict=True)])
    soft = paste_masks(masks, boxes, None, None, image_shape=(20, 25), chunk=4)
    np.testing.assert_allclose(soft, expected, atol=1e-5)
    found = paste_masks(masks, boxes, image_shape=(20, 25))
    assert found.dtype == bool
    clear = np.abs(expected - 0.5) > 1e-4
    np.testing.assert_array_equal(found[clear], (expected >= 0.5)[clear])


def test_a_pasted_mask_is_cropped_again():
    mask = np.kron(np.random.default_rng(1).random((7, 7)) < 0.5, np.ones((1, 1)))
    box = np.array([[4, 6, 4 + 14 * 4, 6 + 14 * 4]], np.float32)
    smooth = np.kron(mask, np.ones((2, 2)))[None].astype(np.float32)
    bitmap = paste_masks(smooth, box, image_shape=(80, 90))
    again = crop_masks(bitmap, box, np.array([1]), output_size=7)
    np.testing.assert_array_equal(again[0], mask)


def test_pastes_of_padding_and_of_boxes_without_area():
    masks, boxes = random_masks(5)
    valid = np.array([True, False, True, True, True])
    boxes[2, 2:] = boxes[2, :2]
    others = np.array([0, 3, 4])
    expected = paste_masks(masks, boxes, image_shape=(20, 25))
    masks[1], boxes[1] = np.nan, np.nan
    found = paste_masks(masks, boxes, valid, image_shape=(20, 25))
    assert not found[1].any()
    assert not found[2].any()
    np.testing.assert_array_equal(found[others], expected[others])
    all_in = paste_masks(masks, boxes, valid, 0.0, image_shape=(20, 25))
    assert not all_in[1].any()


def test_pastes_of_a_batch_and_of_nothing():
    masks, boxes = random_masks(6)
    paste = functools.partial(paste_masks, image_shape=(20, 25))
    batch = masks.reshape(2, 3, 7, 6), boxes.reshape(2, 3, 4)
    np.testing.assert_array_equal(jax.vmap(paste)(*batch).reshape(6, 20, 25), paste(masks, boxes))
    assert paste(masks[:0], boxes[:0]).shape == (0, 20, 25)


def test_errors():
    masks, boxes = random_masks(3)
    with pytest.raises(ValueError, match=r"paste_masks: masks must have shape \(R, h, w\)"):
        paste_masks(masks[0], boxes, image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"paste_masks: boxes must have shape \(R, 4\)"):
        paste_masks(masks, boxes[0], image_shape=(4, 4))
    with pytest.raises(ValueError, match="paste_masks: masks and boxes must be as many"):
        paste_masks(masks, boxes[:2], image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"paste_masks: image_shape must be \(height, width\)"):
        paste_masks(masks, boxes, image_shape=(4,))
    with pytest.raises(ValueError, match=r"paste_masks: threshold must be in \[0, 1\], got 2.0"):
        paste_masks(masks, boxes, threshold=2.0, image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"paste_masks: valid must have shape \(3,\)"):
        paste_masks(masks, boxes, np.ones(2, bool), image_shape=(4, 4))
    with pytest.raises(ValueError, match=r"crop_masks: gt_masks must have shape \(G, H, W\)"):
        crop_masks(masks[0], boxes, np.zeros(3, int), output_size=3)
    with pytest.raises(ValueError, match=r"crop_masks: gt_inds must have shape \(3,\)"):
        crop_masks(masks, boxes, np.zeros(2, int), output_size=3)
    with pytest.raises(TypeError, match="crop_masks: gt_inds must hold integer class indices"):
        crop_masks(masks, boxes, np.zeros(3), output_size=3)
