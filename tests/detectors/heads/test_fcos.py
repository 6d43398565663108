"""FCOS's own: its targets, the divisor of its box loss, its fields."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from head_cases import ROWS, batch_for, boxes_for, compiled, outputs_for
from visdet_jax import checked
from visdet_jax.boxes import nms
from visdet_jax.detectors import FCOSRPNHead, build_detector, build_head

ROW = ROWS["FCOSHead"]
FIRST_STAGE = ROWS["FCOSRPNHead"]
RPN_TEST = {"nms_pre": 20, "max_per_img": 12, "nms": {"type": "nms", "iou_threshold": 0.7}}


def test_what_targets_learn():
    head = ROW.head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((1, 0), 4)
    boxes[0, 0], labels[0, 0] = (10, 6, 34, 28), 2
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels))
    positive = targets.gt_inds == 1
    assert positive[0].any()
    assert not positive[1].any()
    np.testing.assert_array_equal(targets.labels[positive], 2)
    np.testing.assert_array_equal(targets.label_weights, 1)
    assert ((targets.centerness > 0) == positive).all()


def test_the_centernesses_divide_by_their_own_sum():
    """Of a single positive the box loss is the loss of its box, however far from the centre."""
    head = ROW.head()
    outputs, *truth = batch_for(head, (1, 0))
    truth[0][0, 0] = 3, 3, 9, 6  # Just around (4, 4).
    losses, _ = compiled(head)(outputs, *truth)
    targets = head.targets(outputs, *truth)
    np.testing.assert_array_equal(np.argwhere(np.asarray(targets.gt_inds) > 0), [[0, 0]])
    np.testing.assert_allclose(targets.centerness[0, 0], 0.1**0.5, rtol=1e-6)
    np.testing.assert_allclose(targets.bbox_targets[0, 0], [1, 1, 5, 2])
    (left, top, right, bottom), near = outputs.bbox_preds[0][0, 0, 0], np.minimum
    inter = (near(left, 1) + near(right, 5)) * (near(top, 1) + near(bottom, 2))
    iou = inter / ((left + right) * (top + bottom) + 6 * 3 - inter)
    np.testing.assert_allclose(losses["loss_bbox"], -np.log(iou), rtol=1e-5)


def test_norm_on_bbox_is_in_strides():
    head, normed = ROW.head(), ROW.head(norm_on_bbox=True)
    outputs, *truth = batch_for(head)
    targets, in_strides = (
        jax.tree.map(np.asarray, each.targets(outputs, *truth)) for each in (head, normed)
    )
    strides = np.repeat([8, 16], [24, 6])[None, :, None]
    np.testing.assert_allclose(in_strides.bbox_targets * strides, targets.bbox_targets, rtol=1e-6)
    np.testing.assert_allclose(in_strides.centerness, targets.centerness, rtol=1e-6)


def test_vmap_over_the_radius():
    batch = batch_for(ROW.head())

    def learnt(radius):
        return ROW.head(center_sampling=True, center_sample_radius=radius).targets(*batch).gt_inds

    swept = jax.jit(jax.vmap(learnt))(jnp.array([0.5, 1.5]))
    for found, radius in zip(swept, (0.5, 1.5), strict=True):
        np.testing.assert_array_equal(found, learnt(radius))
    few, many = ((np.asarray(found) > 0).sum() for found in swept)
    assert few < many


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": [0, 8]}, "strides must be at least 1, got (0, 8)"),
        ({"center_sample_radius": -1.0}, "center_sample_radius must be above 0, got -1.0"),
        ({"regress_ranges": [[0, 8]]}, "2 strides need as many regress_ranges (low, high), got"),
        ({"regress_ranges": [[0, 8, 9]] * 2}, "2 strides need as many regress_ranges (low, high)"),
    ],
)
def test_fields_that_mean_nothing(changes, message):
    with pytest.raises(ValueError, match=re.escape(f"FCOSHead: {message}")):
        ROW.head(**changes)


# As the first stage of a detector with two.


@pytest.mark.long
def test_a_first_stage_has_the_losses_of_one_class():
    head, one_class = FIRST_STAGE.head(), ROW.head(num_classes=1)
    outputs, boxes, labels, shapes = batch_for(head)
    assert labels.max() > 0
    losses, gradient = compiled(head)(outputs, boxes, labels, shapes)
    assert losses.keys() == set(FIRST_STAGE.names)
    expected, its = compiled(one_class)(outputs, boxes, np.minimum(labels, 0), shapes)
    assert {name.removeprefix("rpn_"): x for name, x in losses.items()} == expected
    for x, y in zip(jax.tree.leaves(gradient), jax.tree.leaves(its), strict=True):
        np.testing.assert_array_equal(x, y)
    targets = head.targets(outputs, boxes, labels, shapes)
    assert set(np.unique(targets.labels)) == {0, 1}
    checked(head).loss(outputs, boxes, labels, shapes)  # Every label is right.


def test_proposals_are_the_best_points_without_duplicates():
    """mmdet's steps in NumPy: the best of each level, by their scores, across the levels."""
    head = FIRST_STAGE.head(rpn_proposal=RPN_TEST)
    outputs, *_, shapes = batch_for(head)
    found = head.proposals(outputs, shapes)
    decoded = head.decode(outputs, shapes)
    scores = np.concatenate([1 / (1 + np.exp(-x.reshape(2, -1))) for x in outputs.cls_scores], 1)
    for image in range(2):
        best = [np.argsort(-scores[image, :24])[:20], 24 + np.argsort(-scores[image, 24:])]
        places = np.concatenate(best)
        boxes, quality = (np.asarray(x)[image][places] for x in decoded)
        exists = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        kept = nms(boxes, quality[:, 0], 0.7, exists, max_out=12)
        number = int(kept.exists.sum())
        assert number == found.exists[image].sum() > 3
        expected = places[np.asarray(kept.indices)[:number]]
        np.testing.assert_array_equal(found.indices[image, :number], expected)
        np.testing.assert_allclose(found.boxes[image, :number], decoded.boxes[image, expected])


def test_low_scores_are_proposals_too():
    head = FIRST_STAGE.head(rpn_proposal=RPN_TEST)
    outputs, *_ = batch_for(head)
    outputs = outputs._replace(cls_scores=tuple(x - 9 for x in outputs.cls_scores))
    proposals = head.proposals(outputs)
    assert proposals.exists.any()
    assert proposals.scores.max() < 1e-3
    assert (
        FIRST_STAGE.head(rpn_proposal={**RPN_TEST, "score_thr": 0.5})
        .proposals(outputs)
        .exists.sum()
        == 0
    )


@pytest.mark.long
def test_proposals_have_no_gradient_and_follow_their_own_config():
    head = FIRST_STAGE.head(rpn_proposal=RPN_TEST, test_cfg={**RPN_TEST, "max_per_img": 3})
    outputs, *_, shapes = batch_for(head)
    gradient = jax.grad(lambda outputs: head.proposals(outputs, shapes).boxes.sum())(outputs)
    assert not any(np.any(x) for x in jax.tree.leaves(gradient))
    assert head.proposals(outputs, shapes).boxes.shape == (2, 12, 4)
    assert head.detect(outputs, shapes).boxes.shape == (2, 3, 4)
    alone = FIRST_STAGE.head(test_cfg=RPN_TEST)
    np.testing.assert_array_equal(
        alone.proposals(outputs, shapes).boxes, head.proposals(outputs, shapes).boxes
    )


@pytest.mark.parametrize("scope", [{}, {"_scope_": "mmdet"}])
def test_a_models_rpn_head_may_be_fcos(scope):
    config = {**ROW.config, "num_classes": 1, **scope}
    train_cfg = {"rpn": {"assigner": {"type": "Anything"}}, "rpn_proposal": RPN_TEST}
    model = {"rpn_head": config, "train_cfg": train_cfg, "test_cfg": {"rpn": RPN_TEST}}
    rpn = build_detector(model)["rpn_head"]
    assert type(rpn) is FCOSRPNHead
    assert rpn == FIRST_STAGE.head(rpn_proposal=RPN_TEST, test_cfg=RPN_TEST)
    assert "score_thr" not in RPN_TEST
    assert rpn.rpn_proposal.score_thr == 0
    with pytest.raises(ValueError, match="rpn_head: FCOSRPNHead: num_classes must be 1, got 3"):
        build_detector({**model, "rpn_head": {**config, "num_classes": 3}})
    assert build_head({**ROW.config, "num_classes": 1}).num_classes == 1
