"""YOLOHead without bins, and the end-to-end pair of branches."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from head_cases import ROWS, boxes_for, outputs_for, shapes_for
from visdet_jax import checked
from visdet_jax.core.docstrings import parse
from visdet_jax.detectors import EndToEndHead, build_head, end_to_end_weights

CONFIG = {**ROWS["YOLOHead"].config, "reg_max": 1}
ONE = {"type": "YOLOTaskAlignedAssigner", "topk": 7, "topk2": 1, "min_side": 16.0}
PAIR = {
    "type": "EndToEndHead",
    "one_to_many": CONFIG,
    "one_to_one": {**CONFIG, "assigner": ONE, "test_cfg": {"nms": None, "max_per_img": 6}},
}
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)


def batch_for_pair(head, counts=(3, 1), dtype=np.float32):
    """Arguments of `loss`, with distances of about two strides."""
    outputs = []
    for seed, branch in enumerate((head.one_to_many, head.one_to_one)):
        found = outputs_for(branch, len(counts), dtype, seed)
        near = tuple(1.5 + 0.3 * x for x in found.bbox_preds)
        outputs.append(found._replace(bbox_preds=near))
    return (tuple(outputs), *boxes_for(counts, 4, dtype), shapes_for(len(counts)))


@pytest.mark.long
def test_plain_distances_in_fractions_of_the_image():
    head = build_head(CONFIG)
    outputs = batch_for_pair(build_head(PAIR))[0][0]
    truth = boxes_for((3, 1), 4)
    losses, targets = head.loss(outputs, *truth), head.targets(outputs, *truth)
    scores = np.asarray(targets.metrics)
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    points = grid.priors / grid.strides[:, None]
    boxes = np.asarray(targets.bbox_targets)
    learnt = np.concatenate([points - boxes[..., :2], boxes[..., 2:] - points], axis=-1)
    pred = np.concatenate([x.reshape(2, -1, 4) for x in outputs.bbox_preds], axis=1)
    unit = grid.strides[:, None] / np.array([48, 32, 48, 32])
    of_points = (np.abs(pred - learnt) * unit).mean(-1)
    expected = 2 * 1.5 * (scores * of_points).sum() / max(scores.sum(), 1)
    assert expected > 0
    np.testing.assert_allclose(losses["loss_l1"], expected, rtol=1e-5)
    assert losses.keys() == {"loss_cls", "loss_bbox", "loss_l1"}


@pytest.mark.one_in(2)
@pytest.mark.parametrize("empty", [0, 1])
def test_plain_distances_without_cells_on_a_level(empty):
    sizes = [(4, 6), (2, 3)]
    sizes[empty] = (0, 0)
    head = build_head(CONFIG)
    losses = head.loss(outputs_for(head, sizes=sizes), *boxes_for((3, 1), 4))
    assert all(np.isfinite(x) for x in losses.values())


def test_no_cells_at_all():
    head = build_head(CONFIG)
    losses = head.loss(outputs_for(head, sizes=[(0, 0), (0, 0)]), *boxes_for((3, 1), 4))
    assert not any(losses.values())


@pytest.mark.long
def test_a_pair_is_both_branches():
    head = build_head(PAIR)
    assert type(head) is EndToEndHead
    (many, one), *truth = batch = batch_for_pair(head)
    losses, state = head.update(head.init(), *batch, weights=(0.25, 2))
    assert state == head.init()
    expected = {f"one_to_many.{k}": x / 4 for k, x in head.one_to_many.loss(many, *truth).items()}
    expected |= {f"one_to_one.{k}": 2 * x for k, x in head.one_to_one.loss(one, *truth).items()}
    close(losses, expected)
    for found, branch, x in zip(
        head.targets(*batch), (head.one_to_many, head.one_to_one), (many, one), strict=True
    ):
        chex.assert_trees_all_equal(found, branch.targets(x, *truth))
    of_one = np.asarray(head.targets(*batch)[1].gt_inds)
    assert all((of_one[0] == number).sum() <= 1 for number in (1, 2, 3))
    close(checked(head).loss(*batch), head.loss(*batch))


@pytest.mark.long
def test_checked_names_the_branch():
    head = build_head(PAIR)
    (many, one), *truth = batch_for_pair(head)
    one.cls_scores[0][0, 0, 0, 0] = np.nan
    with pytest.raises(Exception, match=r"one_to_one: cls_scores\[0\]"):
        checked(head).loss((many, one), *truth)


@pytest.mark.long
def test_a_schedule_compiles_once():
    head = build_head(PAIR)
    batch = batch_for_pair(head)

    @jax.jit
    def step(epoch, *batch):
        return head.loss(*batch, weights=end_to_end_weights(epoch, 10))

    first = {}
    for epoch, (many, one) in ((0, (0.8, 0.2)), (9, (0.1, 0.9)), (50, (0.1, 0.9))):
        np.testing.assert_allclose(end_to_end_weights(epoch, 10), (many, one), rtol=1e-6)
        losses = step(jnp.asarray(epoch), *batch)
        close(losses, head.loss(*batch, weights=(many, one)))
        first = first or losses
        close(losses["one_to_many.loss_cls"], first["one_to_many.loss_cls"] * many / 0.8)
    assert step._cache_size() == 1
    np.testing.assert_allclose(end_to_end_weights(4.5, 10), (0.45, 0.55), rtol=1e-6)
    np.testing.assert_allclose(end_to_end_weights(0, 1), (0.8, 0.2), rtol=1e-6)
    many = jax.vmap(lambda weights: head.loss(*batch, weights=weights))(jnp.eye(2))
    assert many["one_to_one.loss_cls"][0] == 0


def test_detections_are_of_the_second_branch_and_none_is_suppressed():
    head = build_head(PAIR)
    outputs, *_ = batch_for_pair(head)
    chex.assert_trees_all_equal(head.decode(outputs), head.one_to_one.decode(outputs[1]))
    found = head.detect(outputs)
    scores = np.asarray(head.decode(outputs).scores)
    best = np.sort(scores.reshape(2, -1), axis=1)[:, ::-1][:, :6]
    np.testing.assert_allclose(found.scores, best, rtol=1e-6)


@pytest.mark.long
def test_shards_of_a_pair(x64):
    head = build_head(PAIR)
    batch = batch_for_pair(head, (3, 0, 1, 0, 2, 1, 4, 0), np.float64)
    specs = P("data"), P("data"), P("data"), P("data")
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def loss(*batch):
        found = head.loss(*batch, axis_name="data")
        return jax.lax.pmean(found, "data")

    mapped = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P()))
    close(mapped(*batch), head.loss(*batch), rtol=1e-12)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda outputs: (outputs[:1], {}), "outputs must be a pair, of the branches one_to_many"),
        (lambda outputs: (outputs, {"weights": (1, 2, 3)}), "weights must be two numbers, got 3"),
    ],
)
def test_what_is_no_pair(spoil, message):
    head = build_head(PAIR)
    outputs, *truth = batch_for_pair(head)
    outputs, options = spoil(outputs)
    with pytest.raises(ValueError, match=f"EndToEndHead: {message}"):
        head.loss(outputs, *truth, **options)


def test_every_argument_is_described():
    head = build_head(PAIR)
    names = {"outputs", "gt_boxes", "gt_labels", "image_shapes", "pad_shapes", "weights"}
    assert parse(head.loss.__doc__).arguments.keys() == names | {"axis_name"}
