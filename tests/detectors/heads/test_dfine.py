"""D-FINE's and DEIM's criteria: the union of the matchings, and what the sides of boxes learn.

What they share with RT-DETR's is tested in test_rtdetr.py.
"""

import functools
import re
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import checkify

from head_cases import CLASSES, CRITERION_ROWS, LAYERS, batch_for, value_and_gradient
from visdet_jax import checked
from visdet_jax.boxes.bins import bin_values
from visdet_jax.detectors import DFINEOutputs, union_of_matchings

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
OF_SIDES = ("corners", "ref_points", "up", "reg_scale")


def head_of(name="DFINECriterion", **changes):
    return CRITERION_ROWS[name].head(**changes)


def without(outputs, *parts):
    """The outputs without those whose names start so."""
    names = [name for name in outputs._fields if name.startswith(parts)]
    return outputs._replace(**dict.fromkeys(names))


# The union.


@pytest.mark.parametrize("sets", [1, 2, 5])
def test_the_union_is_the_box_of_most_matchings_and_of_equals_the_first(sets):
    rng = np.random.default_rng(sets)
    matchings = rng.integers(-1, 4, (sets, 3, 40)).astype(np.int32)
    found = np.asarray(jax.jit(union_of_matchings)(matchings))
    ties = 0
    for place in np.ndindex(found.shape):
        votes = Counter(int(box) for box in matchings[:, *place] if box > 0)
        most = max(votes.values(), default=0)
        best = [box for box, count in votes.items() if count == most]
        ties += len(best) > 1
        assert found[place] == min(best, default=0)
    assert (ties > 0) == (sets > 1)
    assert found.dtype == np.int32


@pytest.mark.long
def test_the_union_holds_the_queries_of_all_matchings():
    head = head_of()
    batch = batch_for(head, (4, 2))
    union = head.union_targets(*batch)
    assert union.gt_inds.shape == (2, 5)
    own = np.asarray(head.targets(*batch).gt_inds)
    assert ((own > 0).any(0) <= np.asarray(union.gt_inds > 0)).all()
    assert (own[0] != own[1]).any()


@pytest.mark.long
def test_boxes_learn_by_the_union_and_classes_by_their_own_matching():
    head = head_of()
    outputs, *truth = batch_for(head, (4, 2))
    outputs = without(outputs, "dn_")
    (_, losses), gradient = value_and_gradient(head)(outputs, *truth)
    union = head.union_targets(outputs, *truth)
    for boxes in (*gradient.bbox_preds, gradient.pre_bbox_preds, gradient.enc_bbox_preds):
        np.testing.assert_array_equal(np.asarray(boxes).any(-1), union.gt_inds > 0)
    close(head.loss(outputs, *truth, union_gt_inds=union.gt_inds), losses)
    nothing = head.loss(outputs, *truth, union_gt_inds=union.gt_inds * 0)
    assert nothing["loss_bbox"] == nothing["loss_giou_enc_0"] == nothing["loss_fgl"] == 0
    close(nothing["loss_vfl"], losses["loss_vfl"])


@pytest.mark.long
@pytest.mark.parametrize("name", ["DFINECriterion", "DEIMCriterion"])
def test_without_the_union_each_layer_learns_by_its_own_matching(name):
    """Its bins too: each layer's losses are those of a decoder of that layer alone."""
    head = head_of(name, use_uni_set=False)
    outputs, *truth = batch_for(head)
    assert not np.array_equal(*head.targets(outputs, *truth).gt_inds)
    losses = head.loss(outputs, *truth)
    outputs = without(outputs, "dn_", "pre_", "enc_")
    for layer, end in enumerate(("_aux_0", "")):
        names = ("cls_scores", "bbox_preds", "corners")
        alone = {name: getattr(outputs, name)[layer : layer + 1] for name in names}
        expected = head.loss(outputs._replace(**alone), *truth)
        assert "loss_fgl" in expected
        assert "loss_ddf" not in expected
        for key, value in expected.items():
            np.testing.assert_allclose(losses[key + end], value, rtol=1e-5, err_msg=key)


# The sides.


@pytest.mark.long
def test_corners_at_the_right_bins_cost_nothing():
    """Distributions that are sure of where the sides lie; the last layer teaches the same."""
    head = head_of(share_matched_indices=True)
    outputs, *truth = batch_for(head)
    outputs = without(outputs, "dn_", "pre_", "enc_")
    union = jax.tree.map(np.asarray, head.union_targets(outputs, *truth))
    values = np.asarray(bin_values(head.reg_max, 0.5, 4.0))
    # Boxes that are `reference + side` of bin 3 on the left and of bin 2 on the other three.
    boxes, size = union.bbox_targets, union.bbox_targets[..., 2:]
    right = np.array([3, 2, 2, 2])
    logits = np.where(np.arange(head.reg_max + 1) == right[:, None], 50.0, 0.0)
    corners = np.broadcast_to(
        logits.reshape(-1), (LAYERS, *boxes.shape[:2], 4 * (head.reg_max + 1))
    )
    unit = size / (4.0 + np.stack([values[3] + values[2], 2 * values[2]]))
    low = boxes[..., :2] - size / 2 + (2.0 + np.array([values[3], values[2]])) * unit
    points = np.concatenate([low, 4.0 * unit], axis=-1)
    points = np.where(union.gt_inds[..., None] > 0, points, 0.5).astype(np.float32)
    pred = np.broadcast_to(boxes, (LAYERS, *boxes.shape))
    exact = outputs._replace(
        bbox_preds=np.where(union.gt_inds[None, ..., None] > 0, pred, outputs.bbox_preds),
        corners=corners.astype(np.float32),
        ref_points=points,
    )
    losses = head.loss(exact, *truth, union_gt_inds=union.gt_inds)
    for name in ("loss_bbox", "loss_fgl", "loss_fgl_aux_0", "loss_ddf_aux_0"):
        np.testing.assert_allclose(losses[name], 0, atol=1e-4, err_msg=name)
    moved = exact._replace(corners=np.roll(exact.corners, 1, axis=-1))
    assert head.loss(moved, *truth, union_gt_inds=union.gt_inds)["loss_fgl"] > 1


@pytest.mark.long
def test_the_last_layer_teaches_and_does_not_learn_from_itself():
    for name, dn_names in (
        ("DFINECriterion", {"loss_ddf_dn_0", "loss_ddf_dn_1"}),
        ("DEIMCriterion", {"loss_ddf_dn_0"}),
    ):
        head = head_of(name)
        outputs, *truth = batch_for(head)
        losses = head.loss(outputs, *truth)
        assert {key for key in losses if "ddf" in key} == {"loss_ddf_aux_0", *dn_names}
        assert losses.get("loss_ddf_dn_1", 0) == 0

    def of_ddf(corners, head=head):
        found = head.loss(outputs._replace(corners=corners), *truth)
        return found["loss_ddf_aux_0"]

    first, last = jax.grad(of_ddf)(outputs.corners)
    assert np.any(first)
    assert not np.any(last)


@pytest.mark.long
def test_losses_of_sides_may_be_left_out():
    outputs, *truth = batch_for(head_of())
    every = head_of().loss(outputs, *truth)
    for changes, left_out in (
        ({"loss_ddf": None}, "ddf"),
        ({"loss_fgl": None}, "fgl"),
    ):
        losses = head_of(**changes).loss(outputs, *truth)
        assert losses.keys() == {key for key in every if left_out not in key}
        close(losses, {key: every[key] for key in losses})
    plain = without(outputs, *OF_SIDES, "dn_corners", "dn_ref_points")
    losses = head_of().loss(plain, *truth)
    assert losses.keys() == {key for key in every if "fgl" not in key and "ddf" not in key}
    close(losses, {key: every[key] for key in losses})


# As other heads.


@pytest.mark.long
def test_export_with_any_number_of_images():
    head = head_of()
    outputs, *truth = batch_for(head)
    outputs = without(outputs, "dn_")
    (images,) = export.symbolic_shape("images")

    def any_images(x, layers=False):
        axis = int(layers)
        dims = [images if i == axis and x.ndim else n for i, n in enumerate(x.shape)]
        return jax.ShapeDtypeStruct(tuple(dims), x.dtype)

    shapes = {
        name: None if x is None else any_images(x, name in ("cls_scores", "bbox_preds", "corners"))
        for name, x in outputs._asdict().items()
    }
    function = jax.jit(lambda *arguments: head.loss(*arguments))
    program = export.export(function, platforms=("cpu", "cuda", "tpu"))(
        DFINEOutputs(**shapes), *map(any_images, truth)
    )
    call = export.deserialize(program.serialize()).call
    close(call(outputs, *truth), head.loss(outputs, *truth))


@pytest.mark.long
def test_checked():
    head = head_of()
    outputs, boxes, labels, shapes = batch_for(head)
    close(
        checked(head).loss(outputs, boxes, labels, shapes),
        head.loss(outputs, boxes, labels, shapes),
    )
    spoilt = outputs._replace(dn_corners=outputs.dn_corners * np.nan)
    with pytest.raises(
        checkify.JaxRuntimeError, match=r"DFINECriterion: dn_corners.*must be finite"
    ):
        checked(head).loss(spoilt, boxes, labels, shapes)
    with pytest.raises(checkify.JaxRuntimeError, match=r"DFINECriterion: .*gt_labels"):
        checked(head).loss(outputs, boxes, labels + CLASSES, shapes)


def test_outputs_that_do_not_fit():
    head = head_of()
    outputs, *truth = batch_for(head)
    for changed, message in (
        (
            {"corners": outputs.corners[..., :-1]},
            "corners must have shape (L=2, B=2, Q=5, 20), got",
        ),
        ({"ref_points": None}, "ref_points is missing: all parts have corners, or none"),
        ({"dn_corners": None}, "dn_corners is missing: all parts have corners, or none"),
        ({"dn_ref_points": outputs.ref_points}, "dn_ref_points must have shape (B=2, N=4, 4), got"),
        ({"up": None}, "up must be a number or an array (1,), got None"),
        ({"reg_scale": np.ones(2)}, "reg_scale must be a number or an array (1,), got shape (2,)"),
        (
            {"enc_cls_scores": outputs.enc_cls_scores[:, 1:]},
            "enc_cls_scores must have shape (B=2, Q=5, 3 or 1), got (2, 4, 3)",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(f"DFINECriterion: {message}")):
            head.loss(outputs._replace(**changed), *truth)
    with pytest.raises(
        ValueError, match=re.escape("union_gt_inds must have shape (2, 5), got (5,)")
    ):
        head.loss(outputs, *truth, union_gt_inds=jnp.zeros(5, jnp.int32))
