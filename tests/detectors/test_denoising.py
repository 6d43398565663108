"""Denoising queries: mmdet's, RT-DETR's, D-FINE's and DEIM's, and what padding changes."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from golden.read_cases import names, read
from visdet_jax.detectors import DenoisingNoise, dn_queries

CASES = [name for name in names("queries", "cdn") if name != "cdn_nogt"]
STYLES = {"mmdet": "mmdet", "rtdetr": "rtdetr", "dfine": "dfine", "deim": "dfine"}


def settings_of(config):
    """The keywords of `dn_queries` for a file's config."""
    groups = config.get("group_cfg", {})
    return {
        "num_classes": config["num_classes"],
        "num_matching_queries": config["num_matching_queries"],
        "num_dn_queries": config.get("num_denoising", groups.get("num_dn_queries", 100)),
        "num_groups": groups.get("num_groups"),
        "label_noise_scale": config.get("label_noise_scale", config.get("label_noise_ratio")),
        "box_noise_scale": config["box_noise_scale"],
        "style": STYLES[config["source"].split()[0]],
    }


def noise_of(arrays):
    is_negative = arrays["rand_sign"] == arrays["rand_sign"].min()
    return DenoisingNoise(arrays["rand_p"], arrays["rand_label"], is_negative, arrays["rand_part"])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden(name, dtype, x64):
    arrays, config = read("queries", name)
    labels = arrays["gt_labels"]
    boxes = np.where(labels[..., None] < 0, np.nan, arrays["gt_bboxes"]).astype(dtype)
    truth = boxes, labels, arrays["img_shapes"]
    found = dn_queries(None, *truth, **settings_of(config), noise=noise_of(arrays))
    assert found.box_logits.dtype == dtype
    np.testing.assert_array_equal(found.labels, arrays["exp_labels"])
    np.testing.assert_array_equal(found.attn_mask, arrays["exp_attn_mask"])
    atol = 1e-12 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(found.box_logits, arrays["exp_bbox_unact"], 0, atol)
    if (gt_inds := arrays.get("exp_dn_gt_inds")) is not None:
        np.testing.assert_array_equal(found.gt_inds, gt_inds)


LABELS = np.array([[2, 0, -1], [1, -1, -1]], np.int32)
BOXES = np.array(
    [
        [[10, 10, 30, 50], [20, 5, 40, 25], [np.nan] * 4],
        [[0, 0, 60, 60], [np.nan] * 4, [np.nan] * 4],
    ],
    np.float32,
)
SHAPES = np.array([[60, 80], [64, 64]], np.int32)


def queries(key=0, boxes=BOXES, labels=LABELS, **options):
    settings = {"num_classes": 3, "num_matching_queries": 4, "num_groups": 2} | options
    key = None if key is None else jax.random.key(key)
    return dn_queries(key, boxes, labels, SHAPES, **settings)


def test_layout():
    """A group is the positives of all boxes, then the negatives; the third box is in no image."""
    found = queries()
    np.testing.assert_array_equal(found.gt_inds[0], [1, 2, -1, 0, 0, -1] * 2)
    np.testing.assert_array_equal(found.gt_inds[1], [1, 0, -1, 0, 0, -1] * 2)
    np.testing.assert_array_equal(found.labels[:, 2::3], -1)
    assert found.box_logits.shape == (2, 12, 4)
    assert found.attn_mask.shape == (16, 16)


def test_queries_that_learn_nothing_are_seen_by_no_other():
    mask = np.array(queries().attn_mask)
    unused = np.flatnonzero(np.asarray(queries().gt_inds)[0] == -1)
    for query in unused:
        others = np.delete(mask[:, query], query)
        assert others.all()
        assert not mask[query, query]


def test_boxes_without_noise_are_the_ground_truth():
    found = queries(label_noise_scale=0.0, box_noise_scale=0.0)
    center, size = np.split(1 / (1 + np.exp(-np.asarray(found.box_logits[0, 0]))), 2)
    corners = np.concatenate([center - size / 2, center + size / 2]) * [80, 60, 80, 60]
    np.testing.assert_allclose(corners, BOXES[0, 0], 1e-5)
    np.testing.assert_array_equal(found.labels[0, :2], LABELS[0, :2])


def test_positives_stay_within_half_a_side_and_negatives_do_not():
    found = queries(num_groups=200)
    assert not np.array_equal(found.box_logits, queries(1, num_groups=200).box_logits)
    center, size = np.split(1 / (1 + np.exp(-np.asarray(found.box_logits[0]))), 2, axis=-1)
    corners = np.concatenate([center - size / 2, center + size / 2], axis=-1)
    corners = (corners * [80, 60, 80, 60]).reshape(200, 6, 4)
    moved = np.abs(corners[:, 0] - BOXES[0, 0]) / [20, 40, 20, 40]
    assert moved.max() < 0.5 + 1e-3
    assert moved.max() > 0.45
    moved = (corners[:, 4] - BOXES[0, 1])[:, 2:] / 20  # Its second corner is far from the border.
    outwards = moved[(moved > 0).all(-1)]
    assert len(outwards) > 20
    assert outwards.min() > 0.5 - 1e-3
    assert outwards.max() < 1 + 1e-3
    changed = np.asarray(found.labels[0]).reshape(200, 6)[:, 0] != LABELS[0, 0]
    assert 0.1 < changed.mean() < 0.25  # 1/4, and a third of those keep their class.


def test_the_number_of_groups_follows_the_padded_boxes():
    assert queries(num_groups=None, num_dn_queries=7).labels.shape == (2, 2 * 3 * 2)
    assert queries(num_groups=None, num_dn_queries=1).labels.shape == (2, 2 * 3)
    nothing = queries(boxes=BOXES[:, :0], labels=LABELS[:, :0])
    assert nothing.box_logits.shape == (2, 0, 4)
    assert nothing.attn_mask.shape == (4, 4)


def test_no_image_has_a_box():
    found = queries(labels=np.full_like(LABELS, -1))
    assert (np.asarray(found.gt_inds) == -1).all()
    assert np.isfinite(found.box_logits).all()


@pytest.mark.long
def test_over_devices_the_fullest_image_is_that_of_all():
    boxes, labels = np.tile(BOXES, (4, 1, 1)), np.tile(LABELS, (4, 1))
    shapes = np.tile(SHAPES, (4, 1))
    settings = {"num_classes": 3, "num_matching_queries": 4, "num_groups": 2}
    expected = dn_queries(jax.random.key(0), boxes, labels, shapes, **settings)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    spread = (jax.device_put(x, NamedSharding(mesh, P("data"))) for x in (boxes, labels, shapes))
    with jax.set_mesh(mesh):
        found = dn_queries(jax.random.key(0), *spread, **settings)
    np.testing.assert_array_equal(found.gt_inds, expected.gt_inds)
    np.testing.assert_allclose(found.box_logits, expected.box_logits, 1e-6)

    def of_image(*image):
        image = [x[None] for x in image]
        return dn_queries(jax.random.key(0), *image, **settings, axis_name="data").gt_inds[0]

    mapped = jax.vmap(of_image, axis_name="data")(boxes, labels, shapes)
    np.testing.assert_array_equal(mapped, expected.gt_inds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": None}, "dn_queries: key must be given, or noise"),
        ({"boxes": BOXES[0]}, r"dn_queries: gt_boxes must have shape \(B, G, 4\), got \(3, 4\)"),
        ({"labels": LABELS[:, :2]}, r"dn_queries: gt_labels must have shape \(2, 3\)"),
        ({"style": "dino"}, "dn_queries: style must be one of mmdet, rtdetr, dfine; got 'dino'"),
        ({"box_noise_scale": -1.0}, "dn_queries: box_noise_scale must be"),
        (
            {"noise": DenoisingNoise(*(np.zeros((2, 3)) for _ in range(4)))},
            r"dn_queries: noise.chosen must have shape \(2, 12\), got \(2, 3\)",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        queries(**options)
