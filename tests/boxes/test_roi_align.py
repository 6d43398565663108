"""RoI align: against a plain loop over samples, its gradient, padding, memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from programs import temporary_bytes
from visdet_jax.boxes import roi_align

SCALE = 0.25
# Inside, reaching over the map, small, without area, at the corner, outside, the whole map.
ROIS = np.array(
    [
        [4, 4, 60, 40],
        [-20, -30, 90, 80],
        [10, 10, 12, 11],
        [5, 5, 5, 5],
        [60, 40, 100, 90],
        [200, 200, 220, 220],
        [0, 0, 68, 52],
    ],
    np.float32,
)


def random_features(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def interpolate(features, y, x):
    """mmcv's `bilinear_interpolate`."""
    height, width, _ = features.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = (1 - dx) * features[top, left] + dx * features[top, right]
    lower = (1 - dx) * features[bottom, left] + dx * features[bottom, right]
    return (1 - dy) * upper + dy * lower


def slow_region(features, roi, bins, sampling_ratio, aligned, scale=SCALE):
    """One region, sample by sample, in float64."""
    features = np.asarray(features, np.float64)
    shift = 0.5 if aligned else 0
    x1, y1, x2, y2 = (float(x) * scale - shift for x in roi)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1), max(height, 1)
    step_y, step_x = height / bins[0], width / bins[1]
    count_y = sampling_ratio or math.ceil(np.float32(step_y))
    count_x = sampling_ratio or math.ceil(np.float32(step_x))
    found = np.zeros((*bins, features.shape[-1]))
    for i, j in np.ndindex(*bins):
        for k, m in np.ndindex(count_y, count_x):
            y = y1 + (i + (k + 0.5) / count_y) * step_y
            x = x1 + (j + (m + 0.5) / count_x) * step_x
            found[i, j] += interpolate(features, y, x)
    return found / max(count_y * count_x, 1)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("bins", [(5, 5), (3, 4)])
def test_against_a_loop_over_samples(aligned, sampling_ratio, bins):
    features = random_features(13, 17, 3)
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned}
    found = roi_align(features, ROIS, output_size=bins, spatial_scale=SCALE, chunk=2, **options)
    expected = [slow_region(features, roi, bins, sampling_ratio, aligned) for roi in ROIS]
    np.testing.assert_allclose(found, expected, atol=5e-6)


def test_a_constant_map_stays_constant_and_a_ramp_gives_the_bins_centres():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    features = np.stack([np.ones_like(x), x, y], axis=-1)
    # Cell (0, 0) has its centre at half a cell, so that the ramps are x - 0.5 and y - 0.5.
    found = roi_align(features, np.array([[4, 6, 24, 16]], np.float32), output_size=(5, 10))[0]
    np.testing.assert_allclose(found[..., 0], 1, rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], np.tile(np.arange(4.5, 24, 2), (5, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        found[..., 2], np.tile(np.arange(6.5, 16, 2)[:, None], 10), rtol=1e-5
    )


def test_the_gradient_is_that_of_the_features_and_exact():
    features, rois = random_features(7, 8, 2), ROIS[:5] / 8
    weights = random_features(len(rois), 3, 3, 2)

    def total(features, rois):
        return (roi_align(features, rois, output_size=3, chunk=2) * weights).sum()

    by_features, by_rois = jax.grad(total, argnums=(0, 1))(features, rois)
    assert not by_rois.any()
    # The function is linear: its gradient is its value at each unit vector.
    units = jnp.eye(features.size).reshape(-1, *features.shape)
    expected = jax.vmap(lambda unit: total(unit, rois))(units)
    np.testing.assert_allclose(by_features.ravel(), expected, atol=1e-5)


def test_second_derivatives_and_forward_mode():
    features, rois = random_features(7, 8, 2), ROIS[:3] / 8

    def total(features):
        return (roi_align(features, rois, output_size=2) ** 3).sum()

    direction = random_features(7, 8, 2)
    _, forward = jax.jvp(total, (features,), (direction,))
    np.testing.assert_allclose(forward, (jax.grad(total)(features) * direction).sum(), rtol=1e-4)
    _, second = jax.jvp(jax.grad(total), (features,), (direction,))
    assert np.isfinite(second).all()
    assert second.any()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30, 1e30])
def test_padding_is_not_read(garbage):
    features, rois = random_features(13, 17, 3), ROIS.copy()
    valid = np.arange(len(rois)) % 2 == 0
    expected = roi_align(features, rois, output_size=4, spatial_scale=SCALE)
    rois[~valid] = garbage

    def call(features):
        return roi_align(features, rois, valid, output_size=4, spatial_scale=SCALE)

    found = call(features)
    np.testing.assert_array_equal(found[valid], expected[valid])
    assert not found[~valid].any()
    assert np.isfinite(jax.grad(lambda features: call(features).sum())(features)).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf])
def test_regions_that_are_not_finite_are_padding(garbage):
    features = random_features(5, 5, 2)
    rois = np.array([[0, 0, garbage, 4], [1, 1, 4, 4]], np.float32)
    found = roi_align(features, rois, output_size=2)
    assert not found[0].any()
    assert found[1].any()


def test_inverted_and_huge_regions_are_finite():
    features = random_features(5, 6, 2)
    rois = np.array([[4, 4, 1, 1], [-1e6, -1e6, 1e6, 1e6], [-1e30, 0, 1e30, 3]], np.float32)
    for aligned in (True, False):
        for ratio in (0, 2):
            found = roi_align(features, rois, output_size=3, sampling_ratio=ratio, aligned=aligned)
            assert np.isfinite(found).all()
    assert not roi_align(features, rois[:1], output_size=3).any()


@pytest.mark.long
def test_leading_axes_and_chunks_and_jit():
    features = random_features(2, 3, 9, 8, 2)
    rois = np.tile(ROIS / 8, (2, 3, 1, 1)) + np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) / 2
    found = roi_align(features, rois, output_size=3)
    assert found.shape == (2, 3, len(ROIS), 3, 3, 2)
    for i, j in np.ndindex(2, 3):
        for chunk in (1, 3, 100):
            alone = roi_align(features[i, j], rois[i, j], output_size=3, chunk=chunk)
            np.testing.assert_allclose(found[i, j], alone, atol=1e-6)
    with jax.disable_jit():
        eager = roi_align(features[0, 0], rois[0, 0], output_size=3)
    np.testing.assert_allclose(found[0, 0], eager, atol=1e-6)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["shard_map", "auto", "explicit"])
def test_images_spread_over_devices(kind):
    features, rois = random_features(4, 9, 8, 2), np.tile(ROIS / 8, (4, 1, 1))
    call = functools.partial(roi_align, output_size=3, chunk=2)
    step = jax.value_and_grad(lambda features, rois: (call(features, rois) ** 2).sum())
    expected = [step(*image) for image in zip(features, rois, strict=True)]
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2,), ("images",), (axis_type,), devices=jax.devices()[:2])
    mapped = jax.vmap(step)
    if kind == "shard_map":
        mapped = jax.shard_map(mapped, mesh=mesh, in_specs=P("images"), out_specs=P("images"))
    with jax.set_mesh(mesh):
        batch = jax.device_put((features, rois), NamedSharding(mesh, P("images")))
        found = jax.device_get(jax.jit(mapped)(*batch))
    for i, (value, gradient) in enumerate(expected):
        np.testing.assert_allclose(found[0][i], value, rtol=1e-5)
        np.testing.assert_allclose(found[1][i], gradient, atol=1e-5)


def test_nothing_at_all():
    for shape, count in (((5, 6, 2), 0), ((0, 6, 2), 3), ((5, 6, 0), 3)):
        found = roi_align(
            np.zeros(shape, np.float32), np.zeros((count, 4), np.float32), output_size=2
        )
        assert found.shape == (count, 2, 2, shape[-1])
        assert not found.any()


@pytest.mark.one_in(2)
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_floats_are_computed_in_float32(dtype):
    features = jnp.asarray(random_features(9, 8, 2), dtype)
    found = roi_align(features, ROIS / 8, output_size=3)
    assert found.dtype == dtype
    exact = roi_align(features.astype(jnp.float32), ROIS / 8, output_size=3)
    np.testing.assert_array_equal(found, exact.astype(dtype))
    gradient = jax.grad(lambda x: roi_align(x, ROIS / 8, output_size=3).sum())(features)
    assert gradient.dtype == dtype


def test_float64(x64):
    features, rois = random_features(13, 17, 3, dtype=np.float64), ROIS.astype(np.float64)
    found = roi_align(features, rois, output_size=5, spatial_scale=SCALE)
    assert found.dtype == np.float64
    expected = [slow_region(features, roi, (5, 5), 0, True) for roi in rois]
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_the_features_of_all_regions_are_never_made():
    features, rois = np.zeros((100, 100, 32), np.float32), np.zeros((200, 4), np.float32)

    def step(features, rois):
        return jax.grad(lambda x: (roi_align(x, rois, output_size=7, chunk=8) ** 2).sum())(features)

    # (R, H, W, C) would be 256 MB; rows of all regions at once, (R, h, W, C), 18 MB.
    assert temporary_bytes(step, features, rois) < 14e6


def test_compiled_once_for_all_regions():
    features, traces = random_features(9, 8, 2), []

    @jax.jit
    def call(features, rois):
        traces.append(rois)
        return roi_align(features, rois, output_size=3)

    for scale in (8, 80, 0.8):
        call(features, ROIS / np.float32(scale))
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("features", "rois", "options", "message"),
    [
        ((8, 2), (3, 4), {}, r"features must have shape \(\.\.\., H, W, C\), got \(8, 2\)"),
        ((9, 8, 2), (3, 5), {}, r"rois must have shape \(\.\.\., R, 4\) with the leading axes"),
        ((2, 9, 8, 2), (3, 4), {}, r"rois must have shape \(\.\.\., R, 4\) with the leading axes"),
        ((2, 9, 8, 2), (3, 5, 4), {}, r"rois must have the leading axes of features, \(2,\)"),
        ((9, 8, 2), (3, 4), {"output_size": (1, 2, 3)}, "output_size must be a number or"),
        ((9, 8, 2), (3, 4), {"output_size": 0}, "output_size must be at least 1, got 0"),
        ((9, 8, 2), (3, 4), {"sampling_ratio": -1}, "sampling_ratio must be at least 0, got -1"),
        ((9, 8, 2), (3, 4), {"spatial_scale": 0.0}, "spatial_scale must be above 0, got 0.0"),
        ((9, 8, 2), (3, 4), {"chunk": 0}, "chunk must be at least 1, got 0"),
        ((9, 8, 2), (3, 4), {"precision": "low"}, "precision must be one of highest, high,"),
        ((9, 8, 2), (3, 4), {"valid": np.ones(2, bool)}, r"valid must have shape \(3,\)"),
    ],
)
def test_errors(features, rois, options, message):
    arrays = [np.zeros(shape, np.float32) for shape in (features, rois)]
    with pytest.raises(ValueError, match=f"roi_align: {message}"):
        roi_align(*arrays, **{"output_size": 3, **options})
