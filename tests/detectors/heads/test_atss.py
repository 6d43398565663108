"""ATSS's own: a box loss weighted by centerness, and its fields."""

import numpy as np
import pytest

from head_cases import ROWS, batch_for, compiled

ROW = ROWS["ATSSHead"]


@pytest.mark.long
def test_centerness_weights_the_box_loss():
    head = ROW.head()
    outputs, *truth = batch_for(head)
    losses, _ = compiled(head)(outputs, *truth)
    targets, boxes = head.targets(outputs, *truth), head.decode(outputs).boxes
    flat = boxes.reshape(-1, 4), targets.bbox_targets.reshape(-1, 4)
    total = head.loss_bbox(*flat, targets.centerness.ravel(), reduction_override="sum")
    expected = total / max(targets.centerness.sum(), 1)
    np.testing.assert_allclose(losses["loss_bbox"], expected, rtol=1e-5)
    logits = np.concatenate([x.reshape(2, -1) for x in outputs.centernesses], axis=1).ravel()
    of_positives = targets.bbox_weights.ravel()
    count = np.maximum(np.asarray(targets.bbox_weights).sum(1), 1).sum()
    expected = head.loss_centerness(
        logits, targets.centerness.ravel(), of_positives, avg_factor=float(count)
    )
    np.testing.assert_allclose(losses["loss_centerness"], expected, rtol=1e-5)


def test_the_box_loss_is_of_boxes():
    with pytest.raises(ValueError, match="ATSSHead: reg_decoded_bbox must be True"):
        ROW.head(reg_decoded_bbox=False)
