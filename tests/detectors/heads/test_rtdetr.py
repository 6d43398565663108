"""RT-DETR's criterion, and what it shares with D-FINE's and DEIM's: configs, boxes, errors."""

import functools
import re

import chex
import jax
import numpy as np
import pytest

from head_cases import CLASSES, CRITERION_ROWS, batch_for, compiled, value_and_gradient
from visdet_jax import configs
from visdet_jax.detectors import (
    DFINECriterion,
    FocalLossCost,
    RTDETRCriterion,
    build_head,
)
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.losses.classification.focal import FocalLoss

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def head_of(name="RTDETRCriterion", **changes):
    return CRITERION_ROWS[name].head(**changes)


def without(outputs, *parts):
    """The outputs without those whose names start so."""
    names = [name for name in outputs._fields if name.startswith(parts)]
    return outputs._replace(**dict.fromkeys(names))


# What the layers learn.


@pytest.mark.long
def test_auxiliary_layers_may_share_the_last_matching():
    head, shares = head_of(), head_of(share_matched_indices=True)
    batch = batch_for(head)
    own = np.asarray(head.targets(*batch).gt_inds)
    assert not np.array_equal(own[0], own[1])
    shared = shares.targets(*batch).gt_inds
    np.testing.assert_array_equal(shared, own[[1, 1]])
    np.testing.assert_array_equal(shares.targets(*batch, gt_inds=own).gt_inds, own)
    close(shares.loss(*batch), head.loss(*batch, gt_inds=shared))


@pytest.mark.long
def test_an_encoder_of_one_class_learns_from_all_labels():
    head = head_of()
    outputs, boxes, labels, shapes = batch_for(head)
    assert (labels > 0).any()
    one = outputs._replace(enc_cls_scores=outputs.enc_cls_scores[..., :1])
    of_one_class = head_of(num_classes=1)
    encoder = without(one, "dn_")._replace(cls_scores=one.cls_scores[..., :1])
    expected = of_one_class.loss(encoder, boxes, np.minimum(labels, 0), shapes)
    losses = head.loss(one, boxes, labels, shapes)
    for name in ("loss_vfl_enc_0", "loss_bbox_enc_0", "loss_giou_enc_0"):
        np.testing.assert_allclose(losses[name], expected[name], rtol=1e-6)


@pytest.mark.long
def test_denoising_queries_learn_what_they_are_told():
    """A query of -1 learns nothing, one of 0 is background; the divisor counts the others."""
    head = head_of()
    outputs, *truth = batch_for(head, (3, 2))
    (_, losses), gradient = value_and_gradient(head)(outputs, *truth)
    by_class, by_box = (
        np.asarray(x).any(-1) for x in (gradient.dn_cls_scores, gradient.dn_bbox_preds)
    )
    inds = np.broadcast_to(outputs.dn_gt_inds, by_box.shape)
    np.testing.assert_array_equal(by_class, inds >= 0)
    np.testing.assert_array_equal(by_box, inds > 0)
    twice = jax.tree.map(
        lambda x: np.concatenate([x, x], axis=x.ndim - 2), outputs._replace(dn_gt_inds=None)
    )
    inds = np.concatenate([outputs.dn_gt_inds, outputs.dn_gt_inds * 0 - 1], axis=1)
    padded = outputs._replace(dn_cls_scores=twice.dn_cls_scores, dn_bbox_preds=twice.dn_bbox_preds)
    close(head.loss(padded._replace(dn_gt_inds=inds), *truth), losses)


@pytest.mark.long
def test_no_denoising_queries():
    """A generator without boxes gives none: their losses are 0, the others stay."""
    head = head_of()
    outputs, *truth = batch_for(head)
    names = ("dn_cls_scores", "dn_bbox_preds", "dn_gt_inds")
    empty = outputs._replace(
        **{
            name: getattr(outputs, name)[..., :0, :]
            if name != "dn_gt_inds"
            else outputs.dn_gt_inds[:, :0]
            for name in names
        }
    )
    (_, losses), gradient = value_and_gradient(head)(empty, *truth)
    expected, _ = compiled(head)(outputs, *truth)
    for name, value in losses.items():
        np.testing.assert_allclose(value, 0 if "_dn_" in name else expected[name], rtol=1e-6)
    assert gradient.dn_cls_scores.shape == (2, 2, 0, CLASSES)


@pytest.mark.long
def test_sums_are_divided_by_the_number_of_boxes_exactly(x64):
    head = head_of()
    outputs, *truth = batch_for(head, (3, 1), dtype=np.float64)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *truth))
    difference = np.abs(outputs.bbox_preds - targets.bbox_targets).sum(-1) * targets.bbox_weights
    losses = head.loss(outputs, *truth)
    np.testing.assert_allclose(losses["loss_bbox"], 5 * difference[1].sum() / 4, rtol=1e-12)
    np.testing.assert_allclose(losses["loss_bbox_aux_0"], 5 * difference[0].sum() / 4, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("name", ["RTDETRCriterion", "RFDETRCriterion"])
def test_boxes_without_area_and_inverted_ones(name):
    """Finite, and a size below 0 counts as 0 where boxes overlap, as in the projects."""
    head = head_of(name)
    outputs, boxes, labels, shapes = batch_for(head)
    flat = np.concatenate([boxes[..., :2], boxes[..., :2]], axis=-1)
    for sizes in (0.0, -0.25, 1e-30):
        small = outputs._replace(bbox_preds=outputs.bbox_preds.copy())
        small.bbox_preds[..., 2:] = sizes
        for truth in (boxes, flat):
            losses, gradient = compiled(head)(small, truth, labels, shapes)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    inverted, none = (outputs._replace(bbox_preds=outputs.bbox_preds.copy()) for _ in range(2))
    inverted.bbox_preds[..., 2:], none.bbox_preds[..., 2:] = -0.25, 0.0
    matching = {"gt_inds": head.targets(outputs, boxes, labels, shapes).gt_inds}
    found, expected = (head.loss(x, boxes, labels, shapes, **matching) for x in (inverted, none))
    np.testing.assert_allclose(found["loss_giou"], expected["loss_giou"], rtol=1e-6)
    assert found["loss_bbox"] > expected["loss_bbox"]


@pytest.mark.long
def test_boxes_equal_to_their_own_cost_nothing():
    head = head_of(share_matched_indices=True)
    outputs, *truth = batch_for(head)
    targets = head.targets(outputs, *truth)
    exact = np.where(targets.bbox_weights[..., None] > 0, targets.bbox_targets, outputs.bbox_preds)
    losses = head.loss(outputs._replace(bbox_preds=exact), *truth, gt_inds=targets.gt_inds)
    for name in ("loss_bbox", "loss_giou"):
        np.testing.assert_allclose(losses[name], 0, atol=1e-5)


def test_layers_are_computed_together():
    """Of a given matching the program has no loop: the layers are no steps of a scan."""
    head = head_of()
    outputs, *truth = batch_for(head)
    matching = {"gt_inds": np.zeros((2, 2, 5), np.int32), "enc_gt_inds": np.zeros((2, 5), np.int32)}
    lowered = jax.jit(lambda *x: head.loss(*x, **matching)).lower(outputs, *truth)
    assert "stablehlo.while" not in lowered.as_text()


# The projects' own configs.


def yaml(**changes):
    """A criterion in the words of the projects, of three classes."""
    config = {**configs.DFINE_HEAD["bbox_head"], "num_classes": CLASSES, **changes}
    return {key: value for key, value in config.items() if value is not None}


def test_every_key_of_a_project_has_its_place():
    weights = {"loss_vfl": 2, "loss_bbox": 3, "loss_giou": 4, "loss_fgl": 6, "loss_ddf": 7}
    matcher = {
        "type": "HungarianMatcher",
        "weight_dict": {"cost_class": 8, "cost_bbox": 9, "cost_giou": 10},
        "alpha": 0.3,
        "gamma": 1.5,
    }
    settings = {"alpha": 0.6, "gamma": 2.5, "reg_max": 16, "boxes_weight_format": "iou"}
    head = build_head(yaml(weight_dict=weights, matcher=matcher, **settings))
    losses = (head.loss_cls, head.loss_bbox, head.loss_iou, head.loss_fgl, head.loss_ddf)
    assert [loss.loss_weight for loss in losses] == [2, 3, 4, 6, 7]
    assert (head.loss_cls.alpha, head.loss_cls.gamma, head.loss_cls.detached) == (0.6, 2.5, True)
    assert (head.reg_max, head.boxes_weight_format, head.num_classes) == (16, "iou", CLASSES)
    focal, *others = head.assigner.costs
    assert (focal.alpha, focal.gamma, focal.eps, focal.weight) == (0.3, 1.5, 1e-8, 8)
    assert [cost.weight for cost in others] == [9, 10]


def test_losses_that_a_config_leaves_out():
    head = build_head(yaml(losses=["vfl", "boxes"]))
    assert head.loss_fgl is None
    assert head.loss_ddf is None
    weights = {"loss_vfl": 1, "loss_bbox": 5, "loss_giou": 2, "loss_fgl": 0.15}
    assert build_head(yaml(weight_dict=weights)).loss_ddf is None
    deim = {"type": "DEIMCriterion", "use_uni_set": False, "mal_alpha": 0.5, "gamma": 1.5}
    weights = {"loss_vfl": 1, "loss_mal": 3, "loss_bbox": 5, "loss_giou": 2}
    head = build_head(yaml(**deim, losses=["mal", "boxes"], weight_dict=weights))
    assert (head.loss_cls.alpha, head.loss_cls.gamma, head.loss_cls.loss_weight) == (0.5, 1.5, 3)
    assert not head.use_uni_set


def test_the_cost_of_classes():
    assert isinstance(build_head(yaml()).assigner.costs[0], FocalLossCost)
    softmax = build_head(yaml(use_focal_loss=False)).assigner.costs[0]
    assert type(softmax).__name__ == "ClassificationCost"
    assert build_head(yaml(matcher=None)).assigner == DFINECriterion().assigner


@pytest.mark.long
def test_focal_loss_works():
    """With torch 2 the projects raise there."""
    weights = {"loss_focal": 2, "loss_bbox": 5, "loss_giou": 2}
    config = {"type": "RTDETRCriterion", "reg_max": None}
    head = build_head(yaml(**config, losses=["focal", "boxes"], weight_dict=weights))
    assert head.loss_cls == FocalLoss(alpha=0.75, gamma=2.0, loss_weight=2)
    outputs, *truth = batch_for(head_of())
    losses = head.loss(outputs, *truth)
    assert losses["loss_focal"] > 0
    assert "loss_focal_enc_0" in losses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"losses": ["vfl", "box"]}, "losses must be 'boxes' and one of vfl, mal, focal"),
        ({"losses": ["boxes"]}, "losses must be 'boxes' and one of"),
        ({"weight_dict": {"loss_vfl": 1, "loss_bbox": 5}}, "weight_dict must have loss_giou"),
        ({"weight_dict": {"loss_vlf": 1}}, "no loss 'loss_vlf'. Did you mean 'loss_vfl'?"),
        ({"weight_dict": None}, "come together: no weight_dict"),
        ({"matcher": {"type": "SimOTA"}}, "must be a HungarianMatcher, got 'SimOTA'"),
        ({"matcher": {"cost_class": 2}}, "matcher has no key 'cost_class'"),
        (
            {"matcher": {"weight_dict": {"cost_class": 2}}},
            "weight_dict must have cost_class, cost_",
        ),
        ({"loss_bbox": {"type": "L1Loss"}}, "loss_bbox stands beside weight_dict"),
        ({"eos_coef": 1e-4}, "has no key 'eos_coef'"),
        ({"boxes_weight_format": "diou"}, "boxes_weight_format must be one of 'iou', 'giou', None"),
        ({"reg_max": 5}, "reg_max must be even, got 5"),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_head(yaml(**changes))


# Errors.


def test_outputs_that_do_not_fit():
    head = head_of()
    outputs, *truth = batch_for(head)
    for changed, message in (
        (
            {"cls_scores": outputs.cls_scores[0]},
            "cls_scores must have shape (L, B, Q, 3), got (2, 5",
        ),
        (
            {"bbox_preds": outputs.bbox_preds[:, :, 1:]},
            "bbox_preds must have shape (L=2, B=2, Q=5, 4)",
        ),
        ({"enc_bbox_preds": None}, "enc_bbox_preds is missing, beside enc_cls_scores"),
        (
            {"enc_cls_scores": outputs.enc_cls_scores[:1]},
            "enc_cls_scores must have shape (B=2, P, 3 o",
        ),
        (
            {"dn_cls_scores": outputs.dn_cls_scores[:1]},
            "dn_cls_scores must have shape (L=2, B=2, N, 3",
        ),
        ({"dn_gt_inds": None}, "dn_gt_inds is missing, beside dn_cls_scores"),
        (
            {"dn_cls_scores": None, "dn_bbox_preds": None},
            "dn_cls_scores and dn_bbox_preds are missing, beside dn_gt_inds",
        ),
        (
            {"dn_gt_inds": outputs.dn_gt_inds[:, 1:]},
            "dn_gt_inds must have shape (2, 4), got (2, 3)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(f"RTDETRCriterion: {message}")):
            head.loss(outputs._replace(**changed), *truth)
    with pytest.raises(ValueError, match="loss_cls must use a sigmoid for each class"):
        RTDETRCriterion(loss_cls=CrossEntropyLoss())
