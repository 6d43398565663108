"""Detections from boxes and scores."""

import jax
import numpy as np
import pytest

from detector import postprocess

pytestmark = pytest.mark.example


def random_boxes(rng, count, side):
    corner = rng.uniform(0, side - 4, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 40, (count, 2))], axis=1).astype("f4")


def test_nms_against_a_loop():
    rng = np.random.default_rng(0)
    boxes, labels = random_boxes(rng, 80, 60), rng.integers(0, 3, 80)
    kept = []
    for i in range(80):
        for j in kept:
            (a1, b1, a2, b2), (c1, d1, c2, d2) = boxes[i], boxes[j]
            overlap = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
            union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - overlap
            if labels[i] == labels[j] and overlap / union > 0.3:
                break
        else:
            kept.append(i)
    assert 20 < len(kept) < 70
    assert np.flatnonzero(postprocess.nms(boxes, labels, 0.3)).tolist() == kept


def test_select_keeps_the_best_of_each_object():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10], [60, 60, 70, 70]], "f4")
    scores = np.array([[0.5, 0.1], [0.75, 0.25], [0.0625, 0.875], [0.375, 0.0]], "f4")
    found = jax.device_get(jax.jit(postprocess.select, static_argnums=2)(boxes, scores, 4))
    # The duplicate of the better box goes in class 0; in class 1 the second box is kept.
    assert found["scores"].tolist() == [0.875, 0.75, 0.375, 0.25]
    assert found["labels"].tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(found["boxes"], boxes[[2, 1, 3, 1]])
