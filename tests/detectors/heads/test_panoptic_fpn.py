"""The semantic branch of Panoptic FPN: mmdet 3.3.0's numbers, classes, sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from golden.read_heads import read
from visdet_jax.detectors import PanopticFPNHead, build_detector, build_head

ARRAYS, CONFIG = read("panoptic_fpn")
# Its configs have an `ignore_index`, of which `CrossEntropyLoss` warns that it counts in the mean.
pytestmark = pytest.mark.filterwarnings("ignore:CrossEntropyLoss. ignored labels count")
SMALL = {"num_things_classes": 3, "num_stuff_classes": 2}
every_case = pytest.mark.parametrize("key", CONFIG["cases"])


def value_and_gradient(key, dtype):
    head = build_head(CONFIG["cases"][key]["head"])
    pred, gt = ARRAYS[f"{key}_pred"].astype(dtype), ARRAYS[f"{key}_gt"]
    return jax.value_and_grad(lambda pred: head.loss(pred, gt)["loss_seg"])(pred)


@every_case
def test_float64(key, x64):
    value, gradient = value_and_gradient(key, np.float64)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, ARRAYS[f"{key}_exp"], 1e-9)
    expected = ARRAYS[f"{key}_grad"]
    np.testing.assert_allclose(gradient, expected, 1e-9, 1e-12 * np.abs(expected).max())


@every_case
def test_float32(key):
    value, gradient = value_and_gradient(key, np.float32)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, ARRAYS[f"{key}_exp"], 1e-6)
    expected = ARRAYS[f"{key}_grad"]
    np.testing.assert_allclose(gradient, expected, 1e-5, 1e-6 * np.abs(expected).max())


def test_things_are_one_class_after_the_stuff():
    labels = np.arange(-1, 7)[None, None].repeat(4, 1).repeat(4, 2)
    targets = PanopticFPNHead(**SMALL).targets(labels)
    np.testing.assert_array_equal(targets, [[[-1, 2, 2, 2, 0, 1, 5, 6]]])
    narrow = PanopticFPNHead(**SMALL).targets(labels.astype(np.int8))
    np.testing.assert_array_equal(narrow, targets)
    unsigned = np.full((1, 4, 4), 255, np.uint8)
    np.testing.assert_array_equal(PanopticFPNHead(**SMALL).targets(unsigned), [[[255]]])


def test_pixels_that_fill_no_cell_are_left_out():
    labels = np.zeros((1, 19, 22), int)
    assert PanopticFPNHead(**SMALL).targets(labels).shape == (1, 4, 5)
    assert PanopticFPNHead(**SMALL, start_level=1).targets(labels).shape == (1, 2, 2)


def test_ignored_pixels_are_not_read_and_count():
    head = build_head({"type": "PanopticFPNHead", **SMALL})
    gt = np.full((1, 8, 8), -1)
    gt[0, 0, 0] = 1
    pred = np.full((1, 2, 2, 3), np.nan, np.float32)
    pred[0, 0, 0] = 0
    np.testing.assert_allclose(head.loss(pred, gt)["loss_seg"], np.log(3) / 4, 1e-6)
    gt[:] = -1
    assert head.loss(pred, gt)["loss_seg"] == 0


def test_half_floats_are_computed_in_float32():
    head = PanopticFPNHead(**SMALL)
    gt = np.random.default_rng(0).integers(0, 5, (2, 16, 16))
    half = jnp.asarray(np.random.default_rng(1).normal(0, 1, (2, 3, 3, 3)), jnp.bfloat16)
    value, gradient = jax.value_and_grad(lambda pred: head.loss(pred, gt)["loss_seg"])(half)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_array_equal(value, head.loss(half.astype(jnp.float32), gt)["loss_seg"])


def batch():
    rng = np.random.default_rng(0)
    return rng.normal(0, 1, (4, 3, 3, 3)).astype(np.float32), rng.integers(0, 5, (4, 16, 16))


def test_vmap_and_meshes_give_the_mean_over_the_images():
    head = PanopticFPNHead(**SMALL)
    pred, gt = batch()
    expected = head.loss(pred, gt)["loss_seg"]
    alone = jax.vmap(lambda pred, gt: head.loss(pred[None], gt[None])["loss_seg"])(pred, gt)
    np.testing.assert_allclose(alone.mean(), expected, 1e-6)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])

    def of_device(pred, gt):
        return jax.lax.pmean(head.loss(pred, gt)["loss_seg"], "data")

    mapped = jax.shard_map(of_device, mesh=mesh, in_specs=P("data"), out_specs=P())
    np.testing.assert_allclose(jax.jit(mapped)(pred, gt), expected, 1e-6)
    sharded = jax.device_put((pred, gt), NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(jax.jit(head.loss)(*sharded)["loss_seg"], expected, 1e-6)


def test_extreme_logits_are_finite():
    head, (pred, gt) = PanopticFPNHead(**SMALL), batch()
    value, gradient = jax.value_and_grad(lambda x: head.loss(x, gt)["loss_seg"])(1e4 * pred)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_equal_heads_share_one_trace():
    traces = []

    @jax.jit
    def loss(head, pred, gt):
        traces.append(head)
        return head.loss(pred, gt)

    for _ in range(2):
        loss(PanopticFPNHead(**SMALL), *batch())
    assert len(traces) == 1


def test_decode_resizes():
    pred = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)
    logits = PanopticFPNHead(**SMALL).decode(pred, (4, 4))
    assert logits.shape == (1, 4, 4, 3)
    np.testing.assert_allclose(logits[0, 0, :, 0], [0, 0.75, 2.25, 3])


def test_a_model_with_a_semantic_head():
    model = {"semantic_head": CONFIG["cases"]["base"]["head"], "panoptic_fusion_head": {"type": 1}}
    heads = build_detector(model)
    assert list(heads) == ["semantic_head"]
    assert heads["semantic_head"].num_stuff_classes == 4
    assert heads["semantic_head"].init() == {"loss_seg": ()}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: PanopticFPNHead(num_stuff_classes=0), ValueError, "num_stuff_classes must be at"),
        (lambda: PanopticFPNHead(start_level=-1), ValueError, "start_level must be at least 0"),
        (
            lambda: build_head({"type": "PanopticFPNHead", "loss_seg": {"type": "GIoULoss"}}),
            ValueError,
            r"loss_seg gets logits \(N, 54\) and labels",
        ),
        (
            lambda: PanopticFPNHead(**SMALL).loss(np.zeros((1, 2, 2, 4)), np.zeros((1, 8, 8), int)),
            ValueError,
            r"seg_preds must have shape \(1, h, w, 3\), got \(1, 2, 2, 4\)",
        ),
        (
            lambda: PanopticFPNHead(**SMALL).loss(np.zeros((1, 2, 2, 3)), np.zeros((1, 8, 8))),
            TypeError,
            "gt_sem_seg must hold integer class indices",
        ),
        (
            lambda: PanopticFPNHead(**SMALL).targets(np.zeros((8, 8), int)),
            ValueError,
            r"gt_sem_seg must have shape \(B, H, W\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=f"PanopticFPNHead: {message}"):
        call()
