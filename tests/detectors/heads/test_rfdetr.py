"""RF-DETR's criterion: groups, its class losses, masks at points.

What it shares with RT-DETR's is tested in test_rtdetr.py.
"""

import functools
import re

import chex
import jax
import numpy as np
import pytest

from head_cases import CLASSES, CRITERION_ROWS, batch_for, compiled
from visdet_jax import configs
from visdet_jax.detectors import FocalLossCost, Instances, MaskPoints, build_head

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
COEFFICIENTS = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}
OF_MASKS = {"loss_mask_ce": 5.0, "loss_mask_dice": 5.0}


def head_of(**changes):
    return CRITERION_ROWS["RFDETRCriterion"].head(**changes)


def of_project(**changes):
    """The arguments of the project's SetCriterion, for three classes."""
    config = {**configs.RFDETR_HEAD["bbox_head"], "num_classes": CLASSES, "group_detr": 1}
    return config | changes


def with_masks():
    matcher = {"cost_class": 2, "cost_bbox": 5, "cost_giou": 2}
    matcher |= {"cost_mask_ce": 5, "cost_mask_dice": 5, "mask_point_sample_ratio": 4}
    return build_head(
        of_project(
            losses=["labels", "boxes", "cardinality", "masks"],
            weight_dict=COEFFICIENTS | OF_MASKS,
            matcher=matcher,
        )
    )


def masks_for(outputs, boxes, labels):
    """(outputs with masks, masks of the boxes with anything in the padding)"""
    rng = np.random.default_rng(1)
    shape = outputs.cls_scores.shape[:-1]
    masks = {"mask_preds": (*shape, 8, 12), "enc_mask_preds": (*shape[1:], 8, 12)}
    masks = {name: rng.normal(0, 2, size).astype(np.float32) for name, size in masks.items()}
    y, x = np.mgrid[:32, :48] + 0.5
    x1, y1, x2, y2 = np.moveaxis(np.nan_to_num(boxes)[..., None, None], 2, 0)
    inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
    truth = np.where(labels[..., None, None] < 0, np.nan, inside).astype(np.float32)
    return outputs._replace(**masks), truth


# Groups.


@pytest.mark.long
@pytest.mark.parametrize("sum_group_losses", [False, True])
def test_each_group_is_a_criterion_of_its_own(sum_group_losses):
    head, one = head_of(group_detr=2, sum_group_losses=sum_group_losses), head_of()
    outputs, *truth = batch_for(head)
    other = jax.tree.map(lambda x: np.roll(x, 1, axis=-1)[..., ::-1, :].copy(), outputs)
    both = jax.tree.map(lambda *x: np.concatenate(x, axis=-2), outputs, other)
    losses = head.loss(both, *truth)
    groups = [compiled(one)(x, *truth)[0] for x in (outputs, other)]
    factor = 1 if sum_group_losses else 0.5
    close(losses, {key: factor * (groups[0][key] + groups[1][key]) for key in losses})
    found = np.asarray(head.targets(both, *truth).gt_inds)
    assert (np.sort(found[..., :5]) == np.sort(found[..., 5:])).all()
    # Outside of training they are one group.
    close(head.loss(both, *truth, training=False), one.loss(both, *truth))


def test_queries_that_are_no_groups_of_equal_size():
    head = head_of(group_detr=2)
    message = "RFDETRCriterion: 5 queries are no 2 groups of equal size"
    with pytest.raises(ValueError, match=message):
        head.loss(*batch_for(head))


def test_class_costs_of_certain_logits_are_finite():
    """rf-detr computes them from logits. With a logarithm of 0 no query would be matched there."""
    logits = np.array([[-1e4], [-300.0], [0.0], [1e4]], np.float32)
    cost = FocalLossCost(eps=0.0)(Instances(scores=logits), Instances(labels=np.zeros(1, np.int32)))
    expected = [0.25 * 1e4, 0.25 * 300, (0.25 - 0.75) / 4 * np.log(2), -0.75 * 1e4]
    np.testing.assert_allclose(cost[:, 0], expected, rtol=1e-6)


# The class losses.


def test_the_class_loss_of_a_config():
    def loss_of(**changes):
        plain = of_project(ia_bce_loss=False, focal_alpha=0.3)
        head = build_head(plain | changes)
        return type(head.loss_cls).__name__, head.loss_cls, head.relative_quality

    kind, loss, relative = loss_of()
    assert (kind, loss.alpha, loss.gamma, relative) == ("FocalLoss", 0.3, 2.0, False)
    kind, loss, relative = loss_of(use_varifocal_loss=True)
    assert (kind, loss.alpha, loss.detached, relative) == ("VarifocalLoss", 0.7, False, False)
    kind, loss, relative = loss_of(use_position_supervised_loss=True)
    assert (kind, loss.alpha, loss.beta, relative) == ("QualityFocalLoss", 0.3, 2.0, True)
    kind, loss, relative = loss_of(use_position_supervised_loss=True, ia_bce_loss=True)
    assert (kind, loss.alpha, loss.gamma, relative) == ("IoUAwareBCELoss", 0.3, 2.0, False)


def test_a_positive_of_varifocal_loss_has_an_iou():
    """A matched query whose box does not overlap is a negative, as in rf-detr."""
    head = head_of(loss_cls={"type": "VarifocalLoss"})
    outputs, *truth = batch_for(head)
    outputs = outputs._replace(bbox_preds=outputs.bbox_preds + np.float32(7))
    first = (np.arange(5, dtype=np.int32) == 0).astype(np.int32)
    matched = np.broadcast_to(first, outputs.cls_scores.shape[:-1])
    far, nothing = (head.loss(outputs, *truth, gt_inds=x) for x in (matched, 0 * matched))
    assert far["loss_bbox"] > nothing["loss_bbox"] == 0
    np.testing.assert_allclose(far["loss_ce"], nothing["loss_ce"], rtol=1e-6)


# Masks.


@pytest.mark.long
def test_masks_at_random_points():
    head = with_masks()
    outputs, boxes, labels, shapes = batch_for(head)
    outputs, gt_masks = masks_for(outputs, boxes, labels)
    run = jax.jit(jax.value_and_grad(lambda outputs, **points: total_of(head, outputs, **points)))
    truth = {"boxes": boxes, "labels": labels, "shapes": shapes, "gt_masks": gt_masks}
    first, again, other = (run(outputs, **truth, key=jax.random.key(seed)) for seed in (0, 0, 1))
    close(first, again)
    assert first[0] != other[0]
    for value, gradient in (first, other):
        assert np.isfinite(value)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
    matched = head.targets(
        outputs, boxes, labels, shapes, gt_masks=gt_masks, key=jax.random.key(0)
    ).gt_inds
    learns = np.asarray(first[1].mask_preds).any((-1, -2))
    np.testing.assert_array_equal(learns, matched > 0)


def total_of(head, outputs, boxes, labels, shapes, **options):
    return sum(head.loss(outputs, boxes, labels, shapes, **options).values())


@pytest.mark.long
def test_masks_that_are_right_cost_little():
    head = with_masks()
    outputs, boxes, labels, shapes = batch_for(head)
    outputs, gt_masks = masks_for(outputs, boxes, labels)
    options = {"gt_masks": gt_masks, "key": jax.random.key(0)}
    options["gt_inds"] = head.targets(outputs, boxes, labels, shapes, **options).gt_inds
    small = np.nan_to_num(gt_masks)[:, :, 2::4, 2::4]  # The middles of 4 x 4 pixels.
    own = small[np.arange(2)[:, None], np.maximum(options["gt_inds"] - 1, 0)]
    right = outputs._replace(mask_preds=np.where(own > 0.5, 4.0, -4.0).astype(np.float32))
    good, bad = (head.loss(x, boxes, labels, shapes, **options) for x in (right, outputs))
    assert good["loss_mask_dice"] < 0.5 * bad["loss_mask_dice"]


@pytest.mark.long
def test_masks_that_do_not_fit():
    head = with_masks()
    outputs, boxes, labels, shapes = batch_for(head)
    masked, gt_masks = masks_for(outputs, boxes, labels)
    options = {"gt_masks": gt_masks, "key": jax.random.key(0)}
    for given, changes, error, message in (
        (outputs, {}, TypeError, "mask_preds must be an array"),
        (masked, {"key": None}, ValueError, "give a key, or the points"),
        (masked, {"gt_masks": None}, TypeError, "gt_masks must be an array"),
        (masked, {"gt_masks": gt_masks[0]}, ValueError, "gt_masks must have shape (2, 4, H, W)"),
        (
            masked,
            {"gt_masks": gt_masks[:, :1]},
            ValueError,
            "gt_masks must have shape (2, 4, H, W)",
        ),
        (
            masked._replace(enc_mask_preds=masked.mask_preds),
            {},
            ValueError,
            "enc_mask_preds must have shape (B=2, P=5, h=8, 12), got (2, 2, 5, 8, 12)",
        ),
        (
            masked,
            {"points": MaskPoints(*np.zeros((3, 3, 2, 2), np.float32))},
            ValueError,
            "candidates must have shape",
        ),
    ):
        with pytest.raises(error, match=re.escape(message)):
            head.loss(given, boxes, labels, shapes, **options | changes)


# The project's arguments.


def test_weights_of_single_layers_are_those_of_all():
    weights = COEFFICIENTS | {f"{name}_{i}": x for name, x in COEFFICIENTS.items() for i in (0, 1)}
    weights |= {f"{name}_enc": x for name, x in COEFFICIENTS.items()}
    assert build_head(of_project(weight_dict=weights)) == build_head(of_project())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_dict": COEFFICIENTS | {"loss_ce_0": 2.0}}, "one weight for all layers"),
        ({"weight_dict": COEFFICIENTS | {"loss_mask": 2.0}}, "no loss 'loss_mask'"),
        ({"weight_dict": {"loss_ce": 1.0}}, "weight_dict must have loss_bbox, got loss_ce"),
        ({"losses": ["labels", "box"]}, "losses has no 'box'"),
        ({"losses": ["boxes"]}, "losses must have 'labels' and 'boxes'"),
        ({"matcher": {"cost": 2}}, "matcher has no key 'cost'"),
        ({"eos_coef": 0.1}, "RFDETRCriterion has no key 'eos_coef'"),
        (
            {"matcher": {"mask_point_sample_ratio": 8}, "mask_point_sample_ratio": 4},
            "mask_point_sample_ratio must be the same",
        ),
    ],
)
def test_configs_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build_head(of_project(**changes))


def test_the_losses_of_masks_come_together():
    with pytest.raises(ValueError, match="loss_mask_ce and loss_mask_dice come together"):
        head_of(loss_mask_dice={"type": "DiceLoss"})
