"""Box coders, and the geometry of what they code: mmdet 3.3.0's numbers in float64 and float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from golden.read_heads import read
from visdet_jax import bbox_overlaps
from visdet_jax.boxes import bbox2distance, centerness_target, convert_boxes, integral
from visdet_jax.detectors import (
    TASK_UTILS,
    DeltaXYWHBBoxCoder,
    DistancePointBBoxCoder,
    LegacyDeltaXYWHBBoxCoder,
    TBLRBBoxCoder,
)

ARRAYS, CONFIG = read("coders")
INPUTS = {k: v.astype(np.float64) for k, v in ARRAYS.items() if v.dtype == np.float32}
CODERS = {key: TASK_UTILS.build(case["coder"]) for key, case in CONFIG["cases"].items()}
SHAPE = np.array([128.0, 160.0])

LATER, LATER_CONFIG = read("legacy")
LATER_INPUTS = {k: LATER[k].astype(np.float64) for k in ("priors", "gts", "deltas")}
LATER_CODERS = {key: TASK_UTILS.build(config) for key, config in LATER_CONFIG["coders"].items()}

every_later = pytest.mark.parametrize("key", LATER_CODERS)
every_delta = pytest.mark.parametrize("key", ["delta0", "delta1", "delta2", "delta3"])
every_distance = pytest.mark.parametrize("key", ["dist0", "dist1"])


def close(actual, expected, rtol=1e-12):
    """Asserts equality, by default to float64's rounding, and equal types."""
    expected = np.asarray(expected)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol, rtol * np.abs(expected).max(initial=0))


@every_delta
def test_encode(key, x64):
    close(CODERS[key].encode(INPUTS["priors"], INPUTS["gts"]), ARRAYS[f"{key}_encode"])


@every_delta
def test_encode_in_float32(key):
    close(CODERS[key].encode(ARRAYS["priors"], ARRAYS["gts"]), ARRAYS[f"{key}_encode_f32"], 1e-6)


@every_delta
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decode", {}),
        ("decode_maxshape", {"max_shape": SHAPE}),
        ("decode_ratio", {"wh_ratio_clip": 0.3}),
    ],
)
def test_decode(key, name, options, x64):
    assert CONFIG["cases"][key]["max_shape"] == SHAPE.tolist()
    assert CONFIG["cases"][key]["wh_ratio_clip"] == [16 / 1000, 0.3]

    def decode(deltas):
        return CODERS[key].decode(INPUTS["priors"], deltas, **options)

    boxes, pullback = jax.vjp(decode, INPUTS["deltas"])
    close(boxes, ARRAYS[f"{key}_{name}"])
    (gradient,) = pullback(jnp.asarray(INPUTS["gts"]))
    assert np.isfinite(gradient).all()
    if f"{key}_{name}_vjp" in ARRAYS:
        close(gradient, ARRAYS[f"{key}_{name}_vjp"])


@every_later
def test_legacy_and_tblr_coders_encode(key, x64):
    close(
        LATER_CODERS[key].encode(*(LATER_INPUTS[k] for k in ("priors", "gts"))),
        LATER[f"{key}_encode"],
    )
    single = LATER_CODERS[key].encode(LATER["priors"], LATER["gts"])
    close(single, LATER[f"{key}_encode_f32"], 1e-6)


@every_later
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("decode", {}),
        ("decode_maxshape", {"max_shape": tuple(LATER_CONFIG["max_shape"])}),
        ("decode_ratio", {"wh_ratio_clip": LATER_CONFIG["wh_ratio_clip"]}),
    ],
)
def test_legacy_and_tblr_coders_decode(key, name, options, x64):
    if f"{key}_{name}" not in LATER:
        assert key.startswith("tblr")  # It clips no ratio.
        return

    def decode(deltas):
        return LATER_CODERS[key].decode(LATER_INPUTS["priors"], deltas, **options)

    boxes, pullback = jax.vjp(decode, LATER_INPUTS["deltas"])
    close(boxes, LATER[f"{key}_{name}"])
    if f"{key}_{name}_vjp" in LATER:
        (gradient,) = pullback(jnp.asarray(LATER_INPUTS["gts"]))
        close(gradient, LATER[f"{key}_{name}_vjp"])


@every_distance
def test_distances(key, x64):
    coder, points = CODERS[key], INPUTS["points"]
    close(coder.decode(points, INPUTS["distances"]), ARRAYS[f"{key}_decode"])
    clipped = coder.decode(points, INPUTS["distances"], SHAPE)
    close(clipped, ARRAYS[f"{key}_decode_maxshape"])
    close(coder.encode(points, INPUTS["gts"]), ARRAYS[f"{key}_encode"])
    close(coder.encode(points, INPUTS["gts"], 16), ARRAYS[f"{key}_encode_max16"])
    close(coder.encode(points, INPUTS["gts"], 16, 0.01), ARRAYS[f"{key}_encode_max16_eps001"])


def test_max_shape_of_each_image(x64):
    points, distances = (INPUTS[k].reshape(2, 20, -1) for k in ("points", "distances"))
    expected = ARRAYS["dist_batched_decode_maxshape"]
    # The two images' shapes are not stored, but they are where boxes are clipped.
    shapes = np.stack([expected[..., 3].max(1), expected[..., 2].max(1)], axis=1)
    close(DistancePointBBoxCoder().decode(points, distances, shapes), expected)
    priors, deltas = (INPUTS[k].reshape(2, 20, -1) for k in ("priors", "deltas"))
    both = DeltaXYWHBBoxCoder().decode(priors, deltas, shapes)
    for i in range(2):
        close(both[i], DeltaXYWHBBoxCoder().decode(priors[i], deltas[i], shapes[i]))


@pytest.mark.parametrize("reg_max", [16, 8])
def test_integral(reg_max, x64):
    logits = INPUTS[f"integral{reg_max}_in"]

    def distances(logits):
        return integral(logits.reshape(-1, 4, reg_max + 1))

    out, pullback = jax.vjp(distances, logits)
    close(out, ARRAYS[f"integral{reg_max}_out"])
    cotangent = 1 + jnp.arange(out.size, dtype=out.dtype).reshape(out.shape)
    close(pullback(cotangent)[0], ARRAYS[f"integral{reg_max}_vjp"])


def test_centerness(x64):
    close(centerness_target(INPUTS["fcos_centerness_in"]), ARRAYS["fcos_centerness_out"])
    empty = centerness_target(np.zeros((0, 4)))
    close(empty, ARRAYS["fcos_centerness_empty_out"])
    centers = convert_boxes(INPUTS["atss_centerness_anchors"])[:, :2]
    distances = bbox2distance(centers, INPUTS["atss_centerness_gts"])
    close(centerness_target(distances), ARRAYS["atss_centerness_out"])


@pytest.mark.parametrize("mode", ["iou", "iof", "giou"])
def test_overlaps(mode, x64):
    first, second = INPUTS["priors"], INPUTS["gts"]
    degenerate = INPUTS["overlaps_degenerate_in"]
    close(bbox_overlaps(first, second[:7], mode), ARRAYS[f"overlaps_{mode}_pairwise"])
    aligned = bbox_overlaps(first, second, mode, is_aligned=True)
    close(aligned, ARRAYS[f"overlaps_{mode}_aligned"])
    close(bbox_overlaps(degenerate, degenerate, mode), ARRAYS[f"overlaps_{mode}_degenerate"])


def test_decode_is_the_inverse_of_encode(x64):
    priors, boxes, points = INPUTS["priors"], INPUTS["gts"], INPUTS["points"]
    for key in ("delta0", "delta1", "delta2"):
        deltas = CODERS[key].encode(priors, boxes)
        close(CODERS[key].decode(priors, deltas, wh_ratio_clip=1e-6), boxes, 1e-9)
    coder = DistancePointBBoxCoder()
    close(coder.decode(points, coder.encode(points, boxes)), boxes)
    coder = TBLRBBoxCoder(normalizer=(1.0, 2.0, 4.0, 0.5))
    close(coder.decode(priors, coder.encode(priors, boxes)), boxes)


def test_the_legacy_coder_gives_boxes_that_are_one_pixel_larger(x64):
    coder = LegacyDeltaXYWHBBoxCoder()
    priors, boxes = INPUTS["priors"], INPUTS["gts"]
    deltas = coder.encode(priors, boxes)
    larger = boxes + np.array([-0.5, -0.5, 0.5, 0.5])
    close(coder.decode(priors, deltas, wh_ratio_clip=1e-6), larger, 1e-9)


def test_clip_border_says_whether_max_shape_counts():
    priors, far = np.array([[0, 0, 9, 9]], np.float32), np.full((1, 4), 3, np.float32)
    for coder, at in (
        (DeltaXYWHBBoxCoder, priors),
        (DistancePointBBoxCoder, np.array([[9, 9]], np.float32)),
        (TBLRBBoxCoder, priors),
    ):
        assert coder().decode(at, far, (10, 11)).max() <= 11
        assert coder(clip_border=False).decode(at, far, (10, 11)).max() > 11
        assert coder().decode(at, far, (2, 3)).tolist()[0][2:] == [3, 2]  # (height, width)


@pytest.mark.parametrize("coder", [DeltaXYWHBBoxCoder, LegacyDeltaXYWHBBoxCoder])
def test_means_and_stds_are_four_numbers(coder):
    for name in ("target_means", "target_stds"):
        with pytest.raises(ValueError, match=f"{coder.__name__}: {name} must be four numbers"):
            coder(**{name: (0.1, 0.2)})


def test_the_legacy_coder_clips_to_the_last_pixel():
    priors, far = np.array([[0, 0, 9, 9]], np.float32), np.full((1, 4), 3, np.float32)
    clipped = LegacyDeltaXYWHBBoxCoder().decode(priors, far, (2, 3))
    assert clipped.tolist()[0][2:] == [2, 1]  # (height, width)


def test_normalizers_of_tblr_are_one_or_four_numbers_above_0():
    with pytest.raises(ValueError, match="TBLRBBoxCoder: normalizer must be one number or four"):
        TBLRBBoxCoder(normalizer=(1.0, 2.0))
    with pytest.raises(ValueError, match="TBLRBBoxCoder: normalizer must be above 0"):
        TBLRBBoxCoder(normalizer=(1.0, 2.0, 0.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_stds": (0.1, 0.1, 0.0, 0.2)}, "target_stds must be above 0"),
        ({"target_stds": (0.1, 0.1, -0.2, 0.2)}, "target_stds must be above 0"),
        ({"target_means": (0, 0, 0, float("inf"))}, "target_means must be finite"),
        ({"ctr_clamp": -1.0}, "ctr_clamp must be at least 0"),
    ],
)
def test_numbers_that_mean_nothing_raise(settings, message):
    with pytest.raises(ValueError, match=f"DeltaXYWHBBoxCoder: {message}"):
        DeltaXYWHBBoxCoder(**settings)


def test_means_and_stds_scale_what_is_learnt():
    priors, boxes = (
        np.array([[0, 0, 10, 20.0]], np.float32),
        np.array([[2, 5, 8, 25.0]], np.float32),
    )
    coder = DeltaXYWHBBoxCoder(target_means=(0.1, 0.2, 0.3, 0.4), target_stds=(0.5, 1, 2, 4))
    deltas = [(0 - 0.1) / 0.5, 5 / 20 - 0.2, (np.log(0.6) - 0.3) / 2, -0.4 / 4]
    np.testing.assert_allclose(coder.encode(priors, boxes), [deltas], rtol=1e-5)
