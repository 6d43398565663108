"""What the heads on anchors share: the image's border, padding, weights of positives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import few
from head_cases import IMAGE, ROWS, batch_for, boxes_for, compiled, outputs_for, shapes_for
from visdet_jax.detectors import build_head


def of_heads(*without):
    """Of every head on anchors but for some."""
    names = [name for name, row in ROWS.items() if row.anchors() and name not in without]
    return pytest.mark.parametrize("name", few(names, ["RetinaHead"]))


every_head = of_heads()
MIDDLE = (10, 6, 34, 28)


def head_with(name, **train_cfg):
    row = ROWS[name]
    return build_head(row.config, {**row.train_cfg, **train_cfg})


def middle_in_both():
    """Ground truth of one box in each of two images."""
    boxes, labels = boxes_for((1, 1), 4)
    boxes[:, 0] = MIDDLE
    return boxes, labels


@pytest.mark.long
@of_heads("VFNetHead")  # Its class loss takes dropped anchors for background, as in mmdet.
def test_no_anchor_inside_the_image(name):
    """mmdet raises; here nothing is learnt and nothing is NaN."""
    head = head_with(name, allowed_border=0)
    outputs, truth = outputs_for(head), middle_in_both()
    tiny = np.array([[4, 4], IMAGE])
    targets = head.targets(outputs, *truth, tiny, shapes_for(2))
    np.testing.assert_array_equal(targets.gt_inds[0], -2)
    np.testing.assert_array_equal(targets.label_weights[0], 0)
    assert (targets.gt_inds[1] > 0).any()
    losses, gradient = compiled(head)(outputs, *truth, tiny, shapes_for(2))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((losses, gradient)))
    assert losses[ROWS[name].key("loss_cls")] > 0
    assert any(np.any(x) for x in gradient.cls_scores)
    assert not any(np.any(x[0]) for x in jax.tree.leaves(gradient))
    both = compiled(head)(outputs, *truth, np.array([[4, 4], [4, 4]]), shapes_for(2))
    assert not any(map(np.any, jax.tree.leaves(both)))


@every_head
def test_pad_shapes_drop_cells(name):
    head = ROWS[name].head()
    pad_shapes = np.array([[32, 24], [17, 48]])
    targets = head.targets(outputs_for(head), *middle_in_both(), shapes_for(2), pad_shapes)
    dropped = np.asarray(targets.gt_inds == -2).reshape(2, -1, head.num_base_priors)[..., 0]
    fine = dropped[:, :24].reshape(2, 4, 6)
    np.testing.assert_array_equal(fine[0], np.tile(np.arange(6) >= 3, (4, 1)))
    np.testing.assert_array_equal(fine[1], np.tile(np.arange(4) >= 3, (6, 1)).T)
    coarse = dropped[:, 24:].reshape(2, 2, 3)
    np.testing.assert_array_equal(coarse[0], np.tile([False, False, True], (2, 1)))
    assert not coarse[1].any()
    assert not np.asarray(targets.label_weights)[np.asarray(targets.gt_inds) == -2].any()


def test_image_shapes_are_the_finest_maps_unless_given():
    head = head_with("ATSSHead", allowed_border=0)
    outputs, truth = outputs_for(head), middle_in_both()
    given = head.targets(outputs, *truth, shapes_for(2), shapes_for(2))
    for found in (head.targets(outputs, *truth), head.targets(outputs, *truth, shapes_for(2))):
        jax.tree.map(np.testing.assert_array_equal, found, given)
    assert (given.gt_inds == -2).any()


@pytest.mark.long
def test_label_weights_of_positives():
    row = ROWS["ATSSHead"]
    batch = batch_for(row.head(), (1, 0))
    heavy = head_with("ATSSHead", pos_weight=2.5)
    targets = heavy.targets(*batch)
    expected = np.where(np.asarray(targets.gt_inds) > 0, 2.5, 1)
    assert 2.5 in expected
    np.testing.assert_array_equal(targets.label_weights, expected)
    losses, plain = (compiled(head)(*batch)[0] for head in (heavy, row.head()))
    assert losses["loss_cls"] > plain["loss_cls"]
    assert losses["loss_bbox"] == plain["loss_bbox"]


@every_head
def test_what_targets_learn(name):
    head = ROWS[name].head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((1, 0), 4)
    boxes[0, 0], labels[0, 0] = MIDDLE, 2
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels))
    positive = targets.gt_inds == 1
    assert positive[0].any()
    assert not positive[1].any()
    np.testing.assert_array_equal(targets.labels[positive], 2 if ROWS[name].has_classes() else 0)
    np.testing.assert_array_equal(targets.label_weights, targets.gt_inds >= 0)
    if targets.centerness is not None:
        assert ((targets.centerness > 0) == positive).all()


@every_head
def test_vmap_over_the_border_and_the_weight_of_positives(name):
    row = ROWS[name]
    batch = batch_for(row.head())

    def weights(border, pos_weight):
        head = head_with(name, allowed_border=border, pos_weight=pos_weight)
        return head.targets(*batch).label_weights

    borders, pos_weights = [-1.0, 0.0, 6.0], [-1.0, 2.0, 0.0]
    swept = jax.jit(jax.vmap(weights))(jnp.array(borders), jnp.array(pos_weights))
    for found, border, pos_weight in zip(swept, borders, pos_weights, strict=True):
        head = head_with(name, allowed_border=border, pos_weight=pos_weight)
        np.testing.assert_array_equal(found, head.targets(*batch).label_weights)
    dropped = [(np.asarray(found) == 0).sum() for found in swept]
    assert dropped[0] < dropped[2] < dropped[1]


@every_head
@pytest.mark.parametrize("key", ["allowed_border", "pos_weight"])
def test_numbers_that_mean_nothing(name, key):
    with pytest.raises(ValueError, match=f"{name}: {key} must be finite, got nan"):
        head_with(name, **{key: float("nan")})


@of_heads("TOODHead")  # Its outputs are boxes: the coder has no effect.
def test_clip_border_of_the_coder(name):
    coder = {"type": type(ROWS[name].head().bbox_coder).__name__, "clip_border": False}
    head = ROWS[name].head(bbox_coder=coder)
    outputs = outputs_for(head)
    jax.tree.map(
        np.testing.assert_array_equal, head.decode(outputs, shapes_for(2)), head.decode(outputs)
    )
    assert head.decode(outputs).boxes.max() > max(IMAGE)
    assert ROWS[name].head().decode(outputs, shapes_for(2)).boxes.max() <= max(IMAGE)
