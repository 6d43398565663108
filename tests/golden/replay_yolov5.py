"""Replays the golden cases of mmyolo's YOLOv5Head; see tests/golden/onestage."""

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

CASES = names("onestage", "yolov5")
PARTS = {"cls": "cls_scores", "bbox": "bbox_preds", "obj": "objectnesses"}
FILLINGS = {"nan": np.nan, "plausible": np.array([10, 14, 42, 50])}


def maps(arrays, prefix):
    """The arrays of each output by `HeadOutputs`'s names, level by level, channels last."""
    return {
        name: tuple(np.moveaxis(arrays[f"{prefix}_{part}_{i}"], 1, -1) for i in range(3))
        for part, name in PARTS.items()
    }


def replay(name, dtype, padding):
    """Compares losses, gradients and what is learnt with those of the file."""
    arrays, config = read("onestage", name)
    head = build_head(config["head_cfg"], config["train_cfg"])
    labels = arrays["gt_labels"]
    boxes = np.where(labels[..., None] >= 0, arrays["gt_bboxes"], FILLINGS[padding])
    outputs = HeadOutputs(**jax.tree.map(lambda x: x.astype(dtype), maps(arrays, "in")))
    truth = (boxes.astype(dtype), labels)

    def total(outputs):
        losses = head.loss(outputs, *truth)
        return sum(losses.values()), (losses, head.targets(outputs, *truth))

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, (losses, targets)), gradient = jax.tree.map(np.asarray, run(outputs))
    assert sorted(losses) == sorted(config["loss_names"])
    rtol = 1e-9 if dtype == np.float64 else 1e-5
    for key, value in losses.items():
        assert value.dtype == dtype
        np.testing.assert_allclose(value, arrays[f"sum_{key}"], rtol, err_msg=key)
    for part, levels in maps(arrays, "grad").items():
        largest = max(np.abs(x).max() for x in levels)
        limits = (2e-6, 1e-12) if dtype == np.float64 else (0, 3e-5 * largest)
        for level, expected in enumerate(levels):
            found = getattr(gradient, part)[level]
            np.testing.assert_allclose(found, expected, *limits, err_msg=f"{part}[{level}]")
    assert_candidates(arrays, targets.candidates, rtol)


def assert_candidates(arrays, candidates, rtol):
    """How many boxes are learnt on each level that has any, and which, in any order."""
    levels = [x.reshape(len(x), 3, -1) for x in candidates[:-2]]
    weights = candidates.weights.reshape(levels[0].shape)
    learnt = candidates.bbox_targets.reshape(*weights.shape, 4)
    assert set(np.unique(weights)) <= {0, 1}  # No centre lies between two cells in these files.
    counts = weights.sum(axis=(0, 2))
    np.testing.assert_array_equal(counts[counts > 0], arrays["tgt_num_targets"])
    ends = np.cumsum(arrays["tgt_num_targets"])
    for level, end in zip(np.flatnonzero(counts), ends, strict=True):
        expected = arrays["tgt_boxes"][end - int(counts[level]) : end]
        found = learnt[:, level][weights[:, level] > 0]
        order = [x[np.lexsort(x.round(4).T)] for x in (found, expected)]
        np.testing.assert_allclose(*order, rtol, 10 * rtol)
