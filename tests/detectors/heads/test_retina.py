"""RetinaNet's own: class losses by softmax, decoded boxes, losses with running statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from head_cases import CLASSES, ROWS, batch_for, boxes_for, compiled, outputs_for, total
from visdet_jax.boxes import delta2bbox

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)
ROW = ROWS["RetinaHead"]
MIDDLE = (10, 6, 34, 28)


def rows_of(maps, channels):
    return np.concatenate([x.reshape(2, -1, channels) for x in maps], axis=1)


def test_softmax_classes():
    head = ROW.head(loss_cls={"type": "CrossEntropyLoss"})
    assert head.channels["cls_scores"] == CLASSES + 1
    outputs, *truth = batch_for(head)
    losses, gradient = compiled(head)(outputs, *truth)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    logits = rows_of(outputs.cls_scores, CLASSES + 1).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(head.decode(outputs).scores, probabilities[..., :-1], rtol=1e-5)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    of_label = np.take_along_axis(probabilities, targets.labels[..., None], axis=-1)[..., 0]
    count = np.maximum(targets.bbox_weights.sum(1), 1).sum()
    expected = -(np.log(of_label) * targets.label_weights).sum() / count
    np.testing.assert_allclose(losses["loss_cls"], expected, rtol=1e-5)


def test_reg_decoded_bbox_decodes_before_the_loss():
    head = ROW.head(reg_decoded_bbox=True, loss_bbox={"type": "L1Loss"})
    outputs, *truth = batch_for(head)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    positive = np.nonzero(targets.gt_inds > 0)
    chosen = truth[0][positive[0], targets.gt_inds[positive] - 1]
    np.testing.assert_array_equal(targets.bbox_targets[positive], chosen)
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    deltas = rows_of(outputs.bbox_preds, 4)[positive]
    decoded = delta2bbox(grid.priors[positive[1]], deltas)
    count = np.maximum(targets.bbox_weights.sum(1), 1).sum()
    expected = np.abs(decoded - chosen).sum() / count
    losses, _ = compiled(head)(outputs, *truth)
    np.testing.assert_allclose(losses["loss_bbox"], expected, rtol=1e-5)


# Losses that keep running statistics.

GHM = {
    "loss_cls": {"type": "GHMC", "bins": 5, "momentum": 0.75},
    "loss_bbox": {"type": "GHMR", "bins": 4, "momentum": 0.7, "loss_weight": 10.0},
}


def level_by_level(head, state, outputs, *truth):
    """What mmdet does: one call of each loss at each level, the statistics going on."""
    targets = head.targets(outputs, *truth)
    count = jnp.maximum(targets.bbox_weights.sum(1), 1).sum()
    state, losses, start = dict(state), {"loss_cls": 0.0, "loss_bbox": 0.0}, 0
    for scores, boxes in zip(outputs.cls_scores, outputs.bbox_preds, strict=True):
        end = start + scores.shape[1] * scores.shape[2] * head.num_base_priors
        learns = jax.tree.map(lambda x, at=slice(start, end): x[:, at], targets)
        start = end
        calls = {
            "loss_cls": (scores.reshape(-1, CLASSES), learns.labels, learns.label_weights),
            "loss_bbox": (
                boxes.reshape(-1, 4),
                learns.bbox_targets,
                jnp.repeat(learns.bbox_weights[..., None], 4, axis=-1),
            ),
        }
        for name, (pred, target, weight) in calls.items():
            target = target.reshape(-1, *target.shape[2:])
            weight = weight.reshape(-1, *weight.shape[2:])
            loss = getattr(head, name)
            value, state[name] = loss.update(state[name], pred, target, weight, count)
            losses[name] += value
    return losses, state


@pytest.mark.long
def test_update_carries_the_statistics_level_by_level():
    head = ROW.head(**GHM)
    state = expected_state = head.init()
    assert [x.shape for x in jax.tree.leaves(state)] == [(4,), (5,)]
    step = jax.jit(head.update)
    mmdets_step = jax.jit(functools.partial(level_by_level, head))
    boxes, labels = boxes_for((2, 0), 4)
    boxes[0, :2] = MIDDLE, (0, 0, 46, 32)
    batches = [(boxes, labels), boxes_for((3, 1), 4), boxes_for((0, 2), 4)]
    levels = np.split(head.targets(outputs_for(head), *batches[0]).bbox_weights, [48], axis=1)
    assert all(map(np.any, levels))
    for seed, batch in enumerate(batches):
        outputs = outputs_for(head, seed=seed)
        losses, state = step(state, outputs, *batch)
        expected, expected_state = mmdets_step(expected_state, outputs, *batch)
        close(losses, expected)
        close(state, expected_state)
    assert step._cache_size() == 1


def test_update_has_gradients():
    head = ROW.head(**GHM)
    outputs, *truth = batch_for(head)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(outputs, state):
        losses, state = head.update(state, outputs, *truth)
        return total(losses), state

    (value, state), gradient = jax.jit(step)(outputs, head.init())
    assert np.isfinite(value)
    assert jax.tree.structure(state) == jax.tree.structure(head.init())
    assert all(np.isfinite(x).all() and np.any(x) for x in gradient.cls_scores)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (GHM, "loss_cls and loss_bbox"),
        ({"loss_cls": GHM["loss_cls"]}, "loss_cls"),
    ],
)
def test_a_loss_with_statistics_says_what_to_write(changes, names):
    head = ROW.head(**changes)
    message = rf"RetinaHead: {names} keeps? running statistics: write `state = head.init\(\)` once"
    with pytest.raises(TypeError, match=message):
        head.loss(*batch_for(head))
    free = {**GHM["loss_cls"], "momentum": 0.0}  # It counts each call alone and keeps nothing.
    assert jax.tree.leaves(ROW.head(loss_cls=free).init()) == []
