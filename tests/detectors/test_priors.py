"""Priors: mmdet 3.3.0's anchors and points, bit for bit, and which of them take part."""

import jax.numpy as jnp
import numpy as np
import pytest

from golden.read_heads import read
from visdet_jax.detectors import (
    TASK_UTILS,
    AnchorGenerator,
    LegacyAnchorGenerator,
    MlvlPointGenerator,
    YOLOAnchorGenerator,
    inside_flags,
    valid_flags,
)

ARRAYS, CONFIG = read("priors")
EDGE, EDGE_CONFIG = read("edge")
LEVELS = range(5)

LATER, LATER_CONFIG = read("legacy")
every_case = pytest.mark.parametrize("key", CONFIG["cases"])


def grid_of(key, dtype=np.float32):
    case = CONFIG["cases"][key]
    sizes = tuple(tuple(size) for size in case["featmap_sizes"])
    return TASK_UTILS.build(case["generator"]).grid(sizes, dtype)


@every_case
def test_float32_bit_for_bit(key):
    grid = grid_of(key)
    assert grid.priors.dtype == grid.corners.dtype == grid.strides.dtype == np.float32
    expected = [ARRAYS[f"{key}_l{i}_f32"] for i in LEVELS]
    np.testing.assert_array_equal(grid.priors, np.concatenate(expected))
    assert grid.level_sizes == tuple(map(len, expected))


@every_case
def test_float64(key):
    grid = grid_of(key, np.float64)
    assert grid.priors.dtype == np.float64
    expected = [ARRAYS.get(f"{key}_l{i}_f64", ARRAYS[f"{key}_l{i}_f32"]) for i in LEVELS]
    np.testing.assert_allclose(grid.priors, np.concatenate(expected), rtol=1e-14)


@pytest.mark.parametrize("key", [key for key in CONFIG["cases"] if "points" not in key])
def test_base_anchors(key):
    generator = TASK_UTILS.build(CONFIG["cases"][key]["generator"])
    for i, stride in enumerate(generator.strides):
        expected = ARRAYS[f"{key}_base{i}_f32"]
        np.testing.assert_array_equal(generator.base_anchors(stride), expected)
        exact = generator.base_anchors(stride, np.float64)
        np.testing.assert_allclose(exact, ARRAYS[f"{key}_base{i}_f64"], rtol=1e-14)
        assert generator.num_base_priors == len(expected)


@pytest.mark.parametrize("key", LATER_CONFIG["generators"])
def test_legacy_anchors_and_centers(key):
    case = LATER_CONFIG["generators"][key]
    generator = TASK_UTILS.build(case["generator"])
    single = generator.grid(case["featmap_sizes"])
    np.testing.assert_array_equal(single.priors, LATER[f"{key}_f32"])
    double = generator.grid(case["featmap_sizes"], np.float64)
    assert double.priors.dtype == np.float64
    whole = isinstance(generator, LegacyAnchorGenerator)
    np.testing.assert_allclose(double.priors, LATER[f"{key}_f64"], 0 if whole else 1e-6)


@every_case
@pytest.mark.parametrize("image", [0, 1])
def test_valid_flags(key, image):
    pad_shape = jnp.array(CONFIG["cases"][key]["pad_shapes"][image], jnp.float32)
    expected = np.concatenate([ARRAYS[f"{key}_pad{image}_valid{i}"] for i in LEVELS])
    np.testing.assert_array_equal(valid_flags(grid_of(key), pad_shape), expected)


@pytest.mark.parametrize("border", CONFIG["inside_flags"]["allowed_borders"])
def test_inside_flags(border):
    # mmdet does not look at the image for a negative border; the heads do not call it then.
    settings = CONFIG["inside_flags"]
    expected = ARRAYS[f"inside_flags_{settings['key']}_border{border}"]
    shape = jnp.array(settings["img_shape"], jnp.float32)
    if border >= 0:
        actual = inside_flags(jnp.asarray(grid_of(settings["key"]).priors), shape, border)
        np.testing.assert_array_equal(actual, expected)
    else:
        assert expected.all()


@pytest.mark.parametrize("border", [0, 4])
def test_inside_flags_at_the_border(border):
    shape = jnp.array(EDGE_CONFIG["inside"]["img_shape"], jnp.float32)
    actual = inside_flags(jnp.asarray(EDGE["inside_anchors"]), shape, border)
    np.testing.assert_array_equal(actual, EDGE[f"inside_border{border}"])


@pytest.mark.parametrize("key", ["fcos_points_0", "fcos_points_1"])
def test_strides(key):
    expected = np.concatenate([ARRAYS[f"{key}_l{i}_with_stride"] for i in LEVELS])
    np.testing.assert_array_equal(grid_of(key).strides, expected[:, 2])


def test_corners_and_order():
    generator = AnchorGenerator(strides=(4,), ratios=(1.0,), scales=(1, 2))
    grid = generator.grid(((2, 3),))
    cells = [(x, y) for y in (0, 4) for x in (0, 4, 8)]
    np.testing.assert_array_equal(grid.corners, np.repeat(cells, 2, axis=0))
    np.testing.assert_array_equal(grid.priors[0], [-2, -2, 2, 2])
    np.testing.assert_array_equal(grid.priors[1], [-4, -4, 4, 4])
    np.testing.assert_array_equal(grid.priors[-1], [4, 0, 12, 8])


def test_scales_are_octaves():
    octaves = AnchorGenerator(
        strides=(8, 16), ratios=(0.5, 1.0), octave_base_scale=4, scales_per_octave=2
    )
    scales = AnchorGenerator(strides=(8, 16), ratios=(0.5, 1.0), scales=(4, 4 * 2**0.5))
    assert scales.num_base_priors == octaves.num_base_priors == 4
    for size in (8, 16):
        np.testing.assert_array_equal(scales.base_anchors(size), octaves.base_anchors(size))


def sides(anchors):
    return (anchors[:, 2:] - anchors[:, :2]).tolist()


def test_scale_major_is_the_order():
    options = {"strides": (1,), "ratios": (0.25, 4.0), "scales": (1, 2)}
    first = AnchorGenerator(**options).base_anchors(1)
    assert sides(first) == [[2, 0.5], [4, 1], [0.5, 2], [1, 4]]
    second = AnchorGenerator(**options, scale_major=False).base_anchors(1)
    assert sides(second) == [[2, 0.5], [0.5, 2], [4, 1], [1, 4]]


def test_center_offset_and_base_sizes():
    options = {"strides": (8,), "ratios": (1.0,), "scales": (1,), "base_sizes": (10,)}
    grid = AnchorGenerator(**options, center_offset=0.5).grid(((1, 2),))
    np.testing.assert_array_equal(grid.priors, [[0, 0, 10, 10], [8, 0, 18, 10]])


def test_centers_are_those_of_their_level():
    options = {"strides": (8, 16), "ratios": (1.0,), "scales": (1,), "base_sizes": (10, 4)}
    grid = AnchorGenerator(**options, centers=((1, 2), (5, 3))).grid(((1, 2), (1, 1)))
    expected = [[-4, -3, 6, 7], [4, -3, 14, 7], [3, 1, 7, 5]]
    np.testing.assert_array_equal(grid.priors, expected)


def test_legacy_anchors_reach_to_their_last_pixel():
    # mmdet's docstring.
    legacy = LegacyAnchorGenerator(
        strides=(16,), ratios=(1.0,), scales=(1,), base_sizes=(9,), center_offset=0.5
    )
    expected = [[0, 0, 8, 8], [16, 0, 24, 8], [0, 16, 8, 24], [16, 16, 24, 24]]
    np.testing.assert_array_equal(legacy.grid(((2, 2),)).priors, expected)


def test_anchors_of_given_sizes():
    """Around the cells' middles, and in the order of the sizes."""
    config = {"type": "mmdet.YOLOAnchorGenerator", "strides": [8, 16]}
    sizes = [[[10, 13], [6, 3]], [[30, 61], [62, 45]]]
    generator = TASK_UTILS.build({**config, "base_sizes": sizes})
    assert generator.num_base_priors == 2
    grid = generator.grid(((2, 1), (1, 2)))
    assert (grid.level_sizes, grid.sizes) == ((4, 4), ((2, 1), (1, 2)))
    middles = [(4, 4), (4, 12), (8, 8), (24, 8)]
    expected = [
        (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        for cell, (x, y) in enumerate(middles)
        for w, h in sizes[cell // 2]
    ]
    np.testing.assert_array_equal(grid.priors, expected)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([[[10, 13]]], "2 strides need the base_sizes of as many levels, got 1"),
        ([[[10, 13]], [[10, 13], [6, 3]]], "base_sizes must be as many .width, height. for every"),
        ([[], []], "base_sizes must be as many .width, height. for every level, one at least"),
        ([[[10]], [[13]]], "base_sizes must be as many .width, height. for every level"),
        ([[[10, 0]], [[13, 4]]], "base_sizes must be above 0"),
    ],
)
def test_errors_of_given_sizes(sizes, message):
    with pytest.raises(ValueError, match=f"YOLOAnchorGenerator: {message}"):
        YOLOAnchorGenerator(strides=(8, 16), base_sizes=sizes)


def test_points_and_their_offset():
    grid = MlvlPointGenerator(strides=(4, 8), offset=0.25).grid(((1, 2), (1, 1)))
    np.testing.assert_array_equal(grid.priors, [[1, 1], [5, 1], [2, 2]])
    assert MlvlPointGenerator(strides=(4,)).num_base_priors == 1


EITHER = "AnchorGenerator: give either scales, or octave_base_scale and scales_per_octave"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, EITHER),
        ({"octave_base_scale": 4}, EITHER),
        ({"scales_per_octave": 3}, EITHER),
        ({"scales": (8,), "octave_base_scale": 4, "scales_per_octave": 3}, EITHER),
        ({"scales": (8,), "scales_per_octave": 3}, EITHER),
        ({"scales": (8,), "base_sizes": (4,)}, "AnchorGenerator: 2 strides need as many base_size"),
        ({"scales": ()}, "AnchorGenerator: give one ratio and one scale at least"),
        ({"scales": (8,), "ratios": ()}, "AnchorGenerator: give one ratio and one scale at least"),
        ({"scales": (8, 0)}, "AnchorGenerator: scales must be above 0"),
        ({"scales": (8,), "ratios": (1.0, -2.0)}, "AnchorGenerator: ratios must be above 0"),
        ({"scales": (8,), "base_sizes": (4, -1)}, "AnchorGenerator: base_sizes must be above 0"),
        ({"scales": (8,), "strides": (8, 0)}, "AnchorGenerator: strides must be at least 1"),
        ({"scales": (8,), "strides": ()}, "AnchorGenerator: strides must be one number or more"),
        ({"scales": (8,), "center_offset": 1.5}, r"center_offset must be in \[0, 1\]"),
        ({"octave_base_scale": -4, "scales_per_octave": 3}, "octave_base_scale must be above 0"),
        ({"octave_base_scale": 4, "scales_per_octave": 0}, "scales_per_octave must be at least 1"),
        ({"scales": (8,), "centers": ((1, 2),)}, r"2 strides need as many centers \(x, y\): "),
        ({"scales": (8,), "centers": ((1,), (2,))}, r"2 strides need as many centers \(x, y\): "),
        (
            {"scales": (8,), "centers": ((1, 2), (3, 4)), "center_offset": 0.5},
            "give either centers or center_offset",
        ),
    ],
)
def test_errors_of_anchors(options, message):
    with pytest.raises(ValueError, match=message):
        AnchorGenerator(**{"strides": (8, 16), "ratios": (1.0,), **options})


def test_errors_of_points():
    with pytest.raises(ValueError, match="MlvlPointGenerator: offset must be finite"):
        MlvlPointGenerator(strides=(8,), offset=float("nan"))
    with pytest.raises(ValueError, match="MlvlPointGenerator: strides must be one number or more"):
        MlvlPointGenerator(strides=())
    with pytest.raises(ValueError, match="MlvlPointGenerator: 2 feature maps do not fit 1 strides"):
        MlvlPointGenerator(strides=(8,)).grid(((2, 2), (1, 1)))


def test_equal_grids_are_computed_once():
    sizes = [[3, 4], [2, 2]]
    first, second = (AnchorGenerator(strides=(8, 16), ratios=[1], scales=[4]) for _ in range(2))
    assert first.grid(sizes) is second.grid(((3, 4), (2, 2)))
    assert first.grid(sizes) is not first.grid(sizes, np.float64)
