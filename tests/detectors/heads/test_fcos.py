"""FCOS's own: its targets, the divisor of its box loss, its fields."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from head_cases import ROWS, batch_for, boxes_for, compiled, outputs_for

ROW = ROWS["FCOSHead"]


def test_what_targets_learn():
    head = ROW.head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((1, 0), 4)
    boxes[0, 0], labels[0, 0] = (10, 6, 34, 28), 2
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels))
    positive = targets.gt_inds == 1
    assert positive[0].any()
    assert not positive[1].any()
    np.testing.assert_array_equal(targets.labels[positive], 2)
    np.testing.assert_array_equal(targets.label_weights, 1)
    assert ((targets.centerness > 0) == positive).all()


def test_the_centernesses_divide_by_their_own_sum():
    """Of a single positive the box loss is the loss of its box, however far from the centre."""
    head = ROW.head()
    outputs, *truth = batch_for(head, (1, 0))
    truth[0][0, 0] = 3, 3, 9, 6  # Just around (4, 4).
    losses, _ = compiled(head)(outputs, *truth)
    targets = head.targets(outputs, *truth)
    np.testing.assert_array_equal(np.argwhere(np.asarray(targets.gt_inds) > 0), [[0, 0]])
    np.testing.assert_allclose(targets.centerness[0, 0], 0.1**0.5, rtol=1e-6)
    np.testing.assert_allclose(targets.bbox_targets[0, 0], [1, 1, 5, 2])
    (left, top, right, bottom), near = outputs.bbox_preds[0][0, 0, 0], np.minimum
    inter = (near(left, 1) + near(right, 5)) * (near(top, 1) + near(bottom, 2))
    iou = inter / ((left + right) * (top + bottom) + 6 * 3 - inter)
    np.testing.assert_allclose(losses["loss_bbox"], -np.log(iou), rtol=1e-5)


def test_norm_on_bbox_is_in_strides():
    head, normed = ROW.head(), ROW.head(norm_on_bbox=True)
    outputs, *truth = batch_for(head)
    targets, in_strides = (
        jax.tree.map(np.asarray, each.targets(outputs, *truth)) for each in (head, normed)
    )
    strides = np.repeat([8, 16], [24, 6])[None, :, None]
    np.testing.assert_allclose(in_strides.bbox_targets * strides, targets.bbox_targets, rtol=1e-6)
    np.testing.assert_allclose(in_strides.centerness, targets.centerness, rtol=1e-6)


def test_vmap_over_the_radius():
    batch = batch_for(ROW.head())

    def learnt(radius):
        return ROW.head(center_sampling=True, center_sample_radius=radius).targets(*batch).gt_inds

    swept = jax.jit(jax.vmap(learnt))(jnp.array([0.5, 1.5]))
    for found, radius in zip(swept, (0.5, 1.5), strict=True):
        np.testing.assert_array_equal(found, learnt(radius))
    few, many = ((np.asarray(found) > 0).sum() for found in swept)
    assert few < many


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [0, 8]}, "strides must be at least 1, got (0, 8)"),
        ({"center_sample_radius": -1.0}, "center_sample_radius must be above 0, got -1.0"),
        ({"regress_ranges": [[0, 8]]}, "2 strides need as many regress_ranges (low, high), got"),
        ({"regress_ranges": [[0, 8, 9]] * 2}, "2 strides need as many regress_ranges (low, high)"),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"FCOSHead: {message}")):
        ROW.head(**changes)
