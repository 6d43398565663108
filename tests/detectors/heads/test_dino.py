"""What only DINO's and Grounding DINO's heads do: encoders, denoising queries, texts."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from head_cases import CLASSES, boxes_for, shapes_for, total
from visdet_jax import checked
from visdet_jax.detectors import DETROutputs, build_head, dn_queries

DEVICES, QUERIES, TOKENS, LAYERS = 8, 5, 6, 2
COUNTS = (3, 0, 1, 0, 2, 1, 4, 0)
HEADS = {
    "DINOHead": {"type": "DINOHead", "num_classes": CLASSES},
    "GroundingDINOHead": {
        "type": "GroundingDINOHead",
        "num_classes": CLASSES,
        "contrastive_cfg": {"max_text_len": TOKENS},
    },
}
NAMES = [
    *(
        f"{layer}{part}loss_{name}"
        for part in ("", "dn_")
        for layer in ("", "d0.")
        for name in ("cls", "bbox", "iou")
    ),
    *(f"enc_loss_{name}" for name in ("cls", "bbox", "iou")),
]
AXES = DETROutputs(1, 1, 0, 0, 1, 1, 0)  # Of the images.
FLOATS = AXES._replace(dn_gt_inds=None)
close = functools.partial(chex.assert_trees_all_close, rtol=1e-12, atol=1e-14)
every_head = pytest.mark.parametrize("name", HEADS)


def batch(name, dtype=np.float64, padding=np.nan):
    """(outputs, positional arguments, keywords with an axis of images) of eight images."""
    rng = np.random.default_rng(0)
    boxes, labels = boxes_for(COUNTS, 4, dtype)
    boxes = np.where(labels[..., None] < 0, padding, boxes).astype(dtype)
    shapes = shapes_for(DEVICES)
    queries = dn_queries(
        jax.random.key(0),
        *(boxes, labels, shapes),
        num_classes=CLASSES,
        num_matching_queries=QUERIES,
        num_groups=2,
    )
    channels = CLASSES if name == "DINOHead" else TOKENS

    def outputs(*shape):
        center, size = rng.uniform(0.2, 0.8, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))
        logits = rng.normal(0, 1, (*shape, channels)).astype(dtype)
        return logits, np.concatenate([center, size], axis=-1).astype(dtype)

    slots = queries.gt_inds.shape[1]
    parts = [
        outputs(LAYERS, DEVICES, QUERIES),
        outputs(DEVICES, QUERIES + 2),
        outputs(LAYERS, DEVICES, slots),
    ]
    keywords = {}
    if name == "GroundingDINOHead":
        maps = rng.integers(0, 2, (*labels.shape, TOKENS)).astype(dtype)
        keywords["positive_maps"] = np.where(labels[..., None] < 0, padding, maps).astype(dtype)
        keywords["text_token_mask"] = np.arange(TOKENS) < rng.integers(2, TOKENS, (DEVICES, 1))
    gt_inds = np.asarray(queries.gt_inds)
    return (
        DETROutputs(*(x for part in parts for x in part), gt_inds),
        (boxes, labels, shapes),
        keywords,
    )


def head_of(name, **changes):
    return build_head(HEADS[name] | changes)


def value_and_gradient(head, axis_name=None):
    """A function of a batch: ((sum, losses), gradient by the outputs that are floats)."""

    def run(outputs, truth, keywords):
        def value(floats):
            given = floats._replace(dn_gt_inds=outputs.dn_gt_inds)
            losses = head.loss(given, *truth, **keywords, axis_name=axis_name)
            return total(losses), losses

        return jax.value_and_grad(value, has_aux=True)(outputs._replace(dn_gt_inds=None))

    return run


@functools.cache
def on_one_device(name):
    return jax.device_get(jax.jit(value_and_gradient(head_of(name)))(*batch(name)))


@pytest.mark.long
@every_head
def test_names_and_padding(name, x64):
    (_, losses), gradient = on_one_device(name)
    assert sorted(losses) == sorted(NAMES)
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    chex.assert_tree_all_finite(gradient)
    plausible = batch(name, padding=7.0)
    close(jax.jit(value_and_gradient(head_of(name)))(*plausible)[0][1], losses)


@pytest.mark.long
@every_head
def test_denoising_queries_learn_the_boxes_of_their_layout(name, x64):
    """Those that learn nothing have no gradient; negatives learn only that they are background."""
    _, gradient = on_one_device(name)
    gt_inds = batch(name)[0].dn_gt_inds
    learns_class = np.asarray(gradient.dn_cls_scores).any(-1)
    learns_box = np.asarray(gradient.dn_bbox_preds).any(-1)
    for layer in range(LAYERS):
        np.testing.assert_array_equal(learns_class[layer], gt_inds >= 0)
        np.testing.assert_array_equal(learns_box[layer], gt_inds > 0)


@pytest.mark.long
def test_the_encoder_learns_classes_and_deformable_detr_s_one_class(x64):
    outputs, truth, keywords = batch("DINOHead")
    losses = head_of("DINOHead").loss(outputs, *truth, **keywords)
    one_class = (truth[0], np.minimum(truth[1], 0), truth[2])
    of_one_class = head_of("DINOHead").loss(outputs, *one_class, **keywords)
    costs = {"assigner": head_of("DINOHead").assigner}
    deformable = build_head(
        {"type": "DeformableDETRHead", "num_classes": CLASSES, "loss_cls": {"type": "FocalLoss"}},
        costs,
    ).loss(outputs, *truth, **keywords)
    assert losses["enc_loss_cls"] != of_one_class["enc_loss_cls"]
    for key in deformable:
        close(deformable[key], (of_one_class if key.startswith("enc_") else losses)[key])


@pytest.mark.long
@every_head
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_jit_over_sharded_images(name, axis_type, x64):
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(axis_type,))

    def put(x, axis):
        spec = P(*[None] * axis, "data")
        return jax.device_put(x, NamedSharding(mesh, spec))

    outputs, truth, keywords = batch(name)
    spread = (
        DETROutputs(*map(put, outputs, AXES)),
        tuple(put(x, 0) for x in truth),
        {key: put(x, 0) for key, x in keywords.items()},
    )
    with jax.set_mesh(mesh):
        found = jax.jit(value_and_gradient(head_of(name)))(*spread)
    close(jax.device_get(found), on_one_device(name))


@pytest.mark.long
@every_head
def test_the_mean_of_the_devices_is_the_whole_batch(name, x64):
    axes = (AXES, 0, 0)
    outputs, truth, keywords = batch(name)
    image = (
        DETROutputs(*(np.expand_dims(x, axis + 1) for x, axis in zip(outputs, AXES, strict=True))),
        *jax.tree.map(lambda x: x[:, None], (truth, keywords)),
    )
    value = jax.vmap(value_and_gradient(head_of(name), "data"), axes, (0, FLOATS), axis_name="data")
    (_, losses), gradient = jax.jit(value)(*image)
    (_, expected), expected_gradient = on_one_device(name)
    close(jax.tree.map(lambda x: x.mean(), losses), expected)
    gradient = jax.tree.map(lambda x, axis: np.squeeze(x, axis + 1) / DEVICES, gradient, FLOATS)
    close(gradient, expected_gradient)


@pytest.mark.long
@every_head
def test_half_floats_are_computed_in_float32(name):
    outputs, truth, keywords = batch(name, np.float32)
    gt_inds, floats = outputs.dn_gt_inds, outputs._replace(dn_gt_inds=None)
    half = jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.bfloat16), floats)
    rounded = jax.tree.map(lambda x: x.astype(np.float32), half)
    half, rounded = (x._replace(dn_gt_inds=gt_inds) for x in (half, rounded))
    run = jax.jit(value_and_gradient(head_of(name)))
    (_, losses), gradient = run(half, truth, keywords)
    (_, expected), _ = run(rounded, truth, keywords)
    assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(gradient))
    chex.assert_trees_all_close(losses, expected, rtol=1e-5)


class TestGroundingDINO:
    name = "GroundingDINOHead"

    @pytest.mark.long
    def test_logits_without_a_token_may_be_anything(self, x64):
        outputs, truth, keywords = batch(self.name)
        mask = keywords["text_token_mask"]
        (_, expected), expected_gradient = on_one_device(self.name)
        masks = {"cls_scores": mask[None, :, None], "enc_cls_scores": mask[:, None]}
        masks["dn_cls_scores"] = masks["cls_scores"]
        for anything in (-np.inf, np.nan):
            logits = {k: np.where(m, getattr(outputs, k), anything) for k, m in masks.items()}
            found = jax.jit(value_and_gradient(head_of(self.name)))(
                outputs._replace(**logits), truth, keywords
            )
            close(jax.device_get(found)[0][1], expected)
            close(jax.device_get(found)[1], expected_gradient)

    @pytest.mark.long
    def test_the_class_loss_is_divided_by_queries(self, x64):
        """Twice the tokens of the same logits and maps make twice the loss."""
        outputs, truth, keywords = batch(self.name)
        head = head_of(self.name)
        inds = head.targets(
            outputs, *truth, **{k: keywords[k] for k in ("positive_maps", "text_token_mask")}
        ).gt_inds
        wide = head_of(self.name, contrastive_cfg={"max_text_len": 2 * TOKENS})
        double = jax.tree.map(
            lambda x: np.concatenate([x, x], -1) if x.shape[-1] == TOKENS else x, outputs
        )
        options = {
            "positive_maps": np.concatenate([keywords["positive_maps"]] * 2, -1),
            "text_token_mask": np.concatenate([keywords["text_token_mask"]] * 2, -1),
            "gt_inds": inds,
        }
        losses = wide.loss(double, *truth, **options)
        expected = head.loss(outputs, *truth, **keywords, gt_inds=inds)
        for key in ("loss_cls", "d0.loss_cls", "dn_loss_cls"):
            np.testing.assert_allclose(losses[key], 2 * expected[key], 1e-12)

    def test_decode_gives_tokens_or_classes(self):
        outputs, truth, _ = batch(self.name, np.float32)
        head = head_of(self.name)
        tokens = head.decode(outputs, truth[2])
        assert tokens.scores.shape == (DEVICES, QUERIES, TOKENS)
        maps = np.zeros((3, TOKENS), np.float32)
        maps[0, 1], maps[1, 2:4] = 1, 1
        classes = head.decode(outputs, truth[2], maps)
        np.testing.assert_allclose(classes.scores[..., 0], tokens.scores[..., 1], 1e-6)
        np.testing.assert_allclose(classes.scores[..., 1], tokens.scores[..., 2:4].mean(-1), 1e-6)
        assert (classes.scores[..., 2] == 0).all()
        with pytest.raises(ValueError, match=r"token_maps must have shape \(C, 6\), got \(6,\)"):
            head.decode(outputs, truth[2], maps[0])
        found = head.detect(outputs, truth[2])
        best = np.argsort(-tokens.scores.max(-1), axis=1, kind="stable")
        np.testing.assert_array_equal(found.indices, best)
        every = np.arange(DEVICES)[:, None]
        np.testing.assert_array_equal(found.labels, tokens.scores.argmax(-1)[every, best])
        found = head.detect(outputs, truth[2], maps)
        scores = np.sort(classes.scores.reshape(DEVICES, -1))[:, ::-1]
        np.testing.assert_array_equal(found.scores, scores)

    def test_fewer_tokens_than_the_longest_text(self, x64):
        outputs, truth, keywords = batch(self.name)
        short = keywords | {"text_token_mask": keywords["text_token_mask"][:, : TOKENS - 1]}
        losses = head_of(self.name).loss(outputs, *truth, **short)
        close(losses, on_one_device(self.name)[0][1])

    @pytest.mark.long
    def test_no_box_at_all(self):
        outputs, truth, keywords = batch(self.name, np.float32)
        none = (truth[0][:, :0], truth[1][:, :0], truth[2])
        outputs = outputs._replace(dn_cls_scores=None, dn_bbox_preds=None, dn_gt_inds=None)
        maps = {"positive_maps": keywords["positive_maps"][:, :0]}
        mask = {"text_token_mask": keywords["text_token_mask"]}
        losses = head_of(self.name).loss(outputs, *none, **maps, **mask)
        assert losses["loss_bbox"] == losses["loss_iou"] == 0
        assert losses["loss_cls"] > 0

    @pytest.mark.long
    def test_checked_looks_at_maps_and_at_logits_of_tokens(self):
        outputs, truth, keywords = batch(self.name, np.float32)
        logits = np.where(keywords["text_token_mask"][None, :, None], outputs.cls_scores, -np.inf)
        outputs = outputs._replace(cls_scores=logits)
        found = checked(head_of(self.name)).loss(outputs, *truth, **keywords)
        close(found["loss_bbox"], head_of(self.name).loss(outputs, *truth, **keywords)["loss_bbox"])
        wrong = keywords | {"positive_maps": keywords["positive_maps"] + 5}
        with pytest.raises(checkify.JaxRuntimeError, match="positive_maps"):
            checked(head_of(self.name)).loss(outputs, *truth, **wrong)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"positive_maps": np.zeros((8, 4, 5))}, r"positive_maps must have shape \(8, 4, 6\)"),
            (
                {"text_token_mask": np.zeros((8, 9))},
                r"text_token_mask must have shape \(8, 6\) or fewer tokens, got \(8, 9\)",
            ),
        ],
    )
    def test_errors(self, change, message):
        outputs, truth, keywords = batch(self.name, np.float32)
        with pytest.raises(ValueError, match=f"GroundingDINOHead: {message}"):
            head_of(self.name).loss(outputs, *truth, **keywords | change)

    def test_losses_that_do_not_fit(self):
        with pytest.raises(ValueError, match="loss_cls gets maps of tokens"):
            head_of(self.name, loss_cls={"type": "VarifocalLoss"})
        with pytest.raises(ValueError, match="loss_cls must use a sigmoid"):
            head_of(self.name, loss_cls={"type": "CrossEntropyLoss"})


def test_denoising_outputs_and_their_layout_come_together():
    outputs, truth, _ = batch("DINOHead", np.float32)
    head = head_of("DINOHead")
    for name in ("dn_bbox_preds", "dn_gt_inds"):
        with pytest.raises(ValueError, match=f"DINOHead: {name} is missing, beside dn_cls_scores"):
            head.loss(outputs._replace(**{name: None}), *truth)
    wrong = outputs._replace(dn_gt_inds=outputs.dn_gt_inds[:, :3])
    with pytest.raises(ValueError, match=r"DINOHead: dn_gt_inds must have shape \(8, 16\)"):
        head.loss(wrong, *truth)
