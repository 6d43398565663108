"""CenterNet's own: peaks, centres outside, decoding and detections, memory, fields, export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

from head_cases import CENTER_ROWS, CLASSES, batch_for, boxes_for, outputs_for, total
from programs import temporary_bytes
from visdet_jax import checked
from visdet_jax.detectors import HeadOutputs
from visdet_jax.detectors.heads import _heatmaps

ROW = CENTER_ROWS["CenterNetHead"]
HEIGHT, WIDTH = 8, 12  # Cells, of 4 x 4 pixels.


def targets_of(*boxes, labels=None, **options):
    """The targets of one image with these boxes."""
    outputs = jax.tree.map(lambda x: x[:1], outputs_for(ROW.head()))
    labels = np.zeros(len(boxes), np.int32) if labels is None else np.array(labels, np.int32)
    truth = np.array(boxes, np.float32)[None], labels[None]
    return jax.tree.map(lambda x: np.asarray(x)[0], ROW.head().targets(outputs, *truth, **options))


def heatmap_of(targets, label=0):
    return targets.heatmaps[:, label].reshape(HEIGHT, WIDTH)


# Targets.


def test_what_a_box_learns():
    """A box of 5 x 4 cells has radius 1: its peak is 3 x 3 cells, with σ = 1/2."""
    targets = targets_of((10, 6, 30, 22), labels=[2])
    heatmap = heatmap_of(targets, 2)
    e = np.exp(-2)
    np.testing.assert_allclose(heatmap[2:5, 4:7], [[e * e, e, e * e], [e, 1, e], [e * e, e, e * e]])
    assert np.count_nonzero(targets.heatmaps) == 9
    cell = 3 * WIDTH + 5
    assert np.flatnonzero(targets.gt_inds).tolist() == [cell]
    assert targets.labels[cell] == 2
    np.testing.assert_allclose(targets.bbox_targets[cell], [0, 0.5, 5, 4])


def test_the_last_box_of_a_cell_gives_size_and_offset():
    small, large = (18, 12, 22, 16), (8, 2, 34, 27)
    for boxes in ((small, large), (large, small)):
        targets = targets_of(*boxes, labels=[0, 1])
        (cell,) = np.flatnonzero(targets.gt_inds)
        assert targets.gt_inds[cell] == 2
        width, height = (boxes[1][i + 2] - boxes[1][i] for i in (0, 1))
        np.testing.assert_allclose(targets.bbox_targets[cell, 2:], [width / 4, height / 4])
        assert (targets.heatmaps == 1).sum() == 2


def test_as_many_boxes_of_a_class_as_there_are_rows():
    """More than a pass draws: the maximum over all of them."""
    rng = np.random.default_rng(1)
    corner, size = rng.uniform(0, 24, (9, 2)), rng.uniform(8, 24, (9, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)
    boxes[:, 2:] = np.minimum(boxes[:, 2:], [48, 32])
    assert len(boxes) > _heatmaps.BOXES_IN_A_PASS
    expected = functools.reduce(np.maximum, [targets_of(box).heatmaps for box in boxes])
    np.testing.assert_array_equal(targets_of(*boxes).heatmaps, expected)


def test_a_centre_outside_the_map():
    """It is clipped to the map with its box; of a box beyond the map nothing is learnt."""
    np.testing.assert_array_equal(
        targets_of((40, 8, 64, 20)).heatmaps, targets_of((40, 8, 48, 20)).heatmaps
    )
    clipped = targets_of((40, 8, 64, 20)).bbox_targets
    np.testing.assert_array_equal(clipped, targets_of((40, 8, 48, 20)).bbox_targets)
    assert clipped.any()
    for box in ((60, 8, 70, 20), (-30, 8, -9, 20), (48, 8, 48, 20), (8, 32, 20, 32)):
        targets = targets_of(box)
        assert not targets.heatmaps.any()
        assert not targets.gt_inds.any()
    # Inside, a box may reach over the border, and its size is its own.
    assert targets_of((-10, 8, 20, 20)).bbox_targets[..., 2].max() == 7.5


def test_the_map_covers_the_networks_input():
    boxes, other = (10, 6, 30, 22), (20, 9, 60, 33)
    expected = targets_of(boxes)
    for shape in ((32, 48), np.array([32, 48]), [32.0, 48.0]):
        found = targets_of(boxes, batch_input_shape=shape)
        np.testing.assert_array_equal(found.heatmaps, expected.heatmaps)
    found = targets_of(other, batch_input_shape=(48, 96))
    np.testing.assert_array_equal(found.heatmaps, expected.heatmaps)
    np.testing.assert_array_equal(found.bbox_targets, expected.bbox_targets)


def test_the_losses_of_what_is_learnt():
    """Exact sizes and offsets cost 0. The divisors are n and 2n."""
    head = ROW.head()
    outputs, boxes, labels, _ = batch_for(head, (3, 1))
    targets = head.targets(outputs, boxes, labels)
    offset, wh = np.split(np.asarray(targets.bbox_targets).reshape(2, HEIGHT, WIDTH, 4), 2, -1)
    losses = head.loss(outputs._replace(wh_preds=[wh], offset_preds=[offset]), boxes, labels)
    assert losses["loss_wh"] == losses["loss_offset"] == 0
    count = (np.asarray(targets.heatmaps) == 1).sum()
    losses = head.loss(outputs._replace(wh_preds=[wh + 1], offset_preds=[offset]), boxes, labels)
    cells = np.asarray(targets.bbox_weights).sum()
    np.testing.assert_allclose(losses["loss_wh"], 0.1 * 2 * cells / (2 * count), rtol=1e-5)


# Decoding and detections.


def decoded_by_hand(outputs, shape):
    """mmdet's formula for every cell: boxes (B, N, 4), scores (B, N, C)."""
    (logits,), (wh,), (offset,) = outputs.cls_scores, outputs.wh_preds, outputs.offset_preds
    batch, height, width, classes = logits.shape
    y, x = np.mgrid[:height, :width]
    x, y = x + offset[..., 0], y + offset[..., 1]
    sides = [
        (x - wh[..., 0] / 2) * (shape[1] / width),
        (y - wh[..., 1] / 2) * (shape[0] / height),
        (x + wh[..., 0] / 2) * (shape[1] / width),
        (y + wh[..., 1] / 2) * (shape[0] / height),
    ]
    scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return np.stack(sides, -1).reshape(batch, -1, 4), scores.reshape(batch, -1, classes)


@pytest.mark.parametrize("shape", [None, (40, 96)])
def test_decode(shape):
    head = ROW.head()
    outputs = outputs_for(head)
    boxes, scores = decoded_by_hand(outputs, shape or (32, 48))
    found = head.decode(outputs, batch_input_shape=shape)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    clipped = head.decode(outputs, (20, 30), batch_input_shape=shape).boxes
    np.testing.assert_allclose(clipped, np.clip(boxes, 0, [30, 20, 30, 20]), rtol=1e-5, atol=1e-4)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("shape", [None, (40, 96)])
def test_detect(kernel, shape):
    """mmdet's steps in NumPy: the local maxima, the best of them, their boxes."""
    head = ROW.head(test_cfg={"topk": 30, "local_maximum_kernel": kernel, "max_per_img": 20})
    outputs = outputs_for(head)
    boxes, scores = decoded_by_hand(outputs, shape or (32, 48))
    maps = scores.reshape(2, HEIGHT, WIDTH, CLASSES)
    reach = kernel // 2
    around = np.pad(maps, [(0, 0), (reach, reach), (reach, reach), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(around, (kernel, kernel), (1, 2))
    peaks = np.where(windows.max((-1, -2)) == maps, maps, 0).reshape(2, -1)
    found = head.detect(outputs, batch_input_shape=shape)
    assert found.boxes.shape == (2, 20, 4)
    for image in range(2):
        best = np.argsort(-peaks[image])[:20]
        best = best[peaks[image][best] > 0]
        exists = np.asarray(found.exists[image])
        assert exists.sum() == len(best)
        np.testing.assert_array_equal(found.indices[image][exists], best // CLASSES)
        np.testing.assert_array_equal(found.labels[image][exists], best % CLASSES)
        np.testing.assert_allclose(found.scores[image][exists], peaks[image][best], rtol=1e-6)
        expected = boxes[image, best // CLASSES]
        np.testing.assert_allclose(found.boxes[image][exists], expected, rtol=1e-5, atol=1e-4)
        assert not np.asarray(found.boxes[image][~exists]).any()


def test_what_is_learnt_is_detected():
    head = ROW.head()
    outputs = outputs_for(head)
    truth = np.array([[(10, 6, 30, 22)], [(21, 3, 43, 30)]], np.float32), np.array([[2], [0]])
    targets = head.targets(outputs, *truth)
    offset, wh = np.split(np.asarray(targets.bbox_targets).reshape(2, HEIGHT, WIDTH, 4), 2, -1)
    logits = 20 * np.asarray(targets.heatmaps).reshape(2, HEIGHT, WIDTH, CLASSES) - 10
    found = head.detect(HeadOutputs([logits], wh_preds=[wh], offset_preds=[offset]))
    np.testing.assert_allclose(found.boxes[:, 0], truth[0][:, 0], rtol=1e-5)
    np.testing.assert_array_equal(found.labels[:, 0], truth[1][:, 0])
    assert (found.scores[:, 0] > 0.99).all()


# Memory.


def large_batch():
    """A head, outputs of 32 x 48 cells and 80 classes, and 30 boxes an image."""
    head, rng = ROW.head(num_classes=80), np.random.default_rng(0)
    parts = {
        name: [rng.normal(0, 1, (2, 32, 48, n)).astype(np.float32)]
        for name, n in head.channels.items()
    }
    return head, HeadOutputs(**parts), *boxes_for((30, 30), 30)


def test_value_and_gradient_need_two_arrays_of_the_heatmaps_size():
    """The heatmaps and the values, which are summed. The count of peaks needs no third one."""
    head, *batch = large_batch()
    function = jax.value_and_grad(lambda *batch: total(head.loss(*batch)))
    assert temporary_bytes(function, *batch) < 2.5 * batch[0].cls_scores[0].nbytes


def test_drawing_needs_no_array_of_boxes_and_cells():
    head, *batch = large_batch()
    needed = temporary_bytes(lambda *batch: head.targets(*batch), *batch)
    assert needed < 0.5 * batch[0].cls_scores[0].nbytes


# Fields, errors, other hosts.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_cfg": {"local_maximum_kernel": 4}}, "local_maximum_kernel must be odd, got 4"),
        ({"test_cfg": {"topk": 0}}, "topk must be at least 1, got 0"),
        ({"loss_wh": {"type": "GIoULoss"}}, "loss_wh gets pred .N, 2., target .N, 2. and weight"),
        (
            {"loss_center_heatmap": {"type": "SeesawLoss", "num_classes": 3}},
            "loss_center_heatmap gets pred .N, 3., target",
        ),
    ],
)
def test_configs_that_mean_nothing(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ROW.head(**changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wh_preds": None}, "wh_preds must be a list of one level, got None"),
        (
            {"offset_preds": [np.zeros((2, 8, 12, 2))] * 2},
            "offset_preds must be a list of one level, got 2 arrays",
        ),
        ({"bbox_preds": [np.zeros((2, 8, 12, 4))]}, "outputs.bbox_preds must be None"),
        (
            {"wh_preds": [np.zeros((2, 8, 11, 2))]},
            r"wh_preds\[0\] must have shape \(B, H, W, 2\) with the B, H and W of cls_scores, got",
        ),
        (
            {"cls_scores": [np.zeros((2, 8, 12, 4))]},
            r"cls_scores\[0\] must have shape \(B, H, W, 3",
        ),
        ({"cls_scores": [np.zeros((8, 12, 3))]}, r"cls_scores\[0\] must have shape \(B, H, W, 3\)"),
    ],
)
def test_outputs_that_do_not_fit(change, message):
    head = ROW.head()
    outputs = outputs_for(head)._replace(**change)
    for call in (
        lambda: head.loss(outputs, *boxes_for((1, 1), 1)),
        lambda: head.decode(outputs),
        lambda: head.detect(outputs),
    ):
        with pytest.raises(ValueError, match=f"CenterNetHead: {message}"):
            call()


def test_a_batch_input_shape_that_does_not_fit():
    head = ROW.head()
    outputs, truth = outputs_for(head), boxes_for((1, 1), 1)
    message = r"CenterNetHead: batch_input_shape must be \(height, width\), got \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        head.loss(outputs, *truth, batch_input_shape=np.ones((2, 2)))
    with pytest.raises(ValueError, match=message):
        head.decode(outputs, batch_input_shape=np.ones((2, 2)))


@pytest.mark.parametrize("size", [(0, 12), (8, 0)])
def test_a_map_without_cells_costs_nothing(size):
    head = ROW.head()
    parts = {name: [np.zeros((2, *size, n), np.float32)] for name, n in head.channels.items()}
    losses = head.loss(HeadOutputs(**parts), *boxes_for((1, 2), 3))
    assert not any(losses.values())
    assert head.detect(HeadOutputs(**parts)).boxes.shape == (2, 0, 4)


def test_a_batch_without_images_costs_nothing():
    head = ROW.head()
    losses = head.loss(outputs_for(head, 0), *boxes_for((), 3))
    assert not any(losses.values())


@pytest.mark.long
def test_export_with_any_number_of_images():
    head = ROW.head()
    images = (outputs_for(head), *boxes_for((2, 0), 3))
    (rows,) = export.symbolic_shape("rows")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), images)

    def everything(*images):
        value = jax.value_and_grad(lambda *x: total(head.loss(*x)))(*images)
        return value, head.targets(*images), head.detect(images[0])

    platforms = ("cpu", "cuda", "rocm", "tpu")
    program = export.export(jax.jit(everything), platforms=platforms)(*shapes)
    call = export.deserialize(program.serialize()).call
    for actual, expected in zip(
        jax.tree.leaves(call(*images)), jax.tree.leaves(everything(*images)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.long
def test_checked():
    head = ROW.head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((2, 0), 3)
    losses = checked(head).loss(outputs, boxes, labels)
    np.testing.assert_array_equal(losses["loss_wh"], head.loss(outputs, boxes, labels)["loss_wh"])
    spoilt = outputs._replace(
        wh_preds=[jnp.asarray(outputs.wh_preds[0]).at[1, 0, 2, 0].set(np.nan)]
    )
    with pytest.raises(checkify.JaxRuntimeError, match=r"wh_preds\[0\]\[1, 0, 2, 0\] is nan"):
        checked(head).loss(spoilt, boxes, labels)
    boxes[0, 1] = 48, 0, 60, 9
    with pytest.raises(checkify.JaxRuntimeError, match=r"gt_boxes\[0, 1\] is .* lies outside its"):
        checked(head).loss(outputs, boxes, labels)
    checked(head).loss(outputs, boxes, labels, batch_input_shape=(32, 64))
