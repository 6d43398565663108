"""What Faster and Mask R-CNN add to the network."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from detector import heads, two_stages
from detector.config import read_model

pytestmark = pytest.mark.example


def test_a_region_is_aligned_on_the_level_of_its_size():
    """mmdet's rule: the next level from twice FINEST_SIDE on, and nothing in an empty slot."""
    levels = [jnp.full((1, 64, 64, 3), 1.0), jnp.full((1, 32, 32, 3), 2.0)]
    sides = [(20, 30), (111, 111), (113, 113), (240, 240), (0, 0)]
    boxes = np.array([[[8, 8, 8 + width, 8 + height] for width, height in sides]], "f4")
    detector = SimpleNamespace(rpn=SimpleNamespace(strides=(4, 8)))
    aligned = two_stages.TwoStageDetector.align(detector, levels, boxes, 7)
    assert aligned.shape == (1, 5, 7, 7, 3)
    np.testing.assert_allclose(aligned[0, :4].mean(axis=(1, 2, 3)), [1, 1, 2, 2], rtol=1e-6)


@pytest.mark.long
def test_a_cell_becomes_four_pixels_of_the_mask():
    roi = heads.make_heads(read_model("mask_rcnn", {}), 3, [8])["roi_head"]
    branch = two_stages.MaskBranch(16, roi, rngs=nnx.Rngs(0))
    width = two_stages.MASK_CHANNELS
    kernel = np.zeros(branch.upsample.kernel.shape, "f4")
    branch.upsample.kernel[...] = kernel
    branch.upsample.bias[...] = np.repeat(np.arange(4, dtype="f4"), width)
    branch.masks.kernel[...] = np.full(branch.masks.kernel.shape, 1 / width, "f4")
    masks = branch(jnp.ones((2, 5, 14, 14, 16)))
    assert masks.shape == (2, 5, 28, 28, 3)
    pixels = masks[1, 4, :, :, 2].reshape(14, 2, 14, 2)
    np.testing.assert_allclose(pixels.mean(axis=(0, 2)), [[0, 1], [2, 3]], atol=1e-5)
    assert np.ptp(pixels, axis=(0, 2)).max() < 1e-5


@pytest.mark.long
def test_the_mask_of_a_detection_is_that_of_its_class(monkeypatch):
    """Class 1 is predicted everywhere, with a mask on the right half; others have the left one."""
    both = heads.make_heads(read_model("mask_rcnn", {}), 3, [8])

    def make():
        return two_stages.TwoStageDetector(both, width=8, channels=8, rngs=nnx.Rngs(0))

    def logits(self, levels, boxes):
        right = jnp.where(jnp.arange(28) >= 14, 9.0, -9.0)
        by_class = jnp.stack([-right, right, -right], axis=-1)
        return jnp.broadcast_to(by_class, (*boxes.shape[:2], 28, 28, 3))

    monkeypatch.setattr(two_stages.TwoStageDetector, "mask_logits", logits)

    @nnx.jit
    def detect(images):
        network = make()
        network.box_branch.classes.bias[...] = jnp.array([0.0, 5, 0, 0])
        return network.detect(images, 4)

    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found, masks = jax.device_get(detect(images))
    assert masks.shape == (2, 4, 64, 64)
    assert found.exists.any()
    for box, label, exists, mask in zip(
        *(x.reshape(-1, *x.shape[2:]) for x in (found.boxes, found.labels, found.exists, masks)),
        strict=True,
    ):
        if not exists:
            assert not mask.any()
            continue
        assert label == 1
        _, columns = np.nonzero(mask)
        middle, right = (box[0] + box[2]) / 2, box[2]
        assert columns.min() + 0.5 == pytest.approx(middle, abs=1.1)
        assert columns.max() + 0.5 == pytest.approx(right, abs=1.1)
