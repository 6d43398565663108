"""Masks at points: against a plain loop, its gradient, memory; and which points are chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from golden.read_cases import names, read
from programs import IS_JAX_0_10, temporary_bytes
from visdet_jax.boxes import points as points_module
from visdet_jax.boxes import sample_points, uncertain_points
from visdet_jax.boxes.points import _by_top_k as by_top_k

MODES = ("bilinear", "nearest")
PADDINGS = ("zeros", "border")
KEY = jax.random.key(0)
# At the corners and edges, in the middle of a cell, outside, far outside.
SPECIAL = [[0, 0], [1, 1], [0, 1], [0.5, 0], [1, 0.5], [-0.1, 0.5], [1.04, 0.3], [-9, 7], [9, 9]]


def random_maps(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def random_points(*shape, dtype=np.float32):
    """(*shape, 2), the first ones of which are special where there is room."""
    points = np.random.default_rng(1).uniform(-0.1, 1.1, (*shape, 2))
    points[..., : len(SPECIAL), :] = SPECIAL[: shape[-1]]
    return points.astype(dtype)


def slow(image, point, mode, padding):
    """One point of one map in float64: torch's grid_sample with align_corners=False."""
    height, width = image.shape
    x, y = point[0] * width - 0.5, point[1] * height - 0.5
    if padding == "border":
        x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)

    def cell(i, j):
        return image[i, j] if 0 <= i < height and 0 <= j < width else 0.0

    if mode == "nearest":
        return cell(int(np.rint(y)), int(np.rint(x)))
    top, left = int(np.floor(y)), int(np.floor(x))
    return sum(
        (1 - abs(y - i)) * (1 - abs(x - j)) * cell(i, j)
        for i in (top, top + 1)
        for j in (left, left + 1)
    )


@pytest.mark.parametrize("size", [(5, 8), (1, 4), (3, 1), (1, 1)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_against_a_loop_over_points(size, mode, padding, x64):
    maps = random_maps(2, *size, dtype=np.float64)
    points = random_points(2, 30, dtype=np.float64)
    found = sample_points(maps, points, mode=mode, padding=padding)
    expected = [
        [slow(image, point, mode, padding) for point in row]
        for image, row in zip(maps, points, strict=True)
    ]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_rows_may_read_any_of_the_maps(mode):
    maps, points = random_maps(2, 3, 6, 7), random_points(2, 4, 20)
    indices = np.array([[0, 2, 2, 1], [1, 1, 0, 0]], np.int8)
    found = sample_points(maps, points, indices, mode=mode)
    chosen = np.take_along_axis(maps, indices[..., None, None].astype(int), axis=1)
    np.testing.assert_allclose(found, sample_points(chosen, points, mode=mode), atol=1e-6)
    beyond = sample_points(maps, points, indices * 9 - 1, mode=mode)
    np.testing.assert_array_equal(beyond[0, 1], sample_points(maps[0, 2], points[0, 1], mode=mode))
    np.testing.assert_array_equal(beyond[0, 0], sample_points(maps[0, 0], points[0, 0], mode=mode))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("with_indices", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_the_maps_and_exact(mode, with_indices, padding):
    maps, points = random_maps(3, 4, 5), random_points(3, 20)
    weights = random_maps(3, 20)
    indices = np.array([2, 0, 2]) if with_indices else None

    def total(maps, points):
        found = sample_points(maps, points, indices, mode=mode, padding=padding)
        return (found * weights).sum()

    by_maps, by_points = jax.grad(total, argnums=(0, 1))(maps, points)
    assert not by_points.any()
    # The function is linear: its gradient is its value at each unit vector.
    units = jnp.eye(maps.size).reshape(-1, *maps.shape)
    expected = jax.vmap(lambda unit: total(unit, points))(units)
    np.testing.assert_allclose(by_maps.ravel(), expected, atol=1e-5)
    _, forward = jax.jvp(lambda maps: total(maps, points), (maps,), (units[7],))
    np.testing.assert_allclose(forward, expected[7], atol=1e-6)
    second = jax.jvp(jax.grad(lambda maps: total(maps, points) ** 2), (maps,), (units[7],))[1]
    np.testing.assert_allclose(second.ravel(), 2 * expected * expected[7], atol=1e-4)


@pytest.mark.parametrize("dtype", [bool, np.uint8, jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("mode", MODES)
def test_maps_of_other_types_are_read_as_float32(dtype, mode):
    maps, points = jnp.asarray(random_maps(2, 6, 7) > 0).astype(dtype), random_points(2, 20)
    found = sample_points(maps, points, mode=mode)
    assert found.dtype == np.float32
    expected = sample_points(maps.astype(np.float32), points, mode=mode)
    # With jax 0.12 one of the two programs rounds some products and sums together: up to 5 ulp.
    is_exact = IS_JAX_0_10 or mode == "nearest"
    np.testing.assert_allclose(found, expected, rtol=0 if is_exact else 1e-6, atol=0)


def test_gradients_of_half_floats_are_summed_in_float32():
    """2 000 times 1 at one cell, which bfloat16 cannot count."""
    maps, points = jnp.zeros((2, 2), jnp.bfloat16), np.full((2000, 2), 0.25, np.float32)
    gradient = jax.grad(lambda maps: sample_points(maps, points).sum())(maps)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(gradient, np.array([[2000, 0], [0, 0]], jnp.bfloat16))


@pytest.mark.long
@pytest.mark.parametrize("cells", [1, 2])
@pytest.mark.parametrize("size", [(5, 8), (1, 4), (1, 1)])
def test_what_a_tpu_computes_is_the_same(cells, size):
    """By products of matrices, and by a sort."""
    maps, rows = jnp.asarray(random_maps(3, *size)), jnp.array([2, 0, 0])
    points = random_points(3, 1500) * np.array(size[::-1], np.float32) - np.float32(0.5)
    x, y = jnp.moveaxis(jnp.rint(points) if cells == 1 else jnp.asarray(points), -1, 0)

    def both(maps):
        by_products = points_module._by_products(maps, rows, x, y)
        return by_products, points_module._by_gathers(maps, rows, x, y, cells)

    np.testing.assert_allclose(*both(maps), atol=1e-6)
    np.testing.assert_allclose(*both(maps > 0), atol=1e-6)
    totals = [lambda maps, i=i: (both(maps)[i] ** 2).sum() for i in range(2)]
    np.testing.assert_allclose(*(jax.grad(total)(maps) for total in totals), rtol=1e-4, atol=1e-4)
    windows = jax.grad(lambda maps: (points_module._by_windows(maps, rows, x, y, cells) ** 2).sum())
    np.testing.assert_allclose(windows(maps), jax.grad(totals[0])(maps), rtol=1e-4, atol=1e-4)
    values = jnp.abs(maps[0].ravel())
    drawn = jnp.asarray(random_points(len(values)))
    chosen = [f(values, drawn, len(values) // 2) for f in (points_module._by_sort, by_top_k)]
    np.testing.assert_array_equal(*chosen)


def test_no_copies_of_maps():
    """A float copy of the bitmaps would be 4 MB."""
    bitmaps = np.zeros((4, 512, 512), bool)
    points, rows = np.zeros((4, 99, 2), np.float32), np.arange(4, dtype=np.int32)
    for mode in MODES:
        run = functools.partial(sample_points, mode=mode)
        assert temporary_bytes(run, bitmaps, points, rows) < 5e4


def test_the_gradient_is_one_scatter():
    """Of a gather for each of the four cells there would be four; the form for TPUs has one too."""
    maps, points = random_maps(3, 4, 5), random_points(3, 20)
    gradient = jax.grad(lambda maps: (sample_points(maps, points) ** 2).sum())
    assert str(jax.make_jaxpr(gradient)(maps)).count(" scatter-add[") == 2


def test_nothing_at_all():
    for maps, points in (((2, 5, 6), (2, 0)), ((2, 0, 6), (2, 3)), ((0, 5, 6), (0, 3))):
        maps = np.zeros(maps, np.float32)
        found = sample_points(maps, np.zeros((*points, 2), np.float32))
        assert found.shape == points
        assert not found.any()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((5,), (3, 2)), {}, r"maps must have shape \(\.\.\., H, W\), got \(5,\)"),
        (((4, 5), (3, 2), (1,)), {}, r"maps must have shape \(\.\.\., M, H, W\) with indices"),
        (((2, 4, 5), (3, 2)), {}, r"points must have shape \(2, P, 2\), got \(3, 2\)"),
        (((2, 4, 5), (2, 3, 3)), {}, r"points must have shape \(2, P, 2\), got \(2, 3, 3\)"),
        (((2, 4, 5), (2, 3, 2), (3,)), {}, r"points must have shape \(3, P, 2\)"),
        (((2, 3, 4, 5), (2, 3, 2), (3,)), {}, r"indices must have the leading axes of maps"),
        (((4, 5), (3, 2)), {"mode": "cubic"}, "mode must be one of bilinear, nearest"),
        (((4, 5), (3, 2)), {"padding": "wrap"}, "padding must be one of zeros, border"),
    ],
)
def test_errors(arguments, options, message):
    arrays = [np.zeros(shape, np.float32) for shape in arguments[:2]]
    indices = [np.zeros(shape, np.int32) for shape in arguments[2:]]
    with pytest.raises(ValueError, match=f"sample_points: {message}"):
        sample_points(*arrays, *indices, **options)


# Which points are chosen.

CASES = [*names("queries", "mask2former"), "rfdetr_masks", "rfdetr_masksquare"]


def stored(name):
    """(logits, what is asked for, what was drawn, what was chosen, where something is matched)."""
    arrays, config = read("queries", name)
    logits, gt_inds = arrays["in_mask"], arrays["gt_inds"]
    if "in_enc_mask" in arrays:
        logits = np.concatenate([logits, arrays["in_enc_mask"][None]])
        gt_inds = np.concatenate([gt_inds, arrays["enc_gt_inds"][None]])
    drawn = {"candidates": arrays["points_over"], "rest": arrays["points_rand"]}
    counts = config.get("points") or {"num_points": config["masks"]["num_points_loss"]}
    options = {
        "num_points": counts["num_points"],
        "oversample_ratio": counts.get("oversample_ratio", 3.0),
        "importance_ratio": counts.get("importance_sample_ratio", 0.75),
        "padding": "zeros" if name.startswith("mask2former") else "border",
    }
    return logits, options, drawn, arrays["points_selected"], gt_inds > 0


def in_order(points):
    """Points (..., P, 2) as complex numbers, sorted."""
    return np.sort(np.asarray(points[..., 0]) + 1j * np.asarray(points[..., 1]), axis=-1)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", CASES)
def test_the_points_that_mmdet_and_rf_detr_choose(name):
    logits, options, drawn, chosen, matched = stored(name)
    found = uncertain_points(None, logits, **options, **drawn)
    assert found.shape == chosen.shape
    np.testing.assert_array_equal(in_order(found)[matched], in_order(chosen)[matched])
    queries = np.broadcast_to(np.arange(matched.shape[-1], dtype=np.int32), matched.shape)
    by_index = uncertain_points(None, logits, queries, chunk=3, **options, **drawn)
    np.testing.assert_array_equal(by_index, found)


OPTIONS = {"num_points": 40, "oversample_ratio": 3.0, "importance_ratio": 0.75}


def test_points_that_are_drawn():
    """The candidates are uniform, and the chosen ones lie where the logits are near 0."""
    logits = np.broadcast_to(np.linspace(-4, 4, 64, dtype=np.float32)[:, None], (2, 3, 64, 64))
    options = OPTIONS | {"num_points": 4000, "padding": "border"}
    found = uncertain_points(KEY, logits, **options)
    assert found.shape == (2, 3, 4000, 2)
    assert len(np.unique(found)) > 47_000  # Each mask has its own.
    np.testing.assert_allclose(found.mean((0, 1, 2)), 0.5, atol=0.01)
    y = found[..., 1]
    assert (np.abs(y[..., :3000] - 0.5) < 0.14).all()
    np.testing.assert_allclose(y[..., 3000:].std(), 12**-0.5, atol=0.01)
    np.testing.assert_array_equal(found, uncertain_points(KEY, logits, **options))
    other = uncertain_points(jax.random.key(1), logits, **options)
    assert not (found == other).any(-1).any()


@pytest.mark.parametrize(("ratio", "chosen"), [(0.0, 0), (0.7, 28), (1.0, 40)])
def test_how_many_are_chosen(ratio, chosen):
    logits, options = random_maps(2, 6, 7), OPTIONS | {"importance_ratio": ratio}
    drawn = random_points(2, 120).clip(0, 1)
    found = uncertain_points(KEY, logits, candidates=drawn, **options)
    known = (found[:, :, None] == drawn[:, None]).all(-1).any(-1)
    np.testing.assert_array_equal(known, np.arange(40) < np.full((2, 1), chosen))


@pytest.mark.long
def test_half_floats_float64_and_no_gradient(x64):
    for dtype in (jnp.bfloat16, np.float64):
        logits = jnp.asarray(random_maps(2, 6, 7)).astype(dtype)
        found, gradient = jax.value_and_grad(
            lambda logits: uncertain_points(KEY, logits, **OPTIONS).sum()
        )(logits)
        assert found.dtype == (np.float64 if dtype == np.float64 else np.float32)
        assert not gradient.any()


def test_rows_are_computed_in_chunks():
    """All rows at once would be 10 MB of candidates."""
    logits, rows = np.zeros((4, 32, 32), np.float32), np.zeros(100, np.int32)

    def run(logits, rows):
        return uncertain_points(KEY, logits, rows, chunk=4, **(OPTIONS | {"num_points": 4000}))

    assert temporary_bytes(run, logits, rows) < 2e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "key must be given, or both candidates and rest"),
        ({"candidates": np.zeros((2, 120, 2))}, "key must be given, or both candidates and rest"),
        ({"candidates": np.zeros((2, 99, 2))}, r"candidates must have shape \(2, 120, 2\), got"),
        ({"rest": np.zeros((2, 11, 2))}, r"rest must have shape \(2, 10, 2\), got \(2, 11, 2\)"),
        ({"num_points": 0}, "num_points must be at least 1, got 0"),
        ({"oversample_ratio": 0.5}, "oversample_ratio must be at least 1, got 0.5"),
        ({"importance_ratio": 1.5}, r"importance_ratio must be in \[0, 1\], got 1.5"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
    ],
)
def test_errors_of_choosing(options, message):
    with pytest.raises(ValueError, match=f"uncertain_points: {message}"):
        uncertain_points(None, random_maps(2, 6, 7), **(OPTIONS | options))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["shard_map", "auto", "explicit"])
def test_images_spread_over_devices(kind):
    maps, indices = random_maps(4, 3, 6, 7), np.tile(np.array([2, 0], np.int32), (4, 1))

    candidates = jax.random.uniform(KEY, (1, 2, 120, 2))
    options = OPTIONS | {"importance_ratio": 1.0, "chunk": 1}

    def step(maps, indices):
        drawn = jnp.broadcast_to(candidates, (len(maps), *candidates.shape[1:]))
        points = uncertain_points(KEY, maps, indices, candidates=drawn, **options)
        return points, jax.grad(lambda x: (sample_points(x, points, indices) ** 2).sum())(maps)

    expected = jax.jit(step)(maps, indices)
    axis_type = AxisType.Explicit if kind == "explicit" else AxisType.Auto
    mesh = jax.make_mesh((2,), ("images",), (axis_type,), devices=jax.devices()[:2])
    mapped = step
    if kind == "shard_map":
        mapped = jax.shard_map(step, mesh=mesh, in_specs=P("images"), out_specs=P("images"))
    with jax.set_mesh(mesh):
        batch = jax.device_put((maps, indices), NamedSharding(mesh, P("images")))
        found = jax.device_get(jax.jit(mapped)(*batch))
    for actual, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)
