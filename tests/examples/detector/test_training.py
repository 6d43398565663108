"""Training step by step, and predictions of a trained network."""

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


def test_training_waits_for_the_step_before_the_last(monkeypatch):
    """So the device has its next step, and the progress bar shows each step when it has run."""
    events = []

    class Row:
        def __init__(self, step):
            self.step = step

        def tolist(self):
            events.append(("ran", self.step))
            return [0.5]

    class History:
        def __getitem__(self, step):
            return Row(step)

    class Bar:
        def __init__(self, total, initial, **_):
            events.append(("bar", initial, total))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def set_postfix(self, losses, refresh):
            assert losses == {"loss": 0.5}

        def update(self):
            events.append("shown")

    class Checkpoints:
        def save(self, step, args):
            events.append(("saved", step))

    class Batches:
        def train_batch(self, step):
            return {"step": step}

    def dispatch(state, batch):
        events.append(("dispatched", batch["step"]))
        return {**state, "step": batch["step"] + 1}

    monkeypatch.setattr(training, "tqdm", Bar)
    monkeypatch.setattr(training, "CHECKPOINTS", 1)
    trainer = object.__new__(training.Trainer)
    trainer.steps, trainer.loss_names, trainer.step = 4, ["loss"], dispatch
    state = trainer.train({"step": 1, "history": History()}, Batches(), Checkpoints())
    assert state["step"] == 4
    assert events == [
        ("bar", 1, 4),
        ("dispatched", 1),
        ("dispatched", 2),
        *(("ran", 1), "shown"),
        ("dispatched", 3),
        *(("ran", 2), "shown"),
        ("saved", 4),
        *(("ran", 3), "shown"),
    ]
