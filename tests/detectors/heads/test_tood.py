"""The two phases of TOODHead, which the laws of all heads do not know."""

import dataclasses
from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from head_cases import ATSS, ROWS, batch_for
from visdet_jax import StatefulLoss, WIoULoss, checked
from visdet_jax.detectors import build_head


@pytest.fixture
def head():
    train_cfg = {"assigner": {"type": "TaskAlignedAssigner"}, "initial_assigner": ATSS}
    return build_head(ROWS["TOODHead"].config, {**train_cfg, "initial_epoch": 2})


@pytest.mark.long
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


@pytest.mark.long
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


# Losses with running statistics.


@dataclass(frozen=True, kw_only=True)
class MeanOfCalls(StatefulLoss):
    """The number of this call times the sum of the probabilities."""

    activated: bool = True

    def init(self):
        return (jnp.zeros(()),)

    def step(self, state, pred, target, weight, *, reduction, avg_factor, axis_name=None):
        calls = state[0] + 1
        return calls * pred.sum() / avg_factor, (calls,)


@pytest.mark.parametrize("name", ["loss_cls", "initial_loss_cls"])
def test_statistics_of_a_class_loss_are_of_its_own_phase(head, name):
    """The loss of the other phase is computed too, and leaves no trace."""
    head = dataclasses.replace(head, **{name: MeanOfCalls()})
    batch = batch_for(head)
    update = jax.jit(head.update)
    state, counts, losses = head.init(), [], []
    for epoch in (0, 1, 2, 3):
        found, state = update(state, *batch, epoch=epoch)
        counts.append(float(state[name][0]))
        losses.append(float(found["loss_cls"]))
    # Two levels are two calls.
    assert counts == ([2, 4, 4, 4] if name == "initial_loss_cls" else [0, 0, 2, 4])
    first, second = losses[:2] if name == "initial_loss_cls" else losses[2:]
    assert second > 2 * first
    assert update._cache_size() == 1
    with pytest.raises(TypeError, match=f"TOODHead: {name} keeps running statistics"):
        head.loss(*batch, epoch=0)


@pytest.mark.long
@pytest.mark.parametrize("epoch", [0, 2])
def test_statistics_of_the_box_loss_go_on_through_both_phases(head, epoch):
    head = dataclasses.replace(head, loss_bbox=WIoULoss(momentum=0.25))
    outputs, *truth = batch_for(head)
    losses, state = head.update(head.init(), outputs, *truth, epoch=epoch)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth, epoch=epoch))
    pred = np.concatenate([x.reshape(2, -1, 4) for x in outputs.bbox_preds], axis=1)
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    target = targets.bbox_targets / grid.strides[:, None]
    weight = targets.metrics
    if epoch == 0:
        middle = (grid.priors[:, :2] + grid.priors[:, 2:]) / 2
        left_top, right_bottom = np.split(targets.bbox_targets, 2, axis=-1)
        sides = np.stack([middle - left_top, right_bottom - middle], axis=-1)
        shares = sides.min(-1) / np.where(targets.gt_inds[..., None] > 0, sides.max(-1), 1)
        weight = np.sqrt(np.where(targets.gt_inds > 0, shares.prod(-1), 0)).astype(np.float32)
    own, total = head.loss_bbox.init(), 0.0
    for level in (slice(0, 24), slice(24, 30)):
        rows = (x[:, level].reshape(-1, *x.shape[2:]) for x in (pred, target, weight))
        value, own = head.loss_bbox.update(own, *rows, 1.0)
        total += value
    chex.assert_trees_all_close(state["loss_bbox"], own, rtol=1e-5)
    assert own.iou_mean != 1
    np.testing.assert_allclose(losses["loss_bbox"], total / max(weight.sum(), 1), rtol=1e-5)
