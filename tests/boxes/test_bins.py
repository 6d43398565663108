"""D-FINE's bins: what they stand for, there and back, and the names in `visdet_jax.dfine`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from visdet_jax import dfine
from visdet_jax.boxes.bins import (
    bin_values,
    boxes_to_bins,
    distances_to_boxes,
    expected_distance,
    neighbouring_bins,
)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_bins_near_the_middle_are_finer_for_a_larger_scale():
    """In widths; the last bin but one stays at `up`."""
    moves = [np.asarray(bin_values(32, 0.5, scale)) / scale for scale in (1.0, 4.0, 8.0)]
    middle = [np.diff(move)[16] for move in moves]
    assert middle[0] > middle[1] > middle[2]
    for move in moves:
        close(move[[0, 1, 16, 31, 32]], [-1, -0.5, 0, 0.5, 1])


def test_bin_values_keep_their_digits_near_0():
    """In float32 the formula as it is written is 2 % off."""
    exact = np.expm1(np.log1p(1e-4) / 15)
    close(bin_values(32, 1e-4, 1.0)[17], exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bins", "scale", "up"), [(32, 4.0, 0.5), (8, 8.0, np.ones(1))])
def test_weights_interpolate_the_distance(bins, scale, up):
    values = np.asarray(bin_values(bins, up, scale))
    close(values, -values[::-1])
    assert (np.diff(values) > 0).all()
    gt = np.concatenate([np.linspace(values[0], values[-1], 41)[:-1], [-99, 99]])
    gt = gt.astype(np.float32)
    k, right, left = map(np.asarray, neighbouring_bins(gt, bins, scale, up))
    close(right + left, 1)
    k = k.astype(int)
    assert (k < bins).all()
    close(left * values[k] + right * values[k + 1], np.clip(gt, values[0], values[-1]), atol=1e-5)


def test_distances_outside_the_bins_and_nan():
    k, right, left = neighbouring_bins(np.float32([-99, 99, np.nan]), 8, 4.0, 0.5)
    close(k, [0, 7.9, 0])
    close(right, [0, 1, np.nan])
    close(left, [1, 0, np.nan])


def test_sides_come_back():
    points = np.array([[0.5, 0.4, 0.2, 0.3], [0.3, 0.7, 0.4, 0.1]], np.float32)
    boxes = np.array([[0.42, 0.2, 0.61, 0.6], [0.05, 0.66, 0.5, 0.77]], np.float32)
    targets = boxes_to_bins(points, boxes, 32, 4.0, 0.5)
    bins, right, left = (np.asarray(x)[..., None] for x in targets)
    k = np.arange(33, dtype=np.float32).reshape(1, 1, -1)
    with np.errstate(divide="ignore"):
        logits = np.log((k == bins) * left + (k == bins + 1) * right)
    distance = expected_distance(np.maximum(logits, -1e3), 32, 4.0, 0.5)
    x, y, w, h = distances_to_boxes(points, distance, 4.0).T
    close(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), boxes)


def test_targets_have_no_gradient():
    box = np.ones((1, 4), np.float32)
    gradient = jax.grad(lambda p: boxes_to_bins(p, box, 8, 4.0, 0.5)[1].sum())(box / 3)
    assert not gradient.any()


def test_errors():
    box = np.ones((1, 4), np.float32)
    for bins in (33, 2, 32.0):
        with pytest.raises(ValueError, match="reg_max must be an even int of at least 4, got"):
            bin_values(bins, 0.5, 4.0)
    with pytest.raises(ValueError, match=r"expected_distance: pred must have shape \(..., 33\)"):
        expected_distance(box, 32, 4.0, 0.5)
    with pytest.raises(ValueError, match="up must be a number or an array of one, got shape"):
        neighbouring_bins(box, 8, 4.0, np.ones(2))
    with pytest.raises(ValueError, match="boxes_to_bins: boxes must have shape"):
        boxes_to_bins(box, box[:, :2], 8, 4.0, 0.5)
    with pytest.raises(ValueError, match="boxes_to_bins: eps must be at least 0"):
        boxes_to_bins(box, box, 8, 4.0, 0.5, -1.0)
    with pytest.raises(TypeError, match="distances_to_boxes: points must be an array, got list"):
        distances_to_boxes([1.0], box, 4.0)


def test_explicitly_sharded_boxes():
    rng = np.random.default_rng(0)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Explicit,))
    points = rng.uniform(0.2, 0.8, (8, 4)).astype(np.float32)
    boxes = points[:, [0, 1, 0, 1]] + np.array([-0.1, -0.1, 0.2, 0.1], np.float32)
    expected = boxes_to_bins(points, boxes, 32, 4.0, 0.5)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("rows"))
        actual = boxes_to_bins(*jax.device_put((points, boxes), sharding), 32, 4.0, 0.5)
        distance = expected_distance(jnp.zeros((8, 4, 33), device=sharding), 32, 4.0, 0.5)
        distances_to_boxes(jax.device_put(points, sharding), distance, 4.0)
    jax.tree.map(close, jax.device_get(actual), jax.device_get(expected))


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (dfine.weighting_function, "reg_max, up, reg_scale"),
        (dfine.translate_gt, "gt, reg_max, reg_scale, up"),
        (dfine.bbox2distance, "points, boxes, reg_max, reg_scale, up, eps"),
        (dfine.distance2bbox, "points, distance, reg_scale"),
        (dfine.integral, "pred, reg_max, reg_scale, up"),
    ],
)
def test_the_names_and_arguments_of_d_fine(function, parameters):
    assert ", ".join(inspect.signature(function).parameters) == parameters


def test_the_mean_is_a_sum():
    """Accelerators round a product of matrices to bfloat16 or TF32."""
    program = jax.make_jaxpr(lambda pred: expected_distance(pred, 8, 4.0, 0.5))(jnp.zeros((2, 9)))
    assert "dot_general" not in str(program)
