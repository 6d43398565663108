"""One entry a row: the same by a gather and by a masked sum, and which program has which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from programs import compiled
from visdet_jax.core.one_hot import _entry_by_sum, entry_at, is_at, places_along

RNG = np.random.default_rng(0)
# The shapes of x, of the index and of what is subtracted, and the axis of the entries.
SHAPES = {
    "last axis": ((6, 5), (6, 1), (6, 1), -1),
    "before pixels": ((4, 5, 2, 3), (4, 1, 2, 3), (4, 1, 2, 3), 1),
    "arrays": ((4, 5, 2, 3), (4, 1, 1, 1), None, 1),
    "one index for all": ((6, 5), (1, 1), (6, 1), 1),
    "one row for all": ((1, 5), (6, 1), None, 1),
}


def arguments(name):
    shape, of_index, of_minus, axis = SHAPES[name]
    index = RNG.integers(shape[axis], size=of_index).astype(np.int32)
    minus = None if of_minus is None else RNG.normal(size=of_minus).astype(np.float32)
    return RNG.normal(size=shape).astype(np.float32), index, axis, minus


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", SHAPES)
def test_both_forms_give_the_entry(name):
    x, index, axis, minus = arguments(name)
    rows = np.broadcast_shapes(np.delete(x.shape, axis), np.delete(index.shape, axis))
    whole = np.moveaxis(x, axis, -1)
    whole = np.broadcast_to(whole, (*rows, whole.shape[-1]))
    places = np.broadcast_to(np.moveaxis(index, axis, -1), (*rows, 1))
    expected = np.moveaxis(np.take_along_axis(whole, places, -1), -1, axis)
    expected = expected if minus is None else expected - minus
    np.testing.assert_array_equal(entry_at(x, index, axis, minus), expected)
    by_sum = functools.partial(_entry_by_sum, axis=axis)
    np.testing.assert_array_equal(by_sum(x, index, minus), expected)

    def total(form, x):
        return (form(x) ** 3).sum()

    given = [lambda x: entry_at(x, index, axis, minus), lambda x: by_sum(x, index, minus)]
    for derivative in (jax.grad, jax.hessian):
        first, second = (derivative(functools.partial(total, form))(x) for form in given)
        np.testing.assert_allclose(first, second, rtol=1e-6)


def test_infinite_logits_of_other_classes_are_not_read():
    x = np.float32([[1, -np.inf, 2], [-np.inf, 3, 0]])
    np.testing.assert_array_equal(_entry_by_sum(x, np.int32([[0], [1]]), axis=1), [[1], [3]])


@pytest.mark.parametrize("index", [-1, 3, 99, 2**31 - 1, -(2**31)])
def test_an_index_out_of_range_is_no_entry(index):
    x, index = np.ones((1, 3), np.float32), np.full((1, 1), index, np.int32)
    assert not is_at(index, x, 1).any()
    assert np.isfinite(entry_at(x, index, 1))


def test_a_cpu_gathers_and_other_devices_sum():
    """See `entry_at`: on a TPU a gather of one entry a row is a loop over the rows."""
    pred, labels = jnp.ones((64, 8)), np.zeros(64, np.int32)
    for loss, target in (
        (v.cross_entropy, labels),
        (v.softmax_focal_loss, labels),
        (v.distribution_focal_loss, labels.astype(np.float32)),
        (v.seesaw_ce_loss, labels),
        (v.iou_aware_bce_loss, (labels, labels.astype(np.float32))),
    ):
        options = {"cum_samples": jnp.ones(8)} if loss is v.seesaw_ce_loss else {}
        both = jax.jit(jax.value_and_grad(functools.partial(loss, **options)))
        traced = both.trace(pred, target)
        for platform, gathers in (("cpu", True), ("tpu", False), ("cuda", False)):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
            assert ("gather" in text) == gathers, (loss.__name__, platform)


def test_a_gpu_gathers_whole_masks():
    """It reads one mask of C; a TPU would copy all of pred into another layout."""
    pred, masks, labels = jnp.ones((4, 8, 3, 3)), jnp.ones((4, 3, 3)), np.zeros(4, np.int32)
    traced = jax.jit(v.mask_cross_entropy).trace(pred, masks, labels)
    for platform, gathers in (("cpu", True), ("tpu", False), ("cuda", True), ("rocm", True)):
        assert ("gather" in traced.lower(lowering_platforms=(platform,)).as_text()) == gathers


LOSSES_OF_LABELS = {
    "FocalLoss": {},
    "CrossEntropyLoss": {"use_sigmoid": True},
    "SoftmaxFocalLoss": {},
    "AsymmetricLoss": {},
    "ASLSingleLabel": {},
    "GHMC": {},
    "QualityFocalLoss": {},
    "VarifocalLoss": {},
    "MatchabilityAwareLoss": {},
    "IoUAwareBCELoss": {},
    "EQLV2Loss": {"num_classes": 79},
    "DistributionFocalLoss": {},
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", LOSSES_OF_LABELS)
def test_no_loop_over_the_classes_has_an_iota(name):
    """See `places_along`: by an iota focal loss takes 2.3 times as long in 256-bit code."""
    loss = v.build_loss({"type": name, **LOSSES_OF_LABELS[name]})
    pred, target = jnp.ones((64, 80)), np.zeros(64, np.int32)
    if name.startswith(("Quality", "Vari", "Match", "IoU")):
        target = target, np.zeros(64, np.float32)
    elif name == "DistributionFocalLoss":
        target = target.astype(np.float32)

    def total(pred, target):
        value, state = loss.update(loss.init(), pred, target)
        return value, state

    text = compiled(jax.value_and_grad(total, has_aux=True), pred, target).as_text()
    iotas = [line for line in text.splitlines() if " iota(" in line]
    assert not [line for line in iotas if "80" in line.split(" iota(")[0]]


def test_class_indices_take_no_more_memory_than_dense_targets():
    pred, labels = jnp.ones((512, 80)), np.zeros(512, np.int32)
    both = jax.value_and_grad(v.sigmoid_focal_loss)
    sizes = [
        compiled(both, pred, target).memory_analysis().temp_size_in_bytes
        for target in (labels, jax.nn.one_hot(labels, 80))
    ]
    assert sizes[0] < sizes[1] + 0.1 * pred.nbytes


def test_places_start_at_1():
    np.testing.assert_array_equal(places_along(3, 2, 0, jnp.int32), [[1], [2], [3]])
    np.testing.assert_array_equal(places_along(3, 2, -1, jnp.float32), [[1, 2, 3]])
