"""Replays a golden head case: losses, gradients and targets from one program."""

import functools

import jax
import numpy as np
import pytest

from golden.read_heads import HEAD_FILES, HeadCase
from visdet_jax.detectors import HeadOutputs, build_head

BOXES = 8  # Ground truth is padded to this many, so that cases of one config share a program.

CASES = {path.stem.removeprefix("head_"): HeadCase(path) for path in HEAD_FILES}
# Without `--all` the base case of each head, with what is hardest in the padding.
CASES_AND_PADDING = [
    pytest.param(
        name,
        padding,
        id=f"{name}-{padding}",
        marks=() if name.endswith("_base") and padding == "nan" else pytest.mark.long,
    )
    for name in CASES
    for padding in ("garbage", "nan")
]


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, *batch):
        losses = head.loss(outputs, *batch)
        return sum(losses.values()), (losses, head.targets(outputs, *batch))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def padded(case, dtype, padding):
    """Ground truth padded to BOXES boxes; the padding holds garbage or NaN."""
    batch, count = case.gt_labels.shape
    labels = np.full((batch, BOXES), -1, np.int32)
    labels[:, :count] = case.gt_labels
    if padding == "nan":
        boxes = np.full((batch, BOXES, 4), np.nan)
    else:
        boxes = np.random.default_rng(0).uniform(-200, 300, (batch, BOXES, 4))
        boxes[:, -1] = 0, 0, 160, 128  # The whole image.
    boxes[labels >= 0] = case.gt_boxes[case.gt_labels >= 0]
    return boxes.astype(dtype), labels


def replay(case, dtype, padding):
    """Losses by name, gradients by part and level, and the targets."""
    head = build_head(case.head_cfg, case.train_cfg)
    inputs = {part: tuple(x.astype(dtype) for x in maps) for part, maps in case.maps("in").items()}
    ground_truth = padded(case, dtype, padding)
    result = program(head)(HeadOutputs(**inputs), *ground_truth, *case.shapes)
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, result)
    return losses, {part: getattr(gradient, part) for part in inputs}, targets


def assert_targets(case, targets, rtol):
    """Compares the labels, weights, numbers of boxes and boxes of all priors."""
    expected = case.targets
    np.testing.assert_array_equal(targets.labels, expected["labels"])
    if "gt_inds" in expected:  # FCOS has none.
        np.testing.assert_array_equal(targets.gt_inds, expected["gt_inds"])
        np.testing.assert_array_equal(targets.label_weights, expected["label_weights"])
    else:
        np.testing.assert_array_equal(targets.label_weights, 1)
    np.testing.assert_array_equal(np.argwhere(targets.gt_inds > 0), expected["pos_index"])
    positive = tuple(expected["pos_index"].T)
    boxes = expected["pos_bbox_targets"]
    np.testing.assert_allclose(targets.bbox_targets[positive], boxes, rtol, rtol)
    weights = np.zeros(targets.bbox_weights.shape)
    weights[positive] = 1
    np.testing.assert_array_equal(targets.bbox_weights, weights)
    assert not targets.bbox_targets[weights == 0].any()
