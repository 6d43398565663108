"""Seesaw: cross entropy without its factors, the factors by hand, counts, activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from programs import temporary_bytes
from visdet_jax import (
    SeesawLoss,
    SeesawState,
    cross_entropy,
    seesaw_ce_loss,
    seesaw_loss,
    seesaw_statistics,
)

RNG = np.random.default_rng(0)
CLASSES = 4
LABELS = np.array([0, 0, 0, 1, 1, 2, 4, 4, 3, 0])
PRED = RNG.normal(0, 2, (len(LABELS), CLASSES + 2)).astype(np.float32)
LOGITS = PRED[:, :CLASSES]
OBJECTS = LABELS < CLASSES
COUNTS = np.array([40.0, 9, 2, 0], np.float32)


def seesaw(**config):
    return SeesawLoss(num_classes=CLASSES, **config)


def first(loss, *arguments, **options):
    return loss.update(loss.init(), *arguments, **options)[0]


def test_without_mitigation_and_compensation_it_is_cross_entropy():
    labels = LABELS[OBJECTS]
    expected = cross_entropy(LOGITS[OBJECTS], labels)
    plain = seesaw_ce_loss(LOGITS[OBJECTS], labels, cum_samples=COUNTS, p=0, q=0)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    parts = first(seesaw(p=0, q=0), PRED, LABELS)
    np.testing.assert_allclose(parts["loss_cls_classes"], expected, rtol=1e-6)
    objectness = cross_entropy(PRED[:, CLASSES:], (LABELS == CLASSES).astype(int))
    np.testing.assert_allclose(parts["loss_cls_objectness"], objectness, rtol=1e-6)


def test_equal_counts_mitigate_nothing():
    labels = LABELS[OBJECTS]
    value = seesaw_ce_loss(LOGITS[OBJECTS], labels, cum_samples=np.full(CLASSES, 7.0), q=0)
    np.testing.assert_allclose(value, cross_entropy(LOGITS[OBJECTS], labels), rtol=1e-6)


def test_the_factors_by_hand():
    pred, labels = np.array([[1.0, 3.0, -2.0, 0.0]], np.float32), np.array([1])
    s = np.exp(pred[0]) / np.exp(pred[0]).sum()
    mitigation = np.array([1, 1, (2 / 9) ** 0.8, (1 / 9) ** 0.8])  # a count of 0 is taken as 1
    exponentials = np.exp(pred[0]) * mitigation
    np.testing.assert_allclose(
        seesaw_ce_loss(pred, labels, cum_samples=COUNTS, q=0),
        -np.log(exponentials[1] / exponentials.sum()),
        rtol=1e-5,
    )
    compensation = np.maximum(1, s / max(s[2], 0.01)) ** 2
    exponentials = np.exp(pred[0]) * compensation
    np.testing.assert_allclose(
        seesaw_ce_loss(pred, np.array([2]), cum_samples=COUNTS, p=0),
        -np.log(np.exp(pred[0, 2]) / exponentials.sum()),
        rtol=1e-5,
    )


def test_the_factors_are_constants_to_the_gradient(x64):
    pred, labels = LOGITS[OBJECTS].astype(np.float64), LABELS[OBJECTS]

    def loss(pred, **powers):
        return seesaw_ce_loss(pred, labels, cum_samples=COUNTS, reduction="sum", **powers)

    direction = RNG.normal(size=pred.shape) * 1e-5
    expected = (loss(pred + direction, q=0) - loss(pred - direction, q=0)) / 2
    gradient = jax.grad(lambda pred: loss(pred, q=0))(pred)
    np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-6)
    s = np.exp(pred) / np.exp(pred).sum(1, keepdims=True)
    own = np.eye(CLASSES)[labels]
    factors = np.maximum(1, s / np.maximum((s * own).sum(1, keepdims=True), 0.01)) ** 2
    exponentials = np.exp(pred) * np.where(own, 1, factors)
    expected = exponentials / exponentials.sum(1, keepdims=True) - own
    np.testing.assert_allclose(jax.grad(lambda x: loss(x, p=0))(pred), expected, rtol=1e-6)


def test_counts():
    state = seesaw_statistics(SeesawState(jnp.zeros(CLASSES + 1)), LABELS)
    np.testing.assert_array_equal(state.cum_samples, [4, 2, 1, 1, 2])
    state = seesaw_statistics(state, np.array([3, -1, 9, 3]), np.array([1.0, 1, 1, 0]))
    np.testing.assert_array_equal(state.cum_samples, [4, 2, 1, 2, 2])


def test_a_count_is_exact_up_to_2_to_the_24():
    state = SeesawState(jnp.full(3, 2.0**24 - 1))
    state = seesaw_statistics(state, np.array([0, 1, 1, 1]))
    np.testing.assert_array_equal(state.cum_samples, 2.0**24 - 1 + np.array([1, 3, 0]))
    state = seesaw_statistics(state, np.array([0, 1, 1]))
    np.testing.assert_array_equal(state.cum_samples, 2.0**24 - 1 + np.array([1, 5, 0]))


def test_statistics_come_before_the_loss():
    loss = seesaw(loss_weight=3.0)
    _, state = loss.update(loss.init(), PRED, LABELS)
    value, after = loss.update(state, -PRED, LABELS[::-1])
    replayed = seesaw_statistics(state, LABELS[::-1])
    np.testing.assert_array_equal(after.cum_samples, replayed.cum_samples)
    parts = seesaw_loss(-PRED, LABELS[::-1], state=replayed)
    for name, part in parts.items():
        np.testing.assert_array_equal(value[name], 3 * part)


def test_a_row_of_background_costs_no_class_and_the_mean_is_over_the_objects():
    rows = first(seesaw(reduction="none"), PRED, LABELS)
    of_class = np.asarray(rows["loss_cls_classes"])
    assert rows["loss_cls_objectness"].shape == of_class.shape == LABELS.shape
    assert not np.any(of_class[~OBJECTS])
    mean = first(seesaw(), PRED, LABELS)["loss_cls_classes"]
    np.testing.assert_allclose(mean, of_class.sum() / OBJECTS.sum(), rtol=1e-6)
    background = first(seesaw(), PRED, np.full(len(LABELS), CLASSES))
    assert background["loss_cls_classes"] == 0


def test_a_row_of_weight_0_changes_nothing_for_the_others():
    weight = np.ones(len(LABELS), np.float32)
    weight[[1, 6]] = 0
    padded, state = seesaw().update(seesaw().init(), PRED, LABELS, weight)
    kept, expected = seesaw().update(seesaw().init(), PRED[weight > 0], LABELS[weight > 0])
    np.testing.assert_array_equal(state.cum_samples, expected.cum_samples)
    np.testing.assert_allclose(padded["loss_cls_classes"], kept["loss_cls_classes"], rtol=1e-6)


def test_negative_labels_are_ignored_and_unknown_ones_are_nan():
    labels = np.where(np.arange(len(LABELS)) == 2, -1, LABELS)
    rows, state = seesaw(reduction="none").update(seesaw().init(), PRED, labels)
    assert state.cum_samples.sum() == len(LABELS) - 1
    assert rows["loss_cls_objectness"][2] == rows["loss_cls_classes"][2] == 0
    unknown, state = seesaw().update(seesaw().init(), PRED, np.where(labels < 0, 5, labels))
    assert np.isnan(unknown["loss_cls_objectness"])
    assert state.cum_samples.sum() == len(LABELS) - 1


def test_dict_or_sum():
    parts = first(seesaw(), PRED, LABELS)
    assert sorted(parts) == ["loss_cls_classes", "loss_cls_objectness"]
    total = first(seesaw(return_dict=False), PRED, LABELS)
    np.testing.assert_allclose(total, sum(parts.values()), rtol=1e-6)


def test_mmdet_s_name_of_the_weight():
    weight = RNG.random(len(LABELS)).astype(np.float32)
    loss = seesaw(return_dict=False)
    np.testing.assert_array_equal(
        first(loss, PRED, LABELS, label_weights=weight), first(loss, PRED, LABELS, weight)
    )


def test_activation_and_accuracy():
    scores = seesaw().get_activation(PRED)
    assert scores.shape == (len(LABELS), CLASSES + 1)
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(scores[:, -1], jax.nn.softmax(PRED[:, CLASSES:])[:, 1], rtol=1e-6)
    right = np.concatenate(
        [
            20 * np.eye(CLASSES)[np.minimum(LABELS, 3)],
            np.where(OBJECTS[:, None], [[9, 0]], [[0, 9]]),
        ],
        1,
    )
    accuracies = seesaw().get_accuracy(jnp.asarray(right, jnp.float32), LABELS)
    np.testing.assert_array_equal(accuracies["acc_objectness"], [100])
    np.testing.assert_array_equal(accuracies["acc_classes"], [100])
    assert seesaw().get_cls_channels(CLASSES) == CLASSES + 2
    with pytest.raises(ValueError, match="SeesawLoss: built for 4 classes, asked for 80"):
        seesaw().get_cls_channels(80)
    with pytest.raises(ValueError, match="SeesawLoss: outputs must have 6 channels"):
        seesaw().get_activation(LOGITS)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"use_sigmoid": True}, "use_sigmoid must be False"),
        ({"p": -1.0}, "p must be at least 0, got -1.0"),
        ({"q": -1.0}, "q must be at least 0, got -1.0"),
        ({"eps": -1.0}, "eps must be at least 0, got -1.0"),
    ],
)
def test_configs_that_raise(config, message):
    with pytest.raises(ValueError, match=f"SeesawLoss: {message}"):
        seesaw(**config)
    if "use_sigmoid" not in config:
        with pytest.raises(ValueError, match=f"seesaw_ce_loss: {message}"):
            seesaw_ce_loss(LOGITS, LABELS, cum_samples=COUNTS, **config)
        with pytest.raises(ValueError, match=f"seesaw_loss: {message}"):
            seesaw_loss(PRED, LABELS, state=SeesawState(jnp.ones(CLASSES + 1)), **config)


def test_a_loss_has_a_class():
    with pytest.raises(ValueError, match="SeesawLoss: num_classes must be at least 1, got 0"):
        SeesawLoss(num_classes=0)


def test_channels_are_checked():
    with pytest.raises(ValueError, match=r"seesaw_loss: pred must have shape \(N, 6\)"):
        first(seesaw(), LOGITS, LABELS)


def test_statistics_take_rows_of_labels():
    state = SeesawState(jnp.zeros(CLASSES + 1))
    with pytest.raises(ValueError, match=r"seesaw_statistics: target must have shape \(N,\)"):
        seesaw_statistics(state, LABELS[None])


@pytest.mark.long
def test_labels_of_every_width():
    """uint8 cannot count 300 classes."""
    pred, labels = RNG.normal(size=(4, 302)).astype(np.float32), np.array([0, 44, 127, 100])
    loss = SeesawLoss(num_classes=300, return_dict=False)
    expected, accuracies = first(loss, pred, labels), loss.get_accuracy(pred, labels)
    for dtype in (np.int8, np.uint8, np.int16, np.uint32):
        narrow = labels.astype(dtype)
        assert first(loss, pred, narrow) == expected
        jax.tree.map(np.testing.assert_array_equal, loss.get_accuracy(pred, narrow), accuracies)


def test_the_counts_of_the_rows_classes_keep_their_digits():
    """Accelerators would round a product with one-hot labels to bfloat16 or TF32."""
    program = jax.make_jaxpr(
        lambda pred: seesaw_ce_loss(pred, LABELS[OBJECTS], cum_samples=COUNTS)
    )(LOGITS[OBJECTS])
    assert "dot_general" not in str(program)


def test_value_and_gradient_keep_one_array_of_preds_shape():
    """With a slice of the classes, or by autodiff, there are up to five."""
    loss = SeesawLoss(num_classes=126, return_dict=False)
    pred, target = jnp.ones((1024, 128)), np.zeros(1024, np.int32)

    def value(pred):
        return loss.update(loss.init(), pred, target)[0]

    for function in (value, jax.value_and_grad(value)):
        assert temporary_bytes(function, pred) < 1.5 * pred.nbytes
