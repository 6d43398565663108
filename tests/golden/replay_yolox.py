"""Replays golden cases of VFNetHead, YOLOXHead and TOODHead; see tests/golden/onestage."""

import functools

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

KINDS = ("vfnet", "yolox", "tood_init", "tood_tal")
CASES = {kind: names("onestage", kind) for kind in KINDS}
PARTS = {
    "cls": "cls_scores",
    "bbox": "bbox_preds",
    "bboxrf": "bbox_preds_refine",
    "obj": "objectnesses",
}
BOXES = 18  # Ground truth is padded to as many, so that cases of one config share a program.


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, *batch, options):
        losses = head.loss(outputs, *batch, **options)
        epoch = {name: x for name, x in options.items() if name == "epoch"}
        return sum(losses.values()), (losses, head.targets(outputs, *batch, **epoch))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def maps(arrays, kind, config):
    """The arrays of each output by `HeadOutputs`'s names, level by level, channels last."""
    return {
        PARTS[part]: tuple(
            np.moveaxis(arrays[f"{kind}_{part}_{level}"], 1, -1)
            for level in range(len(config["strides"]))
        )
        for part in config["pred_names"]
    }


def padded(arrays, dtype, padding):
    """Ground truth padded to BOXES boxes; the padding holds NaN, or boxes that could be real."""
    batch, count = arrays["gt_labels"].shape
    labels = np.full((batch, BOXES), -1, np.int32)
    labels[:, :count] = arrays["gt_labels"]
    if padding == "nan":
        boxes = np.full((batch, BOXES, 4), np.nan)
    else:
        corner = np.random.default_rng(0).uniform(0, 40, (batch, BOXES, 2))
        boxes = np.concatenate([corner, corner + 30], axis=-1)
    real = labels >= 0
    boxes[real] = arrays["gt_bboxes"][arrays["gt_labels"] >= 0]
    return boxes.astype(dtype), labels


def replay(name, dtype, padding):
    """Compares losses, gradients and targets with those of the file."""
    arrays, config = read("onestage", name)
    head = build_head(config["head_cfg"], config["train_cfg"])
    outputs = HeadOutputs(
        **{
            part: tuple(x.astype(dtype) for x in levels)
            for part, levels in maps(arrays, "in", config).items()
        }
    )
    batch = (outputs, *padded(arrays, dtype, padding), arrays["img_shapes"], arrays["pad_shapes"])
    options = {key: config[key] for key in ("epoch", "use_l1") if key in config}
    result = program(head)(*batch, options=options)
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, result)
    loss_tolerance = {"rtol": 1e-9, "atol": 1e-14} if dtype == np.float64 else {"rtol": 1e-5}
    if config.get("use_l1") is False:
        assert losses.pop("loss_l1") == 0
    assert sorted(losses) == sorted(config["loss_names"])
    for key, value in losses.items():
        assert value.dtype == dtype
        expected = arrays[f"sum_{key}"]
        np.testing.assert_allclose(value, expected, **loss_tolerance, err_msg=key)
    for part, levels in maps(arrays, "grad", config).items():
        largest = max(np.abs(x).max() for x in levels)
        for level, (actual, expected) in enumerate(
            zip(getattr(gradient, part), levels, strict=True)
        ):
            rtol, atol = (2e-6, 1e-12) if dtype == np.float64 else (0, 3e-5)
            what = f"gradient by {part}[{level}]"
            np.testing.assert_allclose(actual, expected, rtol, atol * largest, err_msg=what)
    assert_targets(arrays, targets, dtype)


def assert_targets(arrays, targets, dtype):
    """Compares what is stored of the targets: integers exactly."""
    np.testing.assert_array_equal(targets.labels, arrays["tgt_labels"])
    positive = targets.gt_inds > 0
    if "tgt_gt_inds" in arrays:  # FCOS's points have none.
        np.testing.assert_array_equal(targets.gt_inds, arrays["tgt_gt_inds"])
    np.testing.assert_array_equal(targets.bbox_weights, positive)
    np.testing.assert_array_equal(np.argwhere(positive), arrays["tgt_pos_index"])
    assert not targets.bbox_targets[~positive].any()
    if "tgt_label_weights" in arrays:
        np.testing.assert_array_equal(targets.label_weights, arrays["tgt_label_weights"])
    tolerance = 1e-9 if dtype == np.float64 else 2e-5
    if "tgt_metrics" in arrays:
        np.testing.assert_allclose(
            targets.metrics, arrays["tgt_metrics"], tolerance, tolerance * 1e-3
        )
    else:
        assert targets.metrics is None
    if "tgt_pos_bbox_targets" in arrays:
        expected = arrays["tgt_pos_bbox_targets"]
        np.testing.assert_allclose(targets.bbox_targets[positive], expected, tolerance, tolerance)
