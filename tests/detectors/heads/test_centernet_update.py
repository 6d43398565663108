"""CenterNetUpdateHead's own: its heatmaps, positives and boxes, by hand; memory; fields."""

import jax
import numpy as np
import pytest

from head_cases import CLASSES, ROWS, SIZES, boxes_for, outputs_for, total
from programs import temporary_bytes
from visdet_jax.boxes import bbox_overlaps
from visdet_jax.detectors import HeadOutputs

ROW = ROWS["CenterNetUpdateHead"]
STRIDES = 8, 16
SPLIT = SIZES[0][0] * SIZES[0][1]
MIDDLE = (10, 6, 34, 28)  # Its centre is (22, 17), half its diagonal 16.3: of both levels.


def arrays(x):
    return jax.tree.map(np.asarray, x)


def batch(*boxes, labels=None, seed=0):
    """Outputs for one image, and its boxes with their labels, and a row of padding."""
    outputs = jax.tree.map(lambda x: x[:1], outputs_for(ROW.head(), seed=seed))
    labels = [*(labels or [0] * len(boxes)), -1]
    return outputs, np.array([*boxes, [np.nan] * 4], "f4")[None], np.array([labels], "i4")


def points_of(level):
    y, x = np.mgrid[: SIZES[level][0], : SIZES[level][1]]
    return np.stack([x, y], -1).reshape(-1, 2) * STRIDES[level] + STRIDES[level] / 2


def test_a_heatmap_by_hand():
    head = ROW.head(hm_min_radius=6)
    outputs, *truth = batch(MIDDLE, (1, 1, 9, 9), labels=[2, 0])
    heatmaps = arrays(head.targets(outputs, *truth)).heatmaps[0]
    assert not heatmaps[:, 1].any()
    for label, center, area in ((2, (22, 17), 24 * 22), (0, (5, 5), 64)):
        squared_radius = max(2 * (0.2 / 1.8) ** 2 * area, 36)
        expected = []
        for level in range(2):
            points, cell = points_of(level), np.array(center) // STRIDES[level]
            squared = ((points - center) ** 2).sum(1)
            own = (points // STRIDES[level] == cell).all(1)
            assert own.sum() == 1
            expected.append(np.where(own, 1, np.exp(-squared / squared_radius)))
        expected = np.concatenate(expected)
        expected[expected < 1e-4] = 0
        np.testing.assert_allclose(heatmaps[:, label], expected, rtol=1e-5)
        assert (heatmaps[:, label] == 1).sum() == 2


def test_small_values_of_a_heatmap_are_made_0_where_they_are_drawn():
    """After the drawing a GPU stores zeros of all heatmaps' size, and reads them."""
    outputs, *truth = batch(MIDDLE)
    targets = jax.jit(lambda *given: ROW.head().targets(*given).heatmaps)
    text = targets.trace(outputs, *truth).lower(lowering_platforms=("cuda",)).as_text()
    least = [line for line in text.splitlines() if "constant dense<9.99999974E-5>" in line]
    assert least
    assert all(line.startswith(" " * 6) for line in least)  # In the loop, which is indented.


def test_the_cells_that_learn_a_box():
    outputs, *truth = batch(MIDDLE)
    targets = arrays(ROW.head().targets(outputs, *truth))
    points = np.concatenate([points_of(0), points_of(1)])
    strides = np.repeat(STRIDES, [SPLIT, len(points) - SPLIT])
    distances = np.concatenate([points - MIDDLE[:2], MIDDLE[2:] - points], axis=1)
    cell = (np.array([[22, 17]]) // strides[:, None] + 0.5) * strides[:, None]
    learns = (distances.min(1) > 0) & (np.abs(points - cell).max(1) <= strides)
    np.testing.assert_array_equal(targets.gt_inds[0] == 1, learns)
    assert learns[:SPLIT].any()
    assert learns[SPLIT:].any()
    expected = np.where(learns[:, None], distances / strides[:, None], 0)
    np.testing.assert_allclose(targets.bbox_targets[0], expected, rtol=1e-6)
    # Not on a level whose range its size is not in.
    head = ROW.head(regress_ranges=[[0, 16], [16, 1e8]])
    np.testing.assert_array_equal(head.targets(outputs, *truth).gt_inds[0, :SPLIT], 0)


def test_of_several_boxes_a_cell_learns_the_nearest_for_its_size():
    near, wide = (10, 2, 22, 14), (4, 2, 44, 30)
    for boxes in ((near, wide), (wide, near)):
        outputs, *truth = batch(*boxes)
        head = ROW.head(regress_ranges=[[0, 1e8], [1e8, 1e9]])
        targets = arrays(head.targets(outputs, *truth))
        box = np.array(boxes, float)
        center = (box[:, :2] + box[:, 2:]) / 2
        size = box[:, 2:] - box[:, :2]
        squared_radius = np.maximum(2 * (0.2 / 1.8) ** 2 * size.prod(1), 16)
        points = points_of(0)
        own = (points[:, None] // 8 == center // 8).all(-1)
        squared = np.where(own, 0, ((points[:, None] - center) ** 2).sum(-1)) / squared_radius
        inside = (points[:, None] > box[:, :2]) & (points[:, None] < box[:, 2:])
        cell = (center // 8 + 0.5) * 8
        learns = inside.all(-1) & (np.abs(points[:, None] - cell).max(-1) <= 8)
        expected = np.where(learns.any(1), 1 + np.where(learns, squared, 1e9).argmin(1), 0)
        assert set(expected) == {0, 1, 2}
        np.testing.assert_array_equal(targets.gt_inds[0, :SPLIT], expected)


def losses_around(outputs, box, level):
    """1 - GIoU of what is predicted in the 3 x 3 cells around a box's centre, by (row, column)."""
    points, preds = points_of(level), np.asarray(outputs.bbox_preds[level]).reshape(-1, 4)
    preds = preds * STRIDES[level]
    found = {}
    center = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    for place, point in enumerate(points):
        cell, own = point // STRIDES[level], center // STRIDES[level]
        if np.abs(cell - own).max() > 1:
            continue
        if (point < box[:2]).any() or (point > box[2:]).any():
            continue
        pred = np.concatenate([point - preds[place, :2], point + preds[place, 2:]])
        giou = bbox_overlaps(pred[None].astype("f4"), np.array([box], "f4"), mode="giou")
        found[place + level * SPLIT] = 1 - float(giou[0, 0])
    return found


@pytest.mark.one_in(16)
@pytest.mark.parametrize("topk", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 5.0])
def test_the_positives_of_the_classes(topk, threshold):
    head = ROW.head(more_pos_topk=topk, more_pos_thresh=threshold)
    boxes = (MIDDLE, (4, 2, 44, 30), (1, 1, 9, 9))
    outputs, *truth = batch(*boxes, labels=[2, 1, 0], seed=2)
    candidates = arrays(head.targets(outputs, *truth).candidates)
    chosen = candidates.weights[0] > 0
    found = set(zip(candidates.priors[0][chosen], candidates.gt_inds[0][chosen], strict=True))
    assert len(found) == chosen.sum()
    expected = set()
    for number, box in enumerate(boxes, start=1):
        size = np.hypot(box[2] - box[0], box[3] - box[1]) / 2
        losses = {}
        for level, (low, high) in enumerate(ROW.config["regress_ranges"]):
            losses |= losses_around(outputs, box, level)
            x, y = (int((box[i] + box[i + 2]) / 2) // STRIDES[level] for i in (0, 1))
            own = y * SIZES[level][1] + x + level * SPLIT
            if low <= size <= high and own in losses:
                losses[own] = 0.0
        every = sorted([*losses.values(), *[np.inf] * 18])
        limit = min(every[topk - 1] if topk <= 18 else np.inf, threshold)
        expected |= {(place, number) for place, loss in losses.items() if loss < limit}
    assert found == expected
    labels = np.array([CLASSES, 2, 1, 0])
    np.testing.assert_array_equal(candidates.labels[0], labels[candidates.gt_inds[0]])
    assert not candidates.bbox_targets[0][~chosen].any()
    assert not candidates.priors[0][~chosen].any()


def test_a_centre_in_no_cell_has_no_positive():
    """mmdet makes the first cell of the batch one."""
    outputs, *truth = batch((40, 10, 70, 34))
    candidates = arrays(ROW.head(more_pos_thresh=1e-3).targets(outputs, *truth).candidates)
    assert not candidates.weights.any()


@pytest.mark.long
def test_an_image_without_boxes_learns_heatmaps_of_0():
    """So its class loss is that of negatives whose weight is 1; mmdet's weigh (1 - C)^4."""
    head = ROW.head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((2, 0), 3)
    assert not np.asarray(head.targets(outputs, boxes, labels).heatmaps[1]).any()
    nothing = np.full_like(labels, -1)
    losses = head.loss(outputs, boxes, nothing)
    scores = np.concatenate([np.ravel(x) for x in outputs.cls_scores]).astype(np.float64)
    p = np.clip(1 / (1 + np.exp(-scores)), 1e-4, 1 - 1e-4)
    expected = 0.75 * (-np.log(1 - p) * p**2).sum()
    np.testing.assert_allclose(losses["loss_cls"], expected, rtol=1e-5)
    assert losses["loss_bbox"] == 0


@pytest.mark.long
def test_a_cell_counts_as_often_as_it_is_positive():
    """A box that is there twice adds its positives twice, and they are counted twice."""
    outputs, boxes, labels = batch(MIDDLE)
    twice = np.concatenate([boxes[:, :1], boxes], 1), np.concatenate([labels[:, :1], labels], 1)
    only_positives = {**ROW.config["loss_cls"], "neg_weight": 0.0}
    head = ROW.head(loss_cls=only_positives)
    once = head.loss(outputs, boxes, labels)["loss_cls"]
    assert once > 0
    np.testing.assert_allclose(head.loss(outputs, *twice)["loss_cls"], once, rtol=1e-5)
    only_negatives = {**ROW.config["loss_cls"], "pos_weight": 0.0}
    head = ROW.head(loss_cls=only_negatives)
    once = head.loss(outputs, boxes, labels)["loss_cls"]
    np.testing.assert_allclose(head.loss(outputs, *twice)["loss_cls"], once / 2, rtol=1e-5)


@pytest.mark.long
def test_scores_beyond_the_bounds_have_no_gradient():
    head = ROW.head()
    outputs, *truth = batch(MIDDLE)
    far = outputs._replace(
        cls_scores=[np.full_like(x, s) for x, s in zip(outputs.cls_scores, (30, -30), strict=True)]
    )
    value, gradient = jax.value_and_grad(lambda x: head.loss(x, *truth)["loss_cls"])(far)
    assert np.isfinite(value)
    assert not any(map(np.any, jax.tree.leaves(gradient)))


@pytest.mark.long
def test_soft_weights():
    """The mean of the box losses by the largest value of each cell's heatmaps."""
    outputs, *truth = batch(MIDDLE, (4, 2, 44, 30), labels=[0, 2])
    targets = arrays(ROW.head().targets(outputs, *truth))
    weight = targets.heatmaps.max(-1) * targets.bbox_weights
    assert len(set(weight.ravel())) > 3
    values = []
    for place in np.flatnonzero(targets.bbox_weights[0]):
        maps = [np.asarray(x).reshape(-1, 4) for x in outputs.bbox_preds]
        pred = np.concatenate(maps)[place] * [-1, -1, 1, 1]
        target = targets.bbox_targets[0, place] * [-1, -1, 1, 1]
        giou = bbox_overlaps(pred[None].astype("f4"), target[None].astype("f4"), mode="giou")
        values.append(1 - float(giou[0, 0]))
    weights = weight[0][targets.bbox_weights[0] > 0]
    for soft, own in ((True, weights), (False, np.ones_like(weights))):
        found = ROW.head(soft_weight_on_reg=soft).loss(outputs, *truth)["loss_bbox"]
        expected = 2 * (own * values).sum() / max(own.sum(), 1)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.long
def test_value_and_gradient_need_two_arrays_of_the_scores_size():
    """Two arrays of the scores' size. A third where positives are picked from one axis."""
    head = ROW.head(num_classes=80)
    rng = np.random.default_rng(0)
    sizes = ((64, 96), (32, 48))
    parts = {
        name: [rng.uniform(0, 1, (2, *size, n)).astype(np.float32) for size in sizes]
        for name, n in head.channels.items()
    }
    outputs, truth = HeadOutputs(**parts), boxes_for((30, 30), 30)
    size = sum(x.nbytes for x in outputs.cls_scores)
    function = jax.value_and_grad(lambda *batch: total(head.loss(*batch)))
    assert temporary_bytes(function, outputs, *truth) < 2.6 * size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss_cls": {"type": "FocalLoss"}}, "loss_cls must be a GaussianFocalLoss, got FocalL"),
        ({"loss_bbox": {"type": "L1Loss"}}, "loss_bbox must be a loss of whole boxes, got L1Loss"),
        ({"regress_ranges": [[0, 1]]}, "2 strides need as many regress_ranges"),
        ({"hm_min_overlap": 1.5}, r"hm_min_overlap must be in \[0, 1\], got 1.5"),
        ({"hm_min_radius": 0}, "hm_min_radius must be above 0, got 0"),
        ({"more_pos_thresh": -0.1}, "more_pos_thresh must be at least 0, got -0.1"),
        ({"more_pos_topk": 0}, "more_pos_topk must be at least 1, got 0"),
        ({"strides": [8, 0]}, "strides must be at least 1"),
    ],
)
def test_configs_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=f"CenterNetUpdateHead: {message}"):
        ROW.head(**changes)


def test_maps_without_cells_cost_nothing():
    head = ROW.head()
    parts = {name: [np.zeros((2, 0, 3, n), np.float32)] * 2 for name, n in head.channels.items()}
    losses = head.loss(HeadOutputs(**parts), *boxes_for((1, 2), 3))
    assert not any(losses.values())
