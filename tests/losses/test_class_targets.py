"""Class indices as targets: labels of every width, those out of range, and sharded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v
from visdet_jax.losses._class_targets import class_mask, minus_log_p, weight_of_labels


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize("classes", [5, 128, 256, 300, 70000])
def test_class_mask_of_labels_of_every_width(dtype, classes):
    info = np.iinfo(dtype)
    labels = np.array([0, 4, info.max, max(info.min, -1)], dtype)
    expected = labels.astype(np.int64)[:, None] == np.arange(classes)
    np.testing.assert_array_equal(class_mask(labels, classes), expected)
    np.testing.assert_array_equal(class_mask(labels, classes, axis=0), expected.T)


def test_minus_log_p_of_labels_out_of_range_is_finite():
    """Their weight is 0 or NaN. Looking for them would take time for every row."""
    pred, labels = jnp.zeros((3, 2)), np.array([[-1], [2], [99]])
    np.testing.assert_allclose(minus_log_p(pred, labels), np.log([[2], [2], [2]]), rtol=1e-6)


def test_weight_of_labels():
    labels, class_weight = np.array([0, 3, -1, 3, 4, 4]), np.float32([0.1, 1, 1, 1 / 3])
    weight = np.float32([2, 1, 1, 0, 1, 0])
    weights = weight_of_labels(labels, labels < 0, weight, (6,), 4, np.float32, class_weight)
    exact = [2 * class_weight[0], class_weight[3], 0, 0, np.nan, 0]
    np.testing.assert_array_equal(weights, np.float32(exact))


def test_class_weights_of_explicitly_sharded_labels():
    pred = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    labels = np.arange(16) % 5
    class_weight = np.arange(5, dtype=np.float32)
    losses = (v.cross_entropy, v.softmax_focal_loss)
    expected = [loss(pred, labels, class_weight=class_weight) for loss in losses]
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        pred, labels = jax.device_put((pred, labels), NamedSharding(mesh, P("rows")))
        actual = [loss(pred, labels, class_weight=class_weight) for loss in losses]
    np.testing.assert_allclose(jax.device_get(actual), expected, rtol=1e-6)
