"""The small D-FINE: shapes, distributions about the first layer's boxes, denoising queries."""

import jax
import numpy as np
import pytest
from flax import nnx

from detector import detr, dfine, heads
from detector.config import read_model

pytestmark = pytest.mark.example

HEIGHT, WIDTH, CLASSES, BINS = 4, 6, 3, 33
QUERIES = detr.query_count(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def transformer():
    head = heads.make_heads(read_model("dfine", {}), CLASSES, [8])["bbox_head"]
    return nnx.jit(lambda: dfine.Transformer(16, head, rngs=nnx.Rngs(0)))()


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).normal(size=(2, HEIGHT, WIDTH, 16)).astype("f4")


@pytest.fixture(scope="module")
def queries():
    """Of one box in the first image and of two in the second, padded to three."""
    boxes = np.array([[[4, 4, 20, 28]] * 3, [[0, 0, 16, 16], [20, 8, 44, 30], [0] * 4]], "f4")
    batch = {
        "images": np.zeros((2, 8 * HEIGHT, 8 * WIDTH, 3), np.uint8),
        "boxes": boxes,
        "labels": np.array([[1, -1, -1], [0, 2, -1]], np.int32),
    }
    shapes = np.array([[8 * HEIGHT, 8 * WIDTH]] * 2)
    return dfine.denoising_queries(jax.random.key(0), batch, shapes, CLASSES)


@nnx.jit
def apply(transformer, features, *denoising):
    return transformer([features], *denoising)


@pytest.mark.long
def test_dfine_outputs_have_the_shapes_that_the_criterion_reads(transformer, features, queries):
    plain = apply(transformer, features)
    assert plain.cls_scores.shape == (detr.LAYERS, 2, QUERIES, CLASSES)
    assert plain.bbox_preds.shape == (detr.LAYERS, 2, QUERIES, 4)
    assert plain.corners.shape == (detr.LAYERS, 2, QUERIES, 4 * BINS)
    assert plain.ref_points.shape == plain.pre_bbox_preds.shape == (2, QUERIES, 4)
    assert plain.pre_cls_scores.shape == plain.enc_cls_scores.shape == (2, QUERIES, CLASSES)
    assert plain.enc_bbox_preds.shape == (2, QUERIES, 4)
    assert plain.dn_cls_scores is None
    outputs = apply(transformer, features, queries)
    count = queries.labels.shape[1]
    assert count == 2 * 3 * (dfine.NUM_DENOISING // 3)  # Positive and negative, of three boxes.
    assert outputs.dn_cls_scores.shape == (detr.LAYERS, 2, count, CLASSES)
    assert outputs.dn_bbox_preds.shape == (detr.LAYERS, 2, count, 4)
    assert outputs.dn_corners.shape == (detr.LAYERS, 2, count, 4 * BINS)
    assert outputs.dn_ref_points.shape == outputs.dn_pre_bbox_preds.shape == (2, count, 4)
    assert outputs.dn_pre_cls_scores.shape == (2, count, CLASSES)
    np.testing.assert_array_equal(outputs.dn_gt_inds, queries.gt_inds)


@pytest.mark.long
def test_dfine_starts_from_the_best_proposals(transformer, features):
    """Before training no layer moves a box."""
    outputs = jax.device_get(apply(transformer, features))
    for boxes in (*outputs.bbox_preds, outputs.ref_points, outputs.pre_bbox_preds):
        np.testing.assert_allclose(boxes, outputs.enc_bbox_preds, rtol=1e-5)
    best = outputs.enc_cls_scores.max(-1)
    assert (np.diff(best, axis=1) <= 0).all()


@pytest.mark.long
def test_dfine_layers_add_their_corrections_of_the_distributions(transformer, features):
    """With equal corrections the distributions of layer n are n times those of the first."""
    graph, state = nnx.split(transformer)
    changed = nnx.merge(graph, state)
    bias = np.random.default_rng(1).normal(size=4 * BINS).astype("f4")
    for estimate in changed.sides:
        estimate.boxes.bias[...] = bias
    outputs = jax.device_get(apply(changed, features))
    for layer, corners in enumerate(outputs.corners, start=1):
        np.testing.assert_allclose(corners, np.broadcast_to(layer * bias, corners.shape), rtol=1e-5)
    # All layers correct the same boxes: those of the plain head after the first layer.
    np.testing.assert_array_equal(outputs.ref_points, outputs.pre_bbox_preds)
    assert (abs(outputs.bbox_preds[0] - outputs.bbox_preds[1]).max(-1) > 1e-4).all()


@pytest.mark.long
def test_dfine_denoising_queries_stand_in_front(transformer, features, queries):
    """Those of a box start near it, and learn it; those of padding learn nothing or background."""
    outputs = jax.device_get(apply(transformer, features, queries))
    count = queries.labels.shape[1]
    assert queries.attn_mask.shape == (count + QUERIES, count + QUERIES)
    noisy = np.array(jax.nn.sigmoid(queries.box_logits))
    least = dfine.LEAST_SIDE / np.array([WIDTH, HEIGHT])  # of what attention looks at
    assert (noisy[..., 2:] < least).any()  # Those of padding are smaller.
    noisy[..., 2:] = np.maximum(noisy[..., 2:], least)
    np.testing.assert_allclose(outputs.dn_pre_bbox_preds, noisy, rtol=1e-4, atol=1e-6)
    positive = np.asarray(queries.gt_inds) > 0
    assert positive.sum(axis=1).tolist() == [8, 16]  # Eight groups, of one box and of two.
    box = np.array([12, 16, 16, 24]) / np.array([48, 32, 48, 32])  # cx, cy, w, h of the first
    # Corners move by less than half a side: centres by less than that, sides by less than one.
    reach = np.array([0.5, 0.5, 1, 1]) * box[[2, 3, 2, 3]]
    assert (abs(noisy[0, positive[0]] - box) < reach).all()


def test_dfine_queries_do_not_see_denoising_queries(transformer, features, queries):
    """The mask: their outputs are those without denoising, and a group does not see another."""
    plain = jax.device_get(apply(transformer, features))
    outputs = jax.device_get(apply(transformer, features, queries))
    for name in ("cls_scores", "bbox_preds", "corners", "pre_cls_scores", "enc_cls_scores"):
        np.testing.assert_allclose(getattr(outputs, name), getattr(plain, name), atol=1e-5)
    group = 6
    moved = queries._replace(box_logits=queries.box_logits.at[:, :group].add(0.3))
    changed = jax.device_get(apply(transformer, features, moved))
    difference = abs(changed.dn_cls_scores - outputs.dn_cls_scores).max((0, 3))
    assert (difference[:, group:] < 1e-5).all()
    assert (difference[:, :group].max(1) > 1e-4).all()
    # Without the mask they would see them.
    seen = apply(transformer, features, moved._replace(attn_mask=queries.attn_mask & False))
    assert abs(seen.cls_scores - plain.cls_scores).max() > 1e-4
