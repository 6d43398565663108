"""Classes or bins spread over an axis of an explicit mesh: value and gradient of one device.

Rows lie on the mesh's axis `data`, classes on its axis `model`, as where a classifier's weights are
split over devices.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v
from cases import close
from visdet_jax import LOSSES, build_loss

ROWS, CLASSES = 8, 8


@dataclass(frozen=True)
class Batch:
    """The arguments of a loss, and how many of the axes of each are rows."""

    pred: np.ndarray
    target: Any
    weight: np.ndarray
    keywords: dict[str, Any] = field(default_factory=dict)
    axis: int = -1  # The axis of pred's classes.

    @property
    def arguments(self):
        return self.pred, self.target, self.weight, self.keywords


def random(*shape, low=0.0, high=1.0):
    rng = np.random.default_rng(sum(shape))
    return rng.uniform(low, high, shape).astype(np.float32)


def logits(channels=CLASSES, *pixels):
    return random(ROWS, channels, *pixels, low=-4, high=4)


LABELS = np.array([0, 5, 2, -1, 3, 3, 1, 4], np.int32)
WEIGHT = np.array([1, 0, 2, 1, 0.5, 1, 1, 0], np.float32)
DENSE = random(ROWS, CLASSES).round()


def labelled(channels=CLASSES):
    return Batch(logits(channels), LABELS, WEIGHT)


def dense(target=DENSE, weight=WEIGHT):
    return Batch(logits(), target, weight)


def scored():
    return Batch(logits(), (LABELS, random(ROWS)), WEIGHT)


def binned():
    return Batch(logits(), random(ROWS, high=CLASSES - 1.01), WEIGHT)


TABLE: dict[str, list[tuple[dict[str, Any], Batch]]] = {
    "ASLSingleLabel": [({}, labelled())],
    "AsymmetricLoss": [({}, dense()), ({}, labelled())],
    "CrossEntropyCustomLoss": [({"num_classes": CLASSES - 1}, labelled())],
    "CrossEntropyLoss": [
        ({}, labelled()),
        ({"class_weight": (1.0, 2.0, 0.5, 1.0, 3.0, 0.1, 2.0, 0.7), "ignore_index": 2,
           "avg_non_ignore": True}, labelled()),
        ({"poly_epsilon": 0.5}, labelled()),
        ({"label_smoothing": 0.1}, labelled()),
        ({}, dense(random(ROWS, CLASSES))),
        ({}, Batch(logits(CLASSES, 3), np.stack([LABELS] * 3, 1), WEIGHT, axis=1)),
        ({"use_sigmoid": True}, labelled()),
        ({"use_sigmoid": True}, dense()),
        ({"use_mask": True}, Batch(logits(CLASSES, 3, 3), random(ROWS, 3, 3), WEIGHT,
                                   {"label": LABELS}, axis=1)),
    ],
    "DecoupledDistillationFocalLoss": [
        ({}, Batch(logits(), logits() / 2, WEIGHT,
                   {"confidence": random(ROWS), "matched": random(ROWS) < 0.5})),
    ],
    "DistributionFocalLoss": [({}, binned())],
    "EQLV2Loss": [({"num_classes": CLASSES - 1}, labelled())],
    "FineGrainedLocalizationLoss": [
        ({}, Batch(logits(), (LABELS.clip(0).astype(np.float32), random(ROWS), 1 - random(ROWS)),
                   WEIGHT)),
    ],
    "FocalCustomLoss": [({"num_classes": CLASSES}, labelled())],
    "FocalLoss": [({}, labelled()), ({}, dense())],
    "GaussianFocalLoss": [({}, Batch(random(ROWS, CLASSES, 2, 2, low=0.1, high=0.9),
                                     random(ROWS, CLASSES, 2, 2).round(1), WEIGHT, axis=1))],
    "GHMC": [({}, dense(weight=None)), ({}, Batch(logits(), LABELS, None))],
    "IoUAwareBCELoss": [({}, scored())],
    "KnowledgeDistillationKLDivLoss": [({}, dense(logits() / 2))],
    "MatchabilityAwareLoss": [({}, scored())],
    "MultiPosCrossEntropyLoss": [({}, dense())],
    "QualityFocalLoss": [({}, scored()), ({}, dense())],
    "SeesawLoss": [({"num_classes": CLASSES - 2}, labelled())],
    "SoftmaxFocalLoss": [({}, labelled()), ({"class_weight": 2.0}, labelled())],
    "TverskyLoss": [({}, Batch(logits(CLASSES, 3), np.stack([LABELS] * 3, 1), WEIGHT, axis=1))],
    "VarifocalLoss": [({}, scored()), ({}, dense(DENSE * 0.7))],
}  # fmt: skip
WITHOUT = {
    "Accuracy": "it sorts the classes: an error says so",
    "DiceLoss": "masks of objects, no classes",
    "GHMR": "deltas of boxes, no classes",
}
ROWS_OF_TABLE = [
    pytest.param(name, config, batch, id=f"{name}-{i}")
    for name, rows in TABLE.items()
    for i, (config, batch) in enumerate(rows)
]


def value_and_gradient(loss, pred, target, weight, keywords):
    def total(pred):
        value, state = loss.update(loss.init(), pred, target, weight, **keywords)
        return sum(jax.tree.leaves(value)), state

    return jax.value_and_grad(total, has_aux=True)(pred)


def sharded(batch, mesh):
    """Pred's classes, and those of all that has pred's shape, lie on `model`; rows on `data`."""
    spec = ["data", *[None] * (batch.pred.ndim - 1)]
    spec[batch.axis] = "model"

    def put(x):
        of_classes = x.shape == batch.pred.shape
        return jax.device_put(x, NamedSharding(mesh, P(*spec) if of_classes else P("data")))

    return jax.tree.map(put, batch.arguments)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "devices", [2, pytest.param(4, marks=pytest.mark.long)], ids="{} for the classes".format
)
@pytest.mark.parametrize(("name", "config", "batch"), ROWS_OF_TABLE)
def test_value_and_gradient_of_one_device(name, config, batch, devices):
    both = jax.jit(functools.partial(value_and_gradient, build_loss({"type": name, **config})))
    expected = both(*batch.arguments)
    axis_types = (AxisType.Explicit,) * 2
    mesh = jax.make_mesh((8 // devices, devices), ("data", "model"), axis_types=axis_types)
    with jax.set_mesh(mesh):
        pred, *others = sharded(batch, mesh)
        actual = both(pred, *others)
        assert jax.typeof(actual[1]).sharding == jax.typeof(pred).sharding
    close(jax.device_get(actual), expected)


def test_every_loss_of_classes_is_in_the_table():
    """Add a row to TABLE for a new loss whose classes may be sharded, or a reason to WITHOUT."""
    folders = ("classification", "quality", "masks")
    of_classes = {name for name, cls in LOSSES.items() if cls.__module__.split(".")[-2] in folders}
    assert of_classes <= set(TABLE) | set(WITHOUT)
    assert not set(TABLE) & set(WITHOUT)


def test_accuracy_says_that_it_sorts_the_classes():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        pred, target, *_ = sharded(labelled(), mesh)
        with pytest.raises(ValueError, match=r"the classes of pred are sharded over 'model'"):
            v.accuracy(pred, target)
