"""Predictions of a trained network."""

import numpy as np
import pytest
from flax import nnx

from detector import heads, network, training
from detector.config import read_model
from visdet_jax.detectors import DETROutputs

pytestmark = pytest.mark.example


def test_detr_detections_are_not_suppressed(monkeypatch):
    """DETR's detections are the best of all queries and classes, also at the same place."""
    logits = np.array([[2.0, -1.0], [3.0, -2.0], [0.5, 1.0]], "f4")
    boxes = np.array([[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.25, 0.5], [0.25, 0.25, 0.5, 0.5]], "f4")
    outputs = DETROutputs(logits[None, None], boxes[None, None])

    class Network(network.Detector):
        def __init__(self, head, rngs):
            self.head = head

        def __call__(self, images):
            return outputs

    monkeypatch.setattr(training, "Detector", Network)
    trainer = training.Trainer(heads.make_heads(read_model("detr", {}), 2, [8]), 1, 0)
    found = trainer.predictor({"averaged": nnx.State({})}, 4)(np.zeros((40, 80, 3), np.uint8))
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp([-3, -2, -1, -0.5])), rtol=1e-6)
    assert found["labels"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(
        found["boxes"], [[30, 10, 50, 30], [30, 10, 50, 30], [0, 0, 40, 20], [0, 0, 40, 20]]
    )
