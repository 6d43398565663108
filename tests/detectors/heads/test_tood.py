"""The two phases of TOODHead, which the laws of all heads do not know."""

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from head_cases import ATSS, ROWS, batch_for
from visdet_jax import checked
from visdet_jax.detectors import build_head


@pytest.fixture
def head():
    train_cfg = {"assigner": {"type": "TaskAlignedAssigner"}, "initial_assigner": ATSS}
    return build_head(ROWS["TOODHead"].config, {**train_cfg, "initial_epoch": 2})


def test_one_compilation_for_all_epochs(head):
    batch = batch_for(head)
    loss = jax.jit(head.loss)
    before, still, after = (loss(*batch, epoch=epoch) for epoch in (0, 1, 2))
    assert loss._cache_size() == 1
    chex.assert_trees_all_equal(before, still)
    assert before["loss_cls"] != after["loss_cls"]
    never = build_head({**ROWS["TOODHead"].config, "initial_epoch": 0})
    chex.assert_trees_all_close(after, never.loss(*batch), rtol=1e-5)
    targets = jax.jit(head.targets)
    metrics = [targets(*batch, epoch=epoch).metrics for epoch in (1, 2)]
    assert set(np.unique(metrics[0])) == {0, 1}
    assert ((metrics[1] > 0) & (metrics[1] < 1)).any()


def test_an_epoch_that_is_missing(head):
    for call in (head.loss, head.targets):
        with pytest.raises(ValueError, match="TOODHead: epoch must be given: initial_epoch is 2"):
            call(*batch_for(head))


@pytest.mark.parametrize(
    ("name", "loss"), [("initial_loss_cls", "FocalLoss"), ("loss_cls", "QualityFocalLoss")]
)
def test_losses_of_logits(name, loss):
    with pytest.raises(ValueError, match=f"{name} gets probabilities and must have activated=True"):
        ROWS["TOODHead"].head(**{name: {"type": loss}})


def test_checked(head):
    outputs, *truth = batch_for(head)
    checked(head).loss(outputs, *truth, epoch=0)
    logits = outputs._replace(cls_scores=jax.tree.map(lambda x: x + 1, outputs.cls_scores))
    with pytest.raises(ValueError, match="cls_scores"):
        checked(head).loss(logits, *truth, epoch=0)


@pytest.mark.long
def test_epochs_under_shard_map(head):
    batch = batch_for(head, (3, 1))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])

    def mean_of_devices(epoch, *arguments):
        losses = head.loss(*arguments, epoch=epoch, axis_name="data")
        return jax.lax.pmean(losses, "data")

    specs = P(), *[P("data")] * 4
    mapped = jax.jit(jax.shard_map(mean_of_devices, mesh=mesh, in_specs=specs, out_specs=P()))
    for epoch in (0, 5):
        expected = head.loss(*batch, epoch=epoch)
        chex.assert_trees_all_close(mapped(np.int32(epoch), *batch), expected, rtol=1e-5)
