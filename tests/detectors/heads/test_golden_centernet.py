"""mmdet 3.3.0's CenterNetHead, whatever stands in the padding."""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

CASES = names("queries", "centernet")
PARTS = {"cls_scores": "logits", "wh_preds": "wh", "offset_preds": "offset"}
BOXES = 12  # So that cases of one config and size share a program.


def test_all_files_are_here():
    assert len(CASES) == 8


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, *truth, batch_input_shape):
        given = {"batch_input_shape": batch_input_shape}
        losses = head.loss(outputs, *truth, **given)
        return sum(losses.values()), (losses, head.targets(outputs, *truth, **given))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def channels_last(x):
    return np.moveaxis(x, 1, -1)


def padded(arrays, dtype, padding):
    """Boxes and labels of `BOXES` rows, with NaN or with plausible boxes in the padding."""
    real, (images, count) = arrays["gt_labels"] >= 0, arrays["gt_labels"].shape
    labels = np.full((images, BOXES), -1, np.int32)
    labels[:, :count] = arrays["gt_labels"]
    boxes = np.full((images, BOXES, 4), np.nan)
    if padding == "plausible":
        corner = np.random.default_rng(0).uniform(0, 40, (images, BOXES, 2))
        boxes = np.concatenate([corner, corner + 20], axis=-1)
    boxes[labels >= 0] = arrays["gt_bboxes"][real]
    return boxes.astype(dtype), labels


def replay(name, dtype, padding):
    """Replays a case by name, and fails where a number differs."""
    arrays, config = read("queries", name)
    outputs = HeadOutputs(
        **{key: [channels_last(arrays[f"in_{x}"]).astype(dtype)] for key, x in PARTS.items()}
    )
    truth, shape = padded(arrays, dtype, padding), arrays["batch_input_shape"]
    result = program(build_head(config["head"]))(outputs, *truth, batch_input_shape=shape)
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, result)
    exact = dtype == np.float64
    assert losses.keys() == set(config["loss_names"])
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, arrays[f"exp_{key}"], 1e-9 if exact else 2e-5)
    (heatmaps,) = targets.heatmaps
    expected = channels_last(arrays["tgt_heatmap"])
    np.testing.assert_allclose(heatmaps, expected, *((0, 1e-12) if exact else (2e-5, 1e-7)))
    np.testing.assert_array_equal(heatmaps == 1, expected == 1)
    assert max((heatmaps == 1).sum(), 1) == config["avg_factor"]
    weight = arrays["tgt_weight"].reshape(targets.bbox_weights.shape)
    np.testing.assert_array_equal(targets.bbox_weights, weight)
    for learnt, key in zip(np.split(targets.bbox_targets, 2, -1), ("offset", "wh"), strict=True):
        expected = channels_last(arrays[f"tgt_{key}"]).reshape(learnt.shape)
        np.testing.assert_allclose(learnt, expected, 0, 1e-12 if exact else 1e-5)
    for key, part in PARTS.items():
        expected = channels_last(arrays[f"grad_{part}"])
        atol = (1e-9 if exact else 5e-5) * np.abs(expected).max()
        np.testing.assert_allclose(getattr(gradient, key)[0], expected, 0, atol, err_msg=key)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("name", CASES)
def test_float64(name, x64):
    replay(name, np.float64, "nan")


@pytest.mark.parametrize("name", few(CASES, ("centernet_anisotropic",)))
def test_float32(name):
    replay(name, np.float32, "plausible")
