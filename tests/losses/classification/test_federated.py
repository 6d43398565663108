"""Classes of a federated data set: which count, how they are drawn, and the loss of them."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import visdet_jax as v
from losses.classification.class_scores import LABEL, PRED, close


def federated(key, labels, frequency, count, **options):
    return v.federated_class_mask(key, labels, frequency, num_classes_sampled=count, **options)


def test_classes_are_those_present_and_enough_others():
    frequency = np.array([0, 5, 0, 1, 100, 3, 7, 2, 9, 4], np.float32)
    labels = np.array([[4, 10], [2, -1], [4, 1000]])  # 2 is present, though of frequency 0
    keys = jax.random.split(jax.random.key(0), 200)
    masks = np.asarray(jax.vmap(lambda key: federated(key, labels, frequency, 5))(keys))
    assert masks.dtype == np.float32
    assert set(masks.ravel()) == {0, 1}
    np.testing.assert_array_equal(masks.sum(1), 5)
    np.testing.assert_array_equal(masks[:, [2, 4]], 1)
    np.testing.assert_array_equal(masks[:, 0], 0)
    assert (masks[:, [1, 3, 5, 6, 7, 8, 9]].mean(0) > 0.1).all()
    everything = federated(keys[0], labels, frequency, 50)
    np.testing.assert_array_equal(everything, [0, *[1] * 9])
    many = federated(keys[0], np.arange(6), frequency, 3)
    np.testing.assert_array_equal(many, np.arange(10) < 6)
    none = federated(keys[0], np.zeros(0, np.int32), frequency, 2)
    assert none.sum() == 2


@pytest.mark.parametrize("power", [0.5, 0.0, 2.0])
def test_draws_are_without_replacement_by_frequency(power):
    """How often each class is in, against draws one after the other in NumPy."""
    frequency, draws = np.array([1, 2, 4, 8, 16, 32, 64], np.float32), 4000
    keys = jax.random.split(jax.random.key(1), draws)
    labels = np.array([3])
    drawn = jax.vmap(lambda key: federated(key, labels, frequency, 4, power=power))(keys)
    rng, counts = np.random.default_rng(2), np.zeros(7)
    weight = np.where(np.arange(7) == 3, 0, frequency.astype(np.float64) ** power)
    for _ in range(draws):
        counts[rng.choice(7, 3, replace=False, p=weight / weight.sum())] += 1
    counts[3] = draws
    # Each frequency has a standard deviation of up to 0.5 / sqrt(4000), their difference one of √2
    # times that.
    np.testing.assert_allclose(drawn.mean(0), counts / draws, atol=4.5 * 0.5 * np.sqrt(2 / draws))


def test_mask_of_sharded_labels_under_jit():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    key, frequency = jax.random.key(3), np.arange(1, 31)
    expected = federated(key, LABEL, frequency, 12)
    with jax.set_mesh(mesh):
        labels = jax.device_put(LABEL, NamedSharding(mesh, P("rows")))
        mask = jax.jit(lambda key, labels: federated(key, labels, frequency, 12))(key, labels)
    np.testing.assert_array_equal(jax.device_get(mask), expected)


def test_a_loss_reads_the_classes_that_count():
    frequency = np.arange(1, 6)
    mask = v.federated_class_mask(jax.random.key(0), LABEL[:2], frequency, num_classes_sampled=3)
    hidden = np.where(np.asarray(mask)[None] == 0, np.nan, PRED)
    loss = v.CrossEntropyLoss(use_sigmoid=True)
    value, gradient = jax.value_and_grad(loss)(hidden, LABEL, mask[None], 16)
    values = np.asarray(v.binary_cross_entropy(PRED, LABEL, reduction="none"))
    close(value, (values * np.asarray(mask)).sum() / 16)
    np.testing.assert_array_equal(np.any(np.asarray(gradient), axis=0), np.asarray(mask) == 1)


def test_errors():
    key, frequency = jax.random.key(0), np.ones(5, np.float32)
    with pytest.raises(ValueError, match=r"federated_class_mask: class_frequency must have shape"):
        v.federated_class_mask(key, LABEL, frequency[None])
    with pytest.raises(ValueError, match=r"num_classes_sampled must be at least 1, got 0"):
        federated(key, LABEL, frequency, 0)
    with pytest.raises(TypeError, match=r"labels must hold integer class indices, got float32"):
        v.federated_class_mask(key, LABEL.astype(np.float32), frequency)
