"""mmdet 3.3.0's CenterNetHead and CenterNetUpdateHead, whatever stands in the padding.

Two cases of the latter are answered differently on purpose: see `WITHOUT_BOXES`.
"""

import functools

import jax
import numpy as np
import pytest

from cases import few
from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

CASES = names("queries", "centernet")
PARTS = {"cls_scores": "logits", "wh_preds": "wh", "offset_preds": "offset"}
UPDATES = names("queries", "centernet2")
# To mmdet an image without boxes has heatmaps of C = 4 everywhere, so that its negatives weigh
# (1 - C)^4 = 81 and not 1; here its heatmaps are 0. Which images these are.
WITHOUT_BOXES = {"centernet2_oneimage_nogt": [1], "centernet2_nogt": [0, 1]}
TIMES_TOO_MUCH = 81
BOXES = 12  # So that cases of one config and size share a program.


def test_all_files_are_here():
    assert len(CASES) == 8
    assert len(UPDATES) == 5


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, *truth, **given):
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
    heatmaps = targets.heatmaps
    expected = channels_last(arrays["tgt_heatmap"]).reshape(heatmaps.shape)
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


def level_first(x, sizes):
    """Rows (B, N, ...) of images as rows (level, image, y, x) of the files."""
    ends = np.cumsum([height * width for height, width in sizes])
    parts = np.split(x, ends[:-1], axis=1)
    return np.concatenate([part.reshape(-1, *x.shape[2:]) for part in parts])


def replay_update(name, dtype, padding):
    """Replays a case of CenterNetUpdateHead by name, and fails where a number differs."""
    arrays, config = read("queries", name)
    sizes = arrays["featmap_sizes"]
    parts = {"cls_scores": "cls", "bbox_preds": "box"}

    def maps(prefix):
        return {
            key: [channels_last(arrays[f"{prefix}_{x}_{i}"]) for i in range(len(sizes))]
            for key, x in parts.items()
        }

    outputs = jax.tree.map(lambda x: x.astype(dtype), HeadOutputs(**maps("in")))
    result = program(build_head(config["head"]))(outputs, *padded(arrays, dtype, padding))
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, result)
    exact = dtype == np.float64
    tolerance = (1e-9, 1e-9) if exact else (2e-5, 2e-5)

    heatmaps = arrays["tgt_heatmap_level_first"]
    expected = {key: float(arrays[f"exp_{key}"]) for key in config["loss_names"]}
    gradients = maps("grad")
    if wrong := WITHOUT_BOXES.get(name):
        images = level_first(np.arange(2)[:, None].repeat(len(heatmaps) // 2, 1), sizes)
        heatmaps = np.where(np.isin(images, wrong)[:, None], 0, heatmaps)
        count = max(len(arrays["pos_inds"]), 1) + 1.1920929e-07
        for gradient_of_level, logits in zip(
            gradients["cls_scores"], maps("in")["cls_scores"], strict=True
        ):
            gradient_of_level[wrong] /= TIMES_TOO_MUCH
            p = np.clip(1 / (1 + np.exp(-logits[wrong].astype(np.float64))), 1e-4, 1 - 1e-4)
            negatives = 0.75 * (-np.log(1 - p + 1e-12) * p**2).sum() / count
            expected["loss_cls"] -= (TIMES_TOO_MUCH - 1) * negatives

    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected[key], tolerance[0], err_msg=key)
    actual = level_first(targets.heatmaps, sizes)
    np.testing.assert_allclose(actual, heatmaps, *((0, 1e-12) if exact else (2e-5, 1e-7)))
    boxes = arrays["tgt_box_level_first"]
    learns = boxes.max(axis=1) >= 0
    np.testing.assert_array_equal(level_first(targets.bbox_weights, sizes), learns)
    actual = level_first(targets.bbox_targets, sizes)[learns]
    np.testing.assert_allclose(actual, boxes[learns], *tolerance)
    assert_positives(targets.candidates, arrays, sizes)
    for key, levels in gradients.items():
        for level, expected in enumerate(levels):
            atol = (1e-9 if exact else 5e-5) * np.abs(expected).max()
            actual = getattr(gradient, key)[level]
            np.testing.assert_allclose(actual, expected, 0, atol, err_msg=f"{key} {level}")


def assert_positives(candidates, arrays, sizes):
    """The same cells and classes, in any order, and each as often."""
    places = np.arange(sum(height * width for height, width in sizes))
    row_of = np.empty((2, len(places)), int)
    images = level_first(np.arange(2)[:, None].repeat(len(places), 1), sizes)
    row_of[images, level_first(places[None].repeat(2, 0), sizes)] = np.arange(len(images))
    image, slot = np.nonzero(candidates.weights)
    assert (candidates.weights[image, slot] == 1).all()
    rows = row_of[image, candidates.priors[image, slot]]
    actual = sorted(zip(rows, candidates.labels[image, slot], strict=True))
    expected = sorted(zip(arrays["pos_inds"], arrays["pos_labels"], strict=True))
    np.testing.assert_array_equal(np.array(actual), np.array(expected))


@pytest.mark.parametrize("name", few(UPDATES, ("centernet2_oneimage_nogt",)))
def test_update_float64(name, x64):
    replay_update(name, np.float64, "nan")


@pytest.mark.long
@pytest.mark.parametrize("name", UPDATES)
def test_update_float32(name):
    replay_update(name, np.float32, "plausible")
