"""GFL's own: qualities, distributions of the sides, and its fields."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from head_cases import ANCHORS, CLASSES, ROWS, batch_for, compiled
from programs import compiled as program_of
from visdet_jax import configs
from visdet_jax.boxes import bbox_overlaps
from visdet_jax.detectors import HeadOutputs, build_head
from visdet_jax.detectors.heads.gfl import distances_of_maps
from visdet_jax.losses.boxes.distribution_focal import distribution_focal_loss

ROW = ROWS["GFLHead"]


def test_qualities_and_distributions():
    """The class loss learns the IoU; the largest class probability weights the other two."""
    head = ROW.head()
    outputs, *truth = batch_for(head)
    losses, _ = compiled(head)(outputs, *truth)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    positive = targets.gt_inds > 0
    logits = np.concatenate([x.reshape(2, -1, CLASSES) for x in outputs.cls_scores], axis=1)
    boxes = np.asarray(head.decode(outputs).boxes)
    iou = bbox_overlaps(boxes, targets.bbox_targets, is_aligned=True)
    quality = np.where(positive, iou, 0).astype(np.float32)
    count = float(np.maximum(positive.sum(1), 1).sum())
    label = targets.labels.ravel(), quality.ravel()
    expected = head.loss_cls(logits.reshape(-1, CLASSES), label, avg_factor=count)
    np.testing.assert_allclose(losses["loss_cls"], expected, rtol=1e-5)

    certainty = 1 / (1 + np.exp(-logits.max(-1)[positive]))
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    strides = np.broadcast_to(grid.strides, positive.shape)[positive][:, None]
    pred, target = boxes[positive] / strides, targets.bbox_targets[positive] / strides
    total = head.loss_bbox(pred, target, certainty, reduction_override="sum")
    np.testing.assert_allclose(losses["loss_bbox"], total / max(certainty.sum(), 1), rtol=1e-5)

    middles = (grid.priors[:, :2] + grid.priors[:, 2:]) / 2
    points = np.broadcast_to(middles, (*positive.shape, 2))[positive] / strides
    sides = np.concatenate([points - target[:, :2], target[:, 2:] - points], axis=-1)
    bins = np.clip(sides, 0, head.reg_max - 0.1).astype(np.float32)
    distributions = np.concatenate([x.reshape(2, -1, 20) for x in outputs.bbox_preds], axis=1)
    total = head.loss_dfl(
        distributions[positive].reshape(-1, 5),
        bins.ravel(),
        np.repeat(certainty, 4).astype(np.float32),
        reduction_override="sum",
    )
    np.testing.assert_allclose(losses["loss_dfl"], total / 4 / max(certainty.sum(), 1), rtol=1e-5)


@pytest.mark.long
def test_qualities_and_certainties_have_no_gradient():
    head = ROW.head()
    outputs, *truth = batch_for(head)

    def loss(outputs, name):
        return head.loss(outputs, *truth)[name]

    by_boxes = jax.grad(lambda x: loss(outputs._replace(bbox_preds=x), "loss_cls"))
    assert not any(map(np.any, by_boxes(outputs.bbox_preds)))
    for name in ("loss_bbox", "loss_dfl"):
        by_scores = jax.grad(lambda x, name=name: loss(outputs._replace(cls_scores=x), name))
        assert not any(map(np.any, by_scores(outputs.cls_scores)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reg_max": 0}, "reg_max must be at least 1, got 0"),
        ({"reg_decoded_bbox": False}, "reg_decoded_bbox must be True: the box loss is of boxes"),
        (
            {"anchor_generator": {**ANCHORS, "ratios": [0.5, 1.0]}},
            "a cell must have one anchor, got 2",
        ),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"GFLHead: {message}")):
        ROW.head(**changes)


def test_the_mean_and_the_loss_of_the_sides_share_their_exponentials():
    """Computed apart, the losses take 1.7 times as long on a CPU."""
    maps, bins = np.zeros((2, 20, 25, 4 * 17), np.float32), np.ones((2, 20, 25, 4), np.float32)

    def total(maps):
        (logits,), distances = distances_of_maps([maps], 17)
        return distribution_focal_loss(logits, bins) + distances.sum()

    program = program_of(jax.value_and_grad(total), maps).as_text()
    assert program.count(" exponential(") == 1


@pytest.mark.parametrize(("name", "reg_max"), [("GFLHead", 10), ("YOLOv8Head", 11)])
def test_logits_of_bins_keep_the_axes_of_the_map(name, reg_max):
    """See `distances_of_maps`: as rows they need 7.5 times their size on a TPU."""
    head = ROWS[name].head(reg_max=reg_max)
    outputs, *truth = batch_for(head)

    def total(outputs):
        return sum(head.loss(outputs, *truth).values())

    traced = jax.jit(jax.value_and_grad(total)).trace(outputs)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    axes = {"x".join(map(str, (*x.shape[:3], 4, 11))) for x in outputs.bbox_preds}
    # Without a barrier for each map a GPU moves 1.4 times as much.
    barriers = re.findall(r"optimization_barrier.*x11xf32>", text)
    assert len(barriers) >= len(outputs.bbox_preds)
    assert set(re.findall(r"tensor<(\d[\dx]+x11)xf32>", text)) - {"1x1x1x1x11"} == axes


def test_small_levels_are_one():
    """See `distances_of_maps`: each level alone is some kernels more."""
    rng = np.random.default_rng(0)
    sizes = (20, 25), (10, 13), (5, 7), (3, 4), (2, 2)
    maps = [rng.normal(size=(2, *size, 4 * 5)).astype(np.float32) for size in sizes]
    logits, distances = distances_of_maps(maps, 5)
    assert [x.shape for x in logits] == [(2, 20, 25, 4, 5), (2, 10, 13, 4, 5), (2, 1, 51, 4, 5)]
    apart = [distances_of_maps([x], 5) for x in maps]
    np.testing.assert_array_equal(distances, np.concatenate([x for _, x in apart], axis=1))
    small = [x.reshape(2, 1, -1, 4, 5) for ((x,), _) in apart[2:]]
    np.testing.assert_array_equal(logits[2], np.concatenate(small, axis=2))


@pytest.mark.long
def test_small_levels_over_an_explicit_mesh():
    """Both the assigner and the losses of the sides join them; a reshape could not be followed."""
    head = build_head(**configs.GFL_HEAD)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    sizes = (20, 25), (10, 13), (5, 7), (3, 4), (2, 2)
    with jax.set_mesh(mesh):

        def shape(*axes, dtype=np.float32):
            sharding = NamedSharding(mesh, PartitionSpec("data"))
            return jax.ShapeDtypeStruct((8, *axes), dtype, sharding=sharding)

        maps = {
            name: tuple(shape(*size, channels) for size in sizes)
            for name, channels in head.channels.items()
        }
        outputs = HeadOutputs(**maps)
        truth = shape(3, 4), shape(3, dtype=np.int32)
        gradient = jax.grad(lambda outputs, *truth: sum(head.loss(outputs, *truth).values()))
        found = jax.eval_shape(gradient, outputs, *truth)
        for ours, given in zip(*map(jax.tree.leaves, (found, outputs)), strict=True):
            assert (ours.shape, ours.sharding.spec[0]) == (given.shape, "data")
