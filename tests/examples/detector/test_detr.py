"""The small DETR: proposals, corrections and attention."""

import jax
import numpy as np
import pytest
from flax import nnx

from detector import detr, heads
from detector.config import read_model

pytestmark = pytest.mark.example


@pytest.mark.long
def test_detr_starts_from_the_best_proposals_and_corrects_them_layer_by_layer():
    head = heads.make_heads(read_model("detr", {}), 3, [8])["bbox_head"]
    transformer = nnx.jit(lambda: detr.Transformer(16, head, rngs=nnx.Rngs(0)))()
    features = np.random.default_rng(0).normal(size=(2, 4, 6, 16)).astype("f4")
    apply = nnx.jit(lambda transformer: transformer([features]))
    outputs = jax.device_get(apply(transformer))
    squares = outputs.enc_bbox_preds * np.array([6, 4, 6, 4])  # Nothing is moved at first.
    np.testing.assert_allclose(squares[1, 8], [2.5, 1.5, detr.SIDE, detr.SIDE], rtol=1e-6)
    best = np.argsort(-outputs.enc_cls_scores[..., 0], axis=1)[:, :4]
    chosen = np.take_along_axis(outputs.enc_bbox_preds, best[..., None], axis=1)
    for boxes in outputs.bbox_preds:
        np.testing.assert_allclose(boxes, chosen, rtol=1e-6)

    # Now every layer moves a box by a tenth of its width to the right and halves its height.
    for estimate in transformer.estimates:
        estimate.boxes.bias[...] = np.array([0.1, 0, 0, np.log(0.5)], "f4")
    x, _, width, height = np.moveaxis(chosen, -1, 0)
    for layer, boxes in enumerate(jax.device_get(apply(transformer)).bbox_preds, start=1):
        np.testing.assert_allclose(boxes[..., 0], x + 0.1 * layer * width, rtol=1e-5)
        np.testing.assert_allclose(boxes[..., 3], height / 2**layer, rtol=1e-5)


@pytest.mark.long
def test_detr_attention_depends_on_relative_places_only():
    """Moving boxes and places together changes nothing; places far from a box have no weight."""
    attention = detr.Attention(16, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = (rng.normal(size=(1, n, 16)).astype("f4") for n in (3, 20))
    places = rng.uniform(0, 8, (1, 20, 2)).astype("f4")
    boxes = np.concatenate([places[:, :3], [[[2, 3]] * 3]], axis=-1).astype("f4")
    expected = attention(x, boxes, memory, places)
    moved = boxes + np.array([16, 32, 0, 0], "f4")
    shift = np.array([16, 32], "f4")
    np.testing.assert_allclose(attention(x, moved, memory, places + shift), expected, atol=1e-3)
    changed = memory.copy()
    changed[:, 10:] += 1
    far = places.copy()
    far[:, 10:] += 50
    np.testing.assert_allclose(
        attention(x, boxes, changed, far), attention(x, boxes, memory, far), atol=1e-6
    )
    assert abs(attention(x, boxes, changed, places) - expected).max() > 1e-3
